"""The log's head as text: read it, print it, sign it, and decide whether enough others have seen it.

Formats are those of C2SP: tlog-checkpoint, tlog-policy and tlog-proof over ``storage.notes``. Text is cut at
LF, space and tab only, for the reason given there.

Reading order: ``Checkpoint``, ``Policy``, ``check_checkpoint``. No IO.
"""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from storage.encoding import b64, unb64
from storage.errors import FedhubError, Rejected, Unchecked
from storage.merkle import EMPTY_ROOT, HASH_BYTES, MAX_PATH, check_consistency
from storage.notes import LOG, MAX_NOTE_BYTES, WITNESS, LogKey, VerifierKey, parse_note, parse_vkey

__all__ = [
    "Checkpoint",
    "LogKey",
    "Policy",
    "Proof",
    "VerifierKey",
    "Witness",
    "check_checkpoint",
    "check_log_signature",
    "check_quorum",
    "checkpoint_text",
    "parse_checkpoint",
    "parse_policy",
    "parse_proof",
    "parse_vkey",
    "proof_text",
    "sign_checkpoint",
]

MAX_POLICY_BYTES = 1 << 16
FUTURE_S = 300  # cosignatures further ahead of our clock than this count for nothing
PROOF_HEAD = "c2sp.org/tlog-proof@v1"

_SIZE = re.compile(r"0|[1-9][0-9]{0,15}")


# --- checkpoints -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """Size (entries) and root (32 bytes) of the log named ``origin``, and the signed note that says so."""

    origin: str
    size: int
    root: bytes
    note: bytes = field(repr=False)


def checkpoint_text(origin: str, size: int, root: bytes) -> bytes:
    """The three lines that a log signs.

    >>> checkpoint_text("hub.example", 0, EMPTY_ROOT).decode().split(chr(10))[:2]
    ['hub.example', '0']
    """
    return f"{origin}\n{size}\n{b64(root)}\n".encode()


def parse_checkpoint(note: bytes) -> Checkpoint:
    """Read a checkpoint's form. Checks no signature: call ``check_checkpoint`` before believing it."""
    lines = parse_note(note).text.decode().split("\n")
    if len(lines) != 4 or lines[3] or not lines[0]:
        raise Rejected(
            "E_CHECKPOINT", "a checkpoint is three lines (origin, size, root) without extension lines"
        )
    if not _SIZE.fullmatch(lines[1]):
        raise Rejected("E_CHECKPOINT", f"the checkpoint's size {lines[1][:20]!r} is not a decimal number")
    root = unb64(lines[2], "E_CHECKPOINT")
    if len(root) != HASH_BYTES:
        raise Rejected("E_CHECKPOINT", f"the checkpoint's root has {len(root)} bytes, expected {HASH_BYTES}")
    return Checkpoint(lines[0], int(lines[1]), root, note)


def sign_checkpoint(key: LogKey, size: int, root: bytes) -> Checkpoint:
    """The signed head of the log that this key names. The same head always gives the same bytes."""
    text = checkpoint_text(key.name, size, root)
    return Checkpoint(key.name, size, root, text + b"\n" + key.sign_note(text))


# --- policies ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Policy:
    """Which logs are believed, and whose cosignatures make a checkpoint count (tlog-policy)."""

    logs: tuple[VerifierKey, ...]
    witnesses: dict[str, VerifierKey]
    groups: dict[str, tuple[int, tuple[str, ...]]]  # threshold, members
    quorum: str  # "none", a witness or a group

    def witnessed_at(self, name: str, times: dict[str, int]) -> int | None:
        """Oldest cosignature that ``name`` needs, when it takes the newest that suffice; None: not enough."""
        if name in self.witnesses:
            return times.get(name)
        threshold, members = self.groups[name]
        seen = sorted((t for m in members if (t := self.witnessed_at(m, times)) is not None), reverse=True)
        return seen[threshold - 1] if len(seen) >= threshold else None


def parse_policy(text: str) -> Policy:
    """Read a tlog-policy text.

    Raises:
        Unchecked: ``E_TRUST``, with the line's number: a policy is the reader's own file, never part of a
            pack.
    """
    if len(text.encode("utf-8", "replace")) > MAX_POLICY_BYTES:
        raise Unchecked("E_TRUST", f"the policy is longer than {MAX_POLICY_BYTES} bytes")
    reader = _PolicyReader()
    for number, line in enumerate(text.split("\n"), 1):
        try:
            reader.read(line)
        except FedhubError as error:
            raise Unchecked("E_TRUST", f"policy line {number}: {error.message}") from error
    if reader.quorum is None:
        raise Unchecked("E_TRUST", "the policy has no quorum line", "'quorum none' asks for no witness")
    return Policy(tuple(reader.logs), reader.witnesses, reader.groups, reader.quorum)


class _PolicyReader:
    """The lines read so far; names may only refer to lines above."""

    def __init__(self) -> None:
        self.logs: list[VerifierKey] = []
        self.witnesses: dict[str, VerifierKey] = {}
        self.groups: dict[str, tuple[int, tuple[str, ...]]] = {}
        self.members: set[str] = set()
        self.quorum: str | None = None

    def read(self, line: str) -> None:
        if re.search(r"[\x00-\x08\x0b-\x1f\x7f]", line):
            raise Unchecked("E_TRUST", "it holds a control character")
        words = [word for word in re.split("[ \t]+", line) if word]
        if not words or words[0].startswith("#"):
            return
        if words[0] == "log" and len(words) in (2, 3):
            self._add_log(parse_vkey(words[1]))
        elif words[0] == "witness" and len(words) in (3, 4):
            self._add_witness(words[1], parse_vkey(words[2]))
        elif words[0] == "group" and len(words) >= 4:
            self._add_group(words[1], words[2], tuple(words[3:]))
        elif words[0] == "quorum" and len(words) == 2:
            self._set_quorum(words[1])
        else:
            raise Unchecked(
                "E_TRUST", f"{words[0][:20]!r} with {len(words) - 1} words after it is not understood"
            )

    def _add_log(self, key: VerifierKey) -> None:
        if key.kind != LOG:
            raise Unchecked("E_TRUST", f"the key of log {key.name} has type {key.kind}, expected {LOG}")
        if any(known.public == key.public for known in self.logs):
            raise Unchecked("E_TRUST", f"the key of log {key.name} is listed twice")
        self.logs.append(key)

    def _add_witness(self, name: str, key: VerifierKey) -> None:
        self._check_new(name)
        if key.kind != WITNESS:
            raise Unchecked("E_TRUST", f"the key of witness {name} has type {key.kind}, expected {WITNESS}")
        if any(known.public == key.public for known in self.witnesses.values()):
            raise Unchecked("E_TRUST", f"the key of witness {name} is listed twice")
        self.witnesses[name] = key

    def _add_group(self, name: str, threshold: str, members: tuple[str, ...]) -> None:
        self._check_new(name)
        for member in members:
            if member not in self.witnesses and member not in self.groups:
                raise Unchecked("E_TRUST", f"group {name} names {member}, which no line above defines")
            if member in self.members:
                raise Unchecked("E_TRUST", f"{member} is a member twice")
            self.members.add(member)
        words = {"any": 1, "all": len(members)}
        number = int(threshold) if re.fullmatch("[1-9][0-9]{0,3}", threshold) else words.get(threshold, 0)
        if not 1 <= number <= len(members):
            raise Unchecked("E_TRUST", f"group {name} asks for {threshold[:20]!r} of {len(members)} members")
        self.groups[name] = (number, members)

    def _set_quorum(self, name: str) -> None:
        if self.quorum is not None:
            raise Unchecked("E_TRUST", "a second quorum line")
        if name != "none" and name not in self.witnesses and name not in self.groups:
            raise Unchecked("E_TRUST", f"the quorum names {name}, which no line above defines")
        self.quorum = name

    def _check_new(self, name: str) -> None:
        if name == "none" or name in self.witnesses or name in self.groups:
            raise Unchecked("E_TRUST", f"the name {name} is taken")


def check_log_signature(note: bytes, policy: Policy, origin: str) -> Checkpoint:
    """Step V2: the note is a checkpoint of ``origin``, signed by the key that the policy lists for it.

    Raises:
        Rejected: ``E_CHECKPOINT`` (form), ``E_ORIGIN`` (another log), ``E_CHECKPOINT_SIG``.
    """
    checkpoint = parse_checkpoint(note)
    keys = [key for key in policy.logs if key.name == origin]
    if checkpoint.origin != origin or not keys:
        found = (
            "not listed in the policy"
            if checkpoint.origin == origin
            else f"the checkpoint is of {checkpoint.origin!r}"
        )
        raise Rejected("E_ORIGIN", f"expected the log {origin}: {found}")
    signed = parse_note(note)
    if not [at for key in keys for at in signed.times(key)]:
        raise Rejected(
            "E_CHECKPOINT_SIG",
            f"no signature of the log {origin} under the checkpoint of size {checkpoint.size}",
        )
    return checkpoint


def check_quorum(checkpoint: Checkpoint, policy: Policy, now: int, max_age: int) -> int | None:
    """Step V3: age in seconds of the quorum's oldest needed cosignature; None when the policy asks for none.

    Args:
        now: Unix seconds.
        max_age: seconds; an older quorum may be a frozen view.
    Raises:
        Rejected: ``E_CHECKPOINT_SIG``, ``E_QUORUM``, ``E_CHECKPOINT_STALE``.
    """
    note = parse_note(checkpoint.note)
    times = {}
    for name, key in policy.witnesses.items():
        seen = [at for at in note.times(key) if at <= now + FUTURE_S]
        if seen:
            times[name] = max(seen)
    if policy.quorum == "none":
        return None
    oldest = policy.witnessed_at(policy.quorum, times)
    if oldest is None:
        seen_by = ", ".join(sorted(times)) or "nobody"
        raise Rejected(
            "E_QUORUM",
            f"the checkpoint of size {checkpoint.size} lacks quorum {policy.quorum}: seen by {seen_by}",
        )
    if now - oldest > max_age:
        raise Rejected(
            "E_CHECKPOINT_STALE",
            f"the checkpoint was witnessed {now - oldest} s ago, at most {max_age} s are accepted",
        )
    return max(0, now - oldest)


def check_checkpoint(note: bytes, policy: Policy, origin: str, now: int, max_age: int) -> Checkpoint:
    """Steps V2 and V3: a checkpoint of ``origin`` that its log signed and enough witnesses saw in time."""
    checkpoint = check_log_signature(note, policy, origin)
    check_quorum(checkpoint, policy, now, max_age)
    return checkpoint


# --- witnesses --------------------------------------------------------------------------------------------


class Witness:
    """Cosigns the heads of one log, each only as an extension of the one before (tlog-witness)."""

    def __init__(
        self,
        key: LogKey,
        log: VerifierKey,
        size: int = 0,
        root: bytes = EMPTY_ROOT,
        save: Callable[[int, bytes], None] = lambda size, root: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``save`` makes the new head durable before it is cosigned: a witness that forgets can fork."""
        self._key, self._log, self._save, self._clock = key, log, save, clock
        self.size, self.root = size, root

    def cosign(self, old: int, path: Sequence[bytes], note: bytes) -> bytes:
        """Cosignature line for this checkpoint, given the proof from size ``old`` to it.

        Raises:
            Rejected: ``E_CHECKPOINT_SIG``, ``E_ORIGIN``; ``E_WITNESS_SIZE`` when ``old`` is not what this
                witness saw last (ask again from its size); ``E_INCONSISTENT`` and the like.
        """
        policy = Policy((self._log,), {}, {}, "none")
        checkpoint = check_log_signature(note, policy, self._log.name)
        if old != self.size:
            raise Rejected("E_WITNESS_SIZE", f"the proof starts at size {old}, this witness saw {self.size}")
        if old:
            check_consistency(old, self.root, checkpoint.size, checkpoint.root, path)
        elif path or (checkpoint.size == 0 and checkpoint.root != EMPTY_ROOT):
            raise Rejected(
                "E_INCONSISTENT", "from size 0 the proof is empty, and an empty log has the empty root"
            )
        self._save(checkpoint.size, checkpoint.root)
        self.size, self.root = checkpoint.size, checkpoint.root
        return self._key.cosign_note(parse_note(note).text, int(self._clock()))


# --- proofs -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Proof:
    """That one entry is in the log of one checkpoint: its index, the hashes, the checkpoint's note."""

    index: int
    path: tuple[bytes, ...]
    note: bytes


def proof_text(proof: Proof) -> bytes:
    """The proof as a ``.tlog-proof`` file."""
    head = [PROOF_HEAD, f"index {proof.index}", *(b64(value) for value in proof.path)]
    return "\n".join(head).encode() + b"\n\n" + proof.note


def parse_proof(raw: bytes) -> Proof:
    """Read a ``.tlog-proof`` file without ``extra`` line; checks its form, not what it proves.

    Raises:
        Rejected: ``E_PROOF``, or ``E_LIMIT`` for its size.
    """
    if len(raw) > MAX_NOTE_BYTES + 64 * (MAX_PATH + 2):
        raise Rejected("E_LIMIT", f"the log proof has {len(raw)} bytes")
    head, gap, note = raw.partition(b"\n\n")
    try:
        lines = head.decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise Rejected("E_PROOF", "the log proof is not ASCII above its checkpoint") from None
    if not gap or lines[0] != PROOF_HEAD or not 2 <= len(lines) <= MAX_PATH + 2:
        raise Rejected("E_PROOF", f"a log proof starts with {PROOF_HEAD!r} and ends with a checkpoint")
    index = re.fullmatch(r"index (0|[1-9][0-9]{0,15})", lines[1])
    if index is None:
        raise Rejected("E_PROOF", "the log proof's second line is not 'index N'")
    path = tuple(unb64(line, "E_PROOF") for line in lines[2:])
    if any(len(value) != HASH_BYTES for value in path):
        raise Rejected("E_PROOF", f"a hash of the log proof does not have {HASH_BYTES} bytes")
    return Proof(int(index[1]), path, note)
