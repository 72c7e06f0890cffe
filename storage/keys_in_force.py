"""Step V10: was the key in force, in the right role and not revoked, at the index where it signed?

Validity follows the order of the log, not clocks. Version N of a ring enters into force at the index of its
``keyring`` statement and ends at that of version N+1, so rotating a key keeps its old statements valid;
revoking it from an index does not. Whether a revocation of a statement counts is asked here too, since its
rule is about who may say it and from which index on.
"""

from collections.abc import Collection

from storage.errors import Rejected
from storage.evidence import NEVER, Entry, Evidence
from storage.keyring import KeyRing, RingVersion
from storage.statements import KINDS


def check_keys(evidence: Evidence) -> None:
    """Step V10 for all entries of a pack.

    Raises:
        Rejected: ``E_KEYRING_UNLOGGED``, ``E_KEY_NOT_IN_FORCE``, ``E_KEY_ROLE``, ``E_KEY_REVOKED``;
            ``E_STATEMENT``
            for a revocation that reaches further back than it may.
    """
    for entry in evidence.by_kind("revocation"):
        check_reach(evidence, entry)
    for entry in evidence.by_kind("keyring"):
        check_ring_order(evidence, entry)
    for kind in KINDS:
        for entry in evidence.by_kind(kind):
            check_key(evidence, entry)
    signers = {entry.institution for kind in KINDS for entry in evidence.by_kind(kind)}
    for institution in sorted(signers):
        _check_newest_logged(evidence, institution)


def check_key(evidence: Evidence, entry: Entry) -> None:
    """Step V10 for one entry, which may stand in the evidence or be the one to come next.

    Raises:
        Rejected: ``E_KEYRING_UNLOGGED``, ``E_KEY_NOT_IN_FORCE``, ``E_KEY_ROLE``, ``E_KEY_REVOKED``.
    """
    version = ring_in_force(evidence, entry)
    role = KINDS[entry.kind].role
    if entry.hint not in version.roles[role]:
        held = sorted(name for name, keys in version.roles.items() if entry.hint in keys)
        where = f"version {version.version} of the ring in force at index {entry.index}"
        if not held:
            raise Rejected(
                "E_KEY_NOT_IN_FORCE",
                f"{entry}: key {entry.hint[:12]} is not in {where}",
                "sign with a key of the newest ring",
            )
        raise Rejected(
            "E_KEY_ROLE",
            f"{entry}: a {entry.kind} needs a {role} key, {where} has {entry.hint[:12]} as {', '.join(held)}",
        )
    if evidence.is_void(entry):
        raise Rejected(
            "E_KEY_REVOKED",
            f"{entry}: logged at index {entry.index} with key {entry.hint[:12]}, "
            f"which is revoked from index {evidence.void_from(entry.hint)}",
        )


def ring_in_force(evidence: Evidence, entry: Entry) -> RingVersion:
    """The ring version of the entry's institution at the entry's index; a ring's own statement starts it.

    Raises:
        Rejected: ``E_KEYRING_UNLOGGED``; no version was in force then.
    """
    logged = [known for known in _logged(evidence, entry.institution) if known.index < entry.index]
    if entry.kind == "keyring":
        logged.append(entry)
    ring = evidence.rings.get(entry.institution)
    number = logged[-1].says["version"] if logged else 0
    if ring is None or number not in ring.versions:
        raise Rejected(
            "E_KEYRING_UNLOGGED",
            f"{entry}: no key ring of {entry.institution} is logged before index {entry.index}",
        )
    return ring.versions[number]


def check_ring_order(evidence: Evidence, entry: Entry) -> None:
    """A ``keyring`` statement names the file of its version, and follows that of the version before.

    Raises:
        Rejected: ``E_KEYRING_UNLOGGED``.
    """
    number = entry.says["version"]
    before = [known for known in _logged(evidence, entry.institution) if known.index < entry.index]
    if before and number != before[-1].says["version"] + 1:
        raise Rejected(
            "E_KEYRING_UNLOGGED",
            f"{entry}: version {number} of the ring is logged after version {before[-1].says['version']}",
        )
    ring = evidence.rings.get(entry.institution)
    version = ring.versions.get(number) if ring else None
    if version is None or version.digest != entry.subject:
        raise Rejected(
            "E_KEYRING_UNLOGGED", f"{entry}: {number}.root.json with digest {entry.subject} is not here"
        )


def _check_newest_logged(evidence: Evidence, institution: str) -> None:
    # Else a key that the newest version removed could go on signing, in a pack that hides from when.
    newest = evidence.rings[institution].newest.version
    logged = _logged(evidence, institution)
    if not logged or logged[-1].says["version"] != newest:
        raise Rejected(
            "E_KEYRING_UNLOGGED",
            f"key ring of {institution}: version {newest} has no keyring statement in the log",
        )


def first_in_force(evidence: Evidence, institution: str, hint: str) -> int:
    """Index from which a key was in its institution's ring for the first time; ``NEVER`` before."""
    ring = evidence.rings.get(institution)
    for entry in _logged(evidence, institution):
        version = ring.versions.get(entry.says["version"]) if ring else None
        if version and any(hint in keys for keys in version.roles.values()):
            return entry.index
    return NEVER


def check_shared(ring: KeyRing, others: Collection[KeyRing]) -> None:
    """No key of this ring is in another institution's: a signature must name one institution (V5).

    Raises:
        Rejected: ``E_KEYRING_SHARED``.
    """
    own = _hints(ring)
    for other in others:
        shared = own & _hints(other) if other.institution != ring.institution else set()
        if shared:
            raise Rejected(
                "E_KEYRING_SHARED",
                f"key {min(shared)[:12]} is in the rings of {ring.institution} and {other.institution}",
                "each institution makes its own keys",
            )


def _hints(ring: KeyRing) -> set[str]:
    return {hint for version in ring.versions.values() for keys in version.roles.values() for hint in keys}


def _logged(evidence: Evidence, institution: str) -> list[Entry]:
    return [entry for entry in evidence.by_kind("keyring") if entry.institution == institution]


# --- revocations --------------------------------------------------------------------------------------------


def check_reach(evidence: Evidence, entry: Entry) -> None:
    """A revocation starts at its own index, unless a key was stolen: then at an earlier one, named.

    Else an institution could void a version that it had sold, by changing its mind afterwards.

    Raises:
        Rejected: ``E_STATEMENT`` (V9).
    """
    start = entry.says.get("fromIndex", entry.index)
    if start >= entry.index:
        return
    if entry.says["target"] != "key" or entry.says["reason"] != "compromised":
        raise Rejected(
            "E_STATEMENT",
            f"{entry}: fromIndex {start} is before its own index {entry.index}; "
            "only a compromised key is revoked from an earlier one",
            step="V9",
        )
    holder = evidence.find_key(entry.subject)
    if holder is None or holder[0] != entry.institution:
        return  # not theirs to revoke: it counts for nothing
    first = first_in_force(evidence, entry.institution, entry.subject)
    if start < first:
        raise Rejected(
            "E_STATEMENT",
            f"{entry}: fromIndex {start} is before index {first}, where that key entered into force",
            step="V9",
        )


def revocation_of(
    evidence: Evidence, entry: Entry, *, index: int | None = None, by: Collection[str] = ()
) -> Entry | None:
    """The revocation that voids a use of ``entry`` at log index ``index``, or None.

    Args:
        index: where the use is logged; the end of the log when absent.
        by: institutions that may revoke it besides its own, such as those above a grant in its chain.
    """
    limit = evidence.size if index is None else index
    for found in evidence.find("revocation", subject=entry.id):
        allowed = found.institution == entry.institution or found.institution in by
        if (
            found.says["target"] == "statement"
            and allowed
            and found.says.get("fromIndex", found.index) <= limit
        ):
            return found
    return None


def check_not_revoked(
    evidence: Evidence, entry: Entry, *, index: int | None = None, by: Collection[str] = ()
) -> None:
    """Raise when a use of ``entry`` at log index ``index`` is void.

    Raises:
        Rejected: ``E_REVOKED``.
    """
    found = revocation_of(evidence, entry, index=index, by=by)
    if found:
        raise Rejected(
            "E_REVOKED",
            f"{entry}: revoked ({found.says['reason']}) by {found.institution} "
            f"from index {found.says.get('fromIndex', found.index)}, statement {found.id[:12]}",
        )
