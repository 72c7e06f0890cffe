// Checks in the visitor's own browser that a statement is in the log: head (signed note, Ed25519), entry, and the
// hashes from the entry to the head's root (RFC 6962, over C2SP tlog-tiles). Only the log's static files are read.
const TILE = 256;
const box = document.getElementById("proof");
const hex = (bytes) => [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
const unbase64 = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const joined = (...parts) => {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) { all.set(part, at); at += part.length; }
  return all;
};
const sha256 = async (bytes) => new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
const leafHash = (entry) => sha256(joined(Uint8Array.of(0), entry));
const nodeHash = (left, right) => sha256(joined(Uint8Array.of(1), left, right));

class Wrong extends Error {}
const check = (holds, why) => { if (!holds) throw new Wrong(why); };

const bytesOf = async (path) => {
  const answer = await fetch(path, { cache: path.endsWith("checkpoint") ? "no-store" : "default" });
  check(answer.ok, `${path}: ${answer.status}`);
  return new Uint8Array(await answer.arrayBuffer());
};

const tilePath = (level, index, width) => {
  let path = String(index % 1000).padStart(3, "0");
  for (let rest = Math.floor(index / 1000); rest; rest = Math.floor(rest / 1000)) {
    path = `x${String(rest % 1000).padStart(3, "0")}/${path}`;
  }
  return `/log/tile/${level}/${path}${width === TILE ? "" : `.p/${width}`}`;
};

// --- the signed head ---

const readHead = (text) => {
  const [body, signatures] = text.split("\n\n");
  const [origin, size, root] = body.split("\n");
  check(/^(0|[1-9][0-9]{0,15})$/.test(size), "the head has no size");
  return { origin, size: Number(size), root: unbase64(root), text: `${body}\n`, signatures: signatures.trimEnd().split("\n") };
};

// null: this browser does not know Ed25519.
const isSigned = async (head, key) => {
  const [name, hint, material] = [key.split("+")[0], key.split("+")[1], key.split("+").slice(2).join("+")];
  const known = unbase64(material);
  check(head.origin === name, `the head is of ${head.origin}, not of ${name}`);
  check(known[0] === 1 && known.length === 33, "the log's key is no Ed25519 key");
  let imported;
  try {
    imported = await crypto.subtle.importKey("raw", known.slice(1), { name: "Ed25519" }, false, ["verify"]);
  } catch {
    return null;
  }
  for (const line of head.signatures) {
    const [dash, signer, text] = line.split(" ");
    const blob = dash === "\u2014" && signer === name ? unbase64(text) : new Uint8Array();
    if (hex(blob.slice(0, 4)) !== hint) continue;
    return crypto.subtle.verify("Ed25519", imported, blob.slice(4), new TextEncoder().encode(head.text));
  }
  return false;
};

// --- the entry ---

const entryAt = async (index, size) => {
  const bundle = Math.floor(index / TILE);
  const raw = await bytesOf(tilePath("entries", bundle, Math.min(TILE, size - bundle * TILE)));
  let at = 0;
  for (let skip = index % TILE; skip; skip -= 1) at += 2 + raw[at] * 256 + raw[at + 1];
  return raw.slice(at + 2, at + 2 + raw[at] * 256 + raw[at + 1]);
};

// --- the way to the root ---

const split = (count) => { let half = 1; while (half * 2 < count) half *= 2; return half; };

const tree = (size) => {
  const tiles = new Map();
  const tile = (level, index) => {
    const name = `${level}/${index}`;
    if (!tiles.has(name)) {
      const width = Math.min(TILE, Math.floor(size / TILE ** level) - index * TILE);
      tiles.set(name, bytesOf(tilePath(level, index, width)));
    }
    return tiles.get(name);
  };
  const node = async (level, index) => {
    const tileLevel = Math.floor(level / 8);
    const count = 2 ** (level % 8);
    const first = index * count;
    const raw = await tile(tileLevel, Math.floor(first / TILE));
    let row = [];
    for (let n = 0; n < count; n += 1) {
      const start = ((first % TILE) + n) * 32;
      row.push(raw.slice(start, start + 32));
    }
    while (row.length > 1) {
      const above = [];
      for (let n = 0; n < row.length; n += 2) above.push(await nodeHash(row[n], row[n + 1]));
      row = above;
    }
    return row[0];
  };
  const root = async (lo, hi) => {
    const count = hi - lo;
    if (Number.isInteger(Math.log2(count)) && lo % count === 0) return node(Math.log2(count), lo / count);
    const middle = lo + split(count);
    return nodeHash(await root(lo, middle), await root(middle, hi));
  };
  return root;
};

const wayUp = async (leaf, index, size) => {
  const root = tree(size);
  const steps = [];
  for (let lo = 0, hi = size; hi - lo > 1;) {
    const middle = lo + split(hi - lo);
    if (index < middle) { steps.unshift([middle, hi, "right"]); hi = middle; }
    else { steps.unshift([lo, middle, "left"]); lo = middle; }
  }
  let hash = leaf;
  const lines = [`${hex(leaf)}  entry ${index}`];
  for (const [lo, hi, side] of steps) {
    const sibling = await root(lo, hi);
    lines.push(`${hex(sibling)}  ${side}: entries ${lo} to ${hi - 1}`);
    hash = side === "right" ? await nodeHash(hash, sibling) : await nodeHash(sibling, hash);
  }
  lines.push(`${hex(hash)}  root`);
  return { hash, lines };
};

// --- the page ---

const step = (name, good, about) => {
  const line = box.querySelector(`[data-step="${name}"]`);
  line.className = good === null ? "unknown" : good ? "good" : "bad";
  line.querySelector("span").textContent = about;
};
const verdict = (text, kind) => {
  const line = box.querySelector(".verdict");
  line.textContent = text;
  line.className = `verdict ${kind}`;
};

const verify = async () => {
  const index = Number(box.dataset.index);
  const head = readHead(new TextDecoder().decode(await bytesOf("/log/checkpoint")));
  if (index >= head.size) { verdict(box.dataset.waiting, "unknown"); return; }
  box.querySelector(".steps").hidden = false;
  const signed = await isSigned(head, box.dataset.key);
  step("head", signed, signed === null ? box.dataset.unsigned : `${head.size}: ${hex(head.root).slice(0, 16)}…`);
  check(signed !== false, "the head's signature does not hold");
  const entry = await entryAt(index, head.size);
  const record = JSON.parse(new TextDecoder().decode(entry));
  const digest = hex(unbase64(record.spec.hashedRekordV002.data.digest));
  step("entry", digest === box.dataset.id, `${digest.slice(0, 16)}…`);
  check(digest === box.dataset.id, "the entry is another statement's");
  const { hash, lines } = await wayUp(await leafHash(entry), index, head.size);
  const details = box.querySelector("details");
  details.hidden = false;
  details.querySelector("pre").textContent = lines.join("\n");
  step("path", hex(hash) === hex(head.root), `${lines.length - 2}`);
  check(hex(hash) === hex(head.root), "the hashes lead to another root");
  verdict(box.dataset.good, "good");
};

if (box && crypto.subtle) {
  verify().catch((error) => verdict(`${box.dataset.bad} ${error.message}`, "bad"));
}
