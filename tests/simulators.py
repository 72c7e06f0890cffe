"""A whole alliance in memory: institutions with rings, a log with witnesses, statements, packs. No hub, no disk.

``Alliance`` says and logs whatever it is told to, true or not: tests edit it, then break it. ``tell_story`` makes
one where everything holds: a base model, three labs' datasets, a plan, consents, two rounds, the trained version
with provenance, evaluations, approvals and release, grants, a pull, and everybody's status list.
"""

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from storage.admission import check_admission
from storage.checkpoint import Checkpoint, LogKey, Proof, proof_text, sign_checkpoint
from storage.encoding import canonical, format_time, sha256_hex
from storage.evidence import Entry, Evidence
from storage.keyring import RingVersion, read_ring
from storage.kinds import KIND_OF_URI
from storage.manifests import MANIFEST_TYPE, Manifest, oms_payload, read_manifest
from storage.merkle import Node, consistency_ranges, fold, inclusion_ranges, leaf_hash, range_root
from storage.notes import WITNESS, parse_note
from storage.pack import pack_files
from storage.pack_files import consistency_text
from storage.ringmaker import make_ring
from storage.signing import PrivateKey, key_hint, log_leaf, new_private_key, open_envelope, sign
from storage.standard import BUILD_TYPE, BUILDER, release_purl
from storage.statements import KINDS, STATEMENT_TYPE, read_statement
from storage.trust import Trust

NOW = 1_795_000_000  # 2026-11-18
HUB = "hub.example"
OPERATOR, OWNER, FIRM = "operator.example", "owner.example", "firm.example"
LABS = ("lab-a.example", "lab-b.example", "lab-c.example")
MODEL = f"{OWNER}/digits"
DAY = 86_400
ROLES = ("root", "targets", "snapshot", "timestamp")
Subjects = list[tuple[str, str]]


@dataclass
class Member:
    """An institution: its keys by role, the newest last, and the versions of its ring."""

    name: str
    keys: dict[str, list[PrivateKey]]
    roots: list[bytes] = field(default_factory=list)
    last: RingVersion | None = None

    def hint(self, role: str) -> str:
        """Hint of the newest key of a role."""
        return key_hint(self.keys[role][-1].public_key())

    def copy(self) -> "Member":
        return Member(self.name, {r: list(k) for r, k in self.keys.items()}, list(self.roots), self.last)


@dataclass(frozen=True)
class Logged:
    """One statement of the log."""

    id: str
    raw: bytes
    index: int
    member: str


class Alliance:
    """Institutions and a log that takes everything they sign, at a clock that stands until it is moved."""

    def __init__(self, names: Iterable[str] = (OPERATOR, OWNER, *LABS, FIRM), *, witnesses: int = 3) -> None:
        self.now = NOW
        self.log_key = LogKey.generate(HUB)
        self.witnesses = [LogKey.generate(f"w{i}.example", WITNESS) for i in range(witnesses)]
        self.members: dict[str, Member] = {}
        self.logged: dict[str, Logged] = {}
        self.leaves: list[bytes] = []
        self.manifests: dict[str, bytes] = {}
        self._heads: dict[tuple[int, int], Checkpoint] = {}
        for name in names:
            self.join(name)

    def fork(self) -> "Alliance":
        """A copy that grows on its own, with the same keys."""
        copy = Alliance((), witnesses=0)
        copy.now, copy.log_key, copy.witnesses = self.now, self.log_key, self.witnesses
        copy.members = {name: member.copy() for name, member in self.members.items()}
        copy.logged, copy.leaves = dict(self.logged), list(self.leaves)
        copy.manifests = dict(self.manifests)
        copy._heads = dict(self._heads)
        return copy

    # --- institutions -------------------------------------------------------------------------------------

    def join(self, name: str) -> Member:
        """A new institution with fresh keys, its ring logged."""
        member = Member(name, {role: [new_private_key()] for role in ROLES})
        self.members[name] = member
        self._log_ring(member)
        return member

    def rotate(self, name: str, role: str = "targets", *, log: bool = True) -> str:
        """Give a role a new key in place of the old; the id of the new ring's statement, empty without ``log``."""
        member = self.members[name]
        member.keys[role].append(new_private_key())
        return self._log_ring(member, log=log)

    def _log_ring(self, member: Member, *, log: bool = True) -> str:
        number = len(member.roots) + 1
        raw = make_ring(
            member.name,
            {role: keys[-1:] for role, keys in member.keys.items()},
            version=number,
            expires_at=self.now + 366 * DAY,
            signers=member.keys["root"][-2:],
            before=member.last,
        )
        member.roots.append(raw)
        member.last = read_ring(member.name, member.roots, sha256_hex(member.roots[0])).newest
        subject = (f"{number}.root.json", sha256_hex(raw))
        return self.say(member.name, "keyring", [subject], {"version": number}) if log else ""

    # --- statements ---------------------------------------------------------------------------------------

    def payload(
        self, name: str, kind: str, subjects: Subjects, predicate: Mapping[str, Any], **header: Any
    ) -> bytes:
        """A payload as asked for, with the header of an own kind; ``header`` replaces members of it."""
        uri = kind if "://" in kind else KINDS[kind].uri
        members = dict(predicate)
        known = KIND_OF_URI.get(uri)
        if known is None or known.own:
            own = {
                "issuer": name,
                "hub": HUB,
                "issuedAt": format_time(self.now),
                "nonce": secrets.token_hex(16),
            }
            members = {**own, **header, **members}
        return canonical(
            {
                "_type": STATEMENT_TYPE,
                "subject": [{"name": file, "digest": {"sha256": digest}} for file, digest in subjects],
                "predicateType": uri,
                "predicate": members,
            }
        )

    def sign(
        self,
        name: str,
        kind: str,
        subjects: Subjects,
        predicate: Mapping[str, Any],
        *,
        role: str | None = None,
        **header: Any,
    ) -> bytes:
        """A signed bundle, not logged; ``role`` takes another key than the kind's."""
        used = role or (KINDS[kind].role if kind in KINDS else "targets")
        return sign(
            self.members[name].keys[used][-1], self.payload(name, kind, subjects, predicate, **header)
        )

    def log(self, raw: bytes) -> str:
        """Put a bundle into the log, whatever it says; gives its id."""
        envelope = open_envelope(raw)
        assert envelope.id not in self.logged, "the same payload was signed before: one statement, one id"
        for member in self.members.values():
            for keys in member.keys.values():
                for key in keys:
                    if key_hint(key.public_key()) == envelope.hint:
                        self.leaves.append(leaf_hash(log_leaf(key.public_key(), envelope)))
                        self.logged[envelope.id] = Logged(envelope.id, raw, len(self.leaves) - 1, member.name)
                        return envelope.id
        raise AssertionError("nobody here has that key")

    def say(
        self,
        name: str,
        kind: str,
        subjects: Subjects,
        predicate: Mapping[str, Any],
        *,
        role: str | None = None,
        **header: Any,
    ) -> str:
        """Sign and log; gives the statement's id."""
        return self.log(self.sign(name, kind, subjects, predicate, role=role, **header))

    def status(
        self, name: str, *, revoked: Sequence[str] = (), keys: Mapping[str, int] | None = None, **changes: Any
    ) -> str:
        """An institution's next status list."""
        known = [e for e in self.evidence().by_kind("status") if e.institution == name]
        root = self.members[name].roots[-1]
        predicate = {
            "sequence": known[-1].says["sequence"] + 1 if known else 1,
            "nextUpdate": format_time(self.now + DAY),
            "revoked": sorted(revoked),
            "keys": [{"hint": hint, "fromIndex": start} for hint, start in sorted((keys or {}).items())],
            **changes,
        }
        number = len(self.members[name].roots)
        return self.say(name, "status", [(f"{number}.root.json", sha256_hex(root))], predicate)

    def revoke(self, name: str, target: str, reason: str = "withdrawn", **members: Any) -> str:
        """Revoke a statement by its id."""
        return self.say(
            name, "revocation", [("grant", target)], {"target": "statement", "reason": reason, **members}
        )

    def revoke_key(self, name: str, hint: str, reason: str = "compromised", **members: Any) -> str:
        """Revoke a key by its hint."""
        return self.say(
            name, "revocation", [("key.pem", hint)], {"target": "key", "reason": reason, **members}
        )

    def model(
        self, name: str, version: int, files: Mapping[str, bytes], **members: Any
    ) -> tuple[Manifest, str]:
        """A model version's OMS and asset statements; gives its manifest and the asset statement's id."""
        manifest = manifest_of(name, files)
        owner = name.partition("/")[0]
        oms = self.log(sign(self.members[owner].keys["targets"][-1], oms_payload(manifest, name)))
        says = {"type": "model", "name": name, "version": version, "oms": oms, **members}
        self.manifests[manifest.asset_id] = manifest.raw
        return manifest, self.say(owner, "asset", [("manifest.json", manifest.asset_id)], says)

    # --- the log ------------------------------------------------------------------------------------------

    def _nodes(self) -> Node:
        known: dict[tuple[int, int], bytes] = {}

        def node(level: int, index: int) -> bytes:
            if (level, index) not in known:
                known[level, index] = fold(self.leaves[index << level : (index + 1) << level])
            return known[level, index]

        return node

    @property
    def checkpoint(self) -> Checkpoint:
        """The head of the log now, cosigned by all witnesses."""
        size = len(self.leaves)
        if (size, self.now) not in self._heads:
            signed = sign_checkpoint(self.log_key, size, range_root(0, size, self._nodes()))
            text = parse_note(signed.note).text
            lines = b"".join(witness.cosign_note(text, self.now) for witness in self.witnesses)
            self._heads[size, self.now] = replace(signed, note=signed.note + lines)
        return self._heads[size, self.now]

    def prove(self, indexes: Sequence[int]) -> list[Proof]:
        """Inclusion proofs to the head."""
        size, node, note = len(self.leaves), self._nodes(), self.checkpoint.note
        return [
            Proof(index, tuple(range_root(lo, hi, node) for lo, hi in inclusion_ranges(index, size)), note)
            for index in indexes
        ]

    def consistency(self, old: int) -> list[bytes]:
        """Hashes from an earlier size to the head."""
        node = self._nodes()
        return [range_root(lo, hi, node) for lo, hi in consistency_ranges(old, len(self.leaves))]

    def evidence(self) -> Evidence:
        """The whole log as a hub holds it; only for statements that are well formed."""
        rings = {
            name: read_ring(name, member.roots, sha256_hex(member.roots[0]))
            for name, member in self.members.items()
        }
        evidence = Evidence(HUB, OPERATOR, rings, whole=True)
        for logged in self.logged.values():
            envelope = open_envelope(logged.raw)
            evidence.add(
                Entry(read_statement(envelope), logged.member, envelope.hint, logged.index, envelope)
            )
        evidence.manifests = {asset_id: read_manifest(raw) for asset_id, raw in self.manifests.items()}
        return evidence

    def admit(self, raw: bytes) -> Entry:
        """What the hub does with a bundle: check it against the whole log, and log it when it is new."""
        evidence = self.evidence()
        entry = check_admission(evidence, raw, now=self.now)
        if entry.index == evidence.size:
            self.log(raw)
        return entry

    # --- trust and packs ----------------------------------------------------------------------------------

    def trust_document(self, **changes: Any) -> dict[str, Any]:
        """A ``trust.json`` that pins everybody and asks for two of the witnesses."""
        names = [f"w{i}" for i in range(len(self.witnesses))]
        policy = f"log {self.log_key.vkey}\n"
        policy += "".join(f"witness {n} {w.vkey}\n" for n, w in zip(names, self.witnesses, strict=True))
        policy += f"group g 2 {' '.join(names)}\nquorum g\n" if names else "quorum none\n"
        return {
            "hub": HUB,
            "operator": OPERATOR,
            "policy": policy,
            "institutions": {name: sha256_hex(member.roots[0]) for name, member in self.members.items()},
            **changes,
        }

    def trust(self, **changes: Any) -> Trust:
        """The same, parsed."""
        return Trust.read(json.dumps(self.trust_document(**changes)).encode())

    def pack(self, folder: Path, *, skip: Iterable[str] = (), old: int | None = None) -> Path:
        """Write everything that was logged, true or not, but the statements named in ``skip``."""
        left_out = set(skip)
        chosen = [logged for logged in self.logged.values() if logged.id not in left_out]
        files = {"checkpoint": self.checkpoint.note}
        for logged, proof in zip(chosen, self.prove([each.index for each in chosen]), strict=True):
            files[f"statements/{logged.id}.sigstore.json"] = logged.raw
            files[f"proofs/{logged.id}.tlog-proof"] = proof_text(proof)
        for name, member in self.members.items():
            for number, root in enumerate(member.roots, start=1):
                files[f"keyrings/{name}/{number}.root.json"] = root
        for asset_id, raw in self.manifests.items():
            files[f"assets/{asset_id}/manifest.json"] = raw
        if old is not None:
            files["consistency.json"] = consistency_text(self.consistency(old))
        return write_files(folder, files)

    def export(self, asset_id: str, **options: Any) -> dict[str, bytes]:
        """The pack of one asset, as a hub chooses it."""
        return pack_files(
            self.evidence(), asset_id, self.checkpoint, self.prove, manifests=self.manifests, **options
        )


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files below a folder."""
    for path, raw in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(raw)
    return folder


def manifest_of(name: str, files: Mapping[str, bytes], *, salt: str | None = None) -> Manifest:
    """The manifest of files in memory."""
    entries = [
        {"name": file, "sha256": sha256_hex(raw), "size": len(raw)}
        for file, raw in sorted(files.items(), key=lambda pair: pair[0].split("/"))
    ]
    document: dict[str, Any] = {"files": entries, "name": name, "type": MANIFEST_TYPE}
    return read_manifest(canonical(document if salt is None else {**document, "salt": salt}))


# --- one alliance in which everything holds ---------------------------------------------------------------


@dataclass
class Story:
    """What ``tell_story`` did: ids of statements, and digests."""

    alliance: Alliance
    base: Manifest
    base_statement: str
    model: Manifest
    model_statement: str
    files: dict[str, bytes]
    code: str
    config: str
    datasets: dict[str, str]
    plan: str
    consents: dict[str, str]
    receipts: dict[tuple[str, int], str]
    rounds: list[str]
    aggregates: list[str]
    provenance: str
    results: dict[str, str]
    approvals: dict[str, str]
    release: str
    grant: str
    delegation: str
    pull: str
    statuses: dict[str, str]

    @property
    def use(self) -> dict[str, Any]:
        """The firm's pull of the released version."""
        return {
            "grant": self.grant,
            "grantee": FIRM,
            "action": "pull",
            "asset": self.model.asset_id,
            "name": MODEL,
            "duo": ["DUO:0000042"],
        }

    @property
    def about_model(self) -> Subjects:
        """The trained version as the subject of a statement."""
        return [("manifest.json", self.model.asset_id)]

    def fork(self) -> "Story":
        """A copy whose alliance grows on its own."""
        return replace(
            self,
            alliance=self.alliance.fork(),
            consents=dict(self.consents),
            receipts=dict(self.receipts),
            rounds=list(self.rounds),
            statuses=dict(self.statuses),
        )

    def write_model(self, folder: Path) -> Path:
        """The files of the trained version."""
        return write_files(folder, self.files)

    def receipt(self, lab: str, number: int, **changes: Any) -> dict[str, Any]:
        """The predicate of a lab's training receipt for a round, from the consent that it gave."""
        inputs = [sha256_hex(b"weights 0"), *self.aggregates]
        predicate: dict[str, Any] = {
            "action": "train",
            "grant": self.consents[lab],
            "plan": self.plan,
            "round": number,
            "input": inputs[number - 1] if number <= len(inputs) else sha256_hex(b"later"),
            "examples": 100,
            "epsilon": f"{number}.5",
            "delta": "0.00001",
        }
        if number > 1 and (lab, number - 1) in self.receipts:
            predicate["previous"] = self.receipts[lab, number - 1]
        return {k: v for k, v in {**predicate, **changes}.items() if v is not None}


def consent_terms(plan: str, code: str, /, **conditions: Any) -> dict[str, Any]:
    """The predicate of a consent to a plan."""
    terms = {
        "plan": plan,
        "code": code,
        "maxRounds": 2,
        "minParticipants": 2,
        "epsilon": "4",
        "delta": "0.00001",
    }
    return {
        "grantee": OWNER,
        "actions": ["evaluate", "train"],
        "conditions": {k: v for k, v in {**terms, **conditions}.items() if v is not None},
        "notBefore": format_time(NOW - 60),
        "expires": format_time(NOW + 30 * DAY),
        "depth": 0,
    }


def grant_terms(grantee: str = FIRM, **changes: Any) -> dict[str, Any]:
    """The predicate of a grant to pull."""
    return {
        "grantee": grantee,
        "actions": ["pull"],
        "conditions": {},
        "notBefore": format_time(NOW - 60),
        "expires": format_time(NOW + 3000),
        "depth": 0,
        **changes,
    }


def verdict(by: str, plan: str, name: str = MODEL, **changes: Any) -> dict[str, Any]:
    """The predicate of an approval of a release by an institution."""
    return {
        "verifier": {"id": f"https://fedhub.dev/verifier/v1#{by}"},
        "timeVerified": format_time(NOW),
        "resourceUri": name,
        "policy": {"digest": {"sha256": plan}},
        "inputAttestations": [],
        "verificationResult": "PASSED",
        "verifiedLevels": ["FEDHUB_RELEASE"],
        **changes,
    }


def provenance_of(plan: str, listed: Iterable[str]) -> dict[str, Any]:
    """The predicate of a version's provenance."""
    return {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {"plan": plan},
            "resolvedDependencies": [{"name": "x", "digest": {"sha256": each}} for each in listed],
        },
        "runDetails": {"builder": {"id": BUILDER}},
    }


def result_of(dataset: str, consent: str) -> dict[str, Any]:
    """The predicate of an evaluation."""
    named = {"config": sha256_hex(b"evaluation"), "dataset": dataset, "consent": consent}
    return {
        "result": "PASSED",
        "configuration": [{"name": name, "digest": {"sha256": d}} for name, d in named.items()],
        "passedTests": ["accuracy>=0.90 (0.913) n=120"],
    }


def release_terms(version: int = 2, name: str = MODEL, hub: str = HUB) -> dict[str, Any]:
    """The predicate of a release."""
    return {"purl": release_purl(name, version, hub), "packageId": name}


def tell_story(*, witnesses: int = 3, labs: Sequence[str] = LABS, rounds: int = 2) -> Story:
    """An alliance in which everything holds, from enrolment to a pull."""
    a = Alliance((OPERATOR, OWNER, *labs, FIRM), witnesses=witnesses)
    start = {"config.json": b'{"a":1}', "model.safetensors": b"weights 0", "sub/t.txt": "é".encode()}
    base, base_statement = a.model(MODEL, 1, start, license="Apache-2.0")
    datasets = {lab: _describe(a, lab) for lab in labs}
    code, config = sha256_hex(b"recipe"), sha256_hex(b"config")
    plan = a.say(
        OWNER,
        "plan",
        [("recipe.json", code), ("manifest.json", base.asset_id), ("config.json", config)],
        {
            "rounds": rounds + 1,
            "minParticipants": 2,
            "approvals": 2,
            "strategy": "FedAvg",
            "epsilon": f"{rounds + 6}",
            "delta": "0.00001",
            "participants": [{"institution": lab, "dataset": datasets[lab]} for lab in labs],
            "expires": format_time(NOW + 30 * DAY),
        },
    )
    terms = consent_terms(plan, code, maxRounds=rounds, epsilon=f"{rounds + 2}")
    consents = {lab: a.say(lab, "grant", [("manifest.json", datasets[lab])], terms) for lab in labs}
    files = {**start, "model.safetensors": f"weights {rounds}".encode()}
    none = manifest_of(MODEL, start)
    story = Story(
        a, base, base_statement, none, "", files, code, config, datasets, plan, consents,
        {}, [], [], "", {}, {}, "", "", "", "", {},
    )  # fmt: skip
    for number in range(1, rounds + 1):
        _round(story, number)
    _finish(story)
    return story


def _describe(a: Alliance, lab: str) -> str:
    manifest = manifest_of(f"{lab}/digits", {"d.csv": lab.encode()}, salt=sha256_hex(lab.encode()))
    subjects = [("manifest.json", manifest.asset_id), ("croissant.json", sha256_hex(b"{}"))]
    a.say(lab, "asset", subjects, {"type": "dataset", "name": manifest.name, "version": 1})
    return manifest.asset_id


def _round(story: Story, number: int) -> None:
    a = story.alliance
    for lab in story.datasets:
        update = sha256_hex(f"update of {lab} in round {number}".encode())
        receipt = a.say(lab, "receipt", [("update", update)], story.receipt(lab, number))
        story.receipts[lab, number] = receipt
    says = {
        "plan": story.plan,
        "round": number,
        "input": story.aggregates[-1] if story.aggregates else sha256_hex(b"weights 0"),
        "receipts": [story.receipts[lab, number] for lab in story.datasets],
    }
    if story.rounds:
        says["previous"] = story.rounds[-1]
    aggregate = sha256_hex(f"weights {number}".encode())
    story.rounds.append(a.say(OPERATOR, "round", [("aggregate.safetensors", aggregate)], says))
    story.aggregates.append(aggregate)


def _finish(story: Story) -> None:
    a, labs = story.alliance, list(story.datasets)
    story.model, story.model_statement = a.model(
        MODEL, 2, story.files, previous=story.base_statement, plan=story.plan, license="Apache-2.0"
    )
    about = story.about_model
    listed = [*story.receipts.values(), *story.rounds, story.base.asset_id, story.code]
    story.provenance = a.say(OWNER, "provenance", about, provenance_of(story.plan, listed))
    for lab in labs:
        result = result_of(story.datasets[lab], story.consents[lab])
        story.results[lab] = a.say(lab, "test-result", about, result)
    story.approvals = {lab: a.say(lab, "verdict", about, verdict(lab, story.plan)) for lab in labs[:2]}
    story.release = a.say(OWNER, "release", about, release_terms())
    terms = {"duo": ["DUO:0000042"]}
    story.grant = a.say(
        OWNER,
        "grant",
        about,
        grant_terms(actions=["evaluate", "pull"], conditions=terms, depth=1, expires=format_time(NOW + 3600)),
    )
    more = {"duo": ["DUO:0000042", "DUO:0000046"]}
    story.delegation = a.say(FIRM, "grant", about, grant_terms(labs[0], conditions=more, parent=story.grant))
    story.pull = a.say(OPERATOR, "receipt", about, {"action": "pull", "grant": story.grant})
    story.statuses = {name: a.status(name) for name in a.members}
