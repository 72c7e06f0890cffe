"""Step V11: what an institution's newest status list says of its ring, and how old that word is.

A status list lives at most 24 hours, and names the newest ring and the statements that are revoked. So a
hub that withholds a newer ring or a revocation is found out within a day by whoever leans on that
institution now. It only repeats revocations that are logged: where the whole log is at hand, an entry
without one is ignored, and a stolen status key voids nothing. In a pack the revocation itself may have been
withheld; then the list is believed, but only against a use that is about to be made, never against what
happened before.
"""

from collections.abc import Collection

from storage.encoding import parse_time
from storage.errors import Rejected
from storage.evidence import Entry, Evidence

CLOCK_S = 300  # how far ahead of our clock another's may be


def newest_status(evidence: Evidence, institution: str) -> Entry | None:
    """The institution's newest status list."""
    lists = evidence.find("status", issuer=institution)
    return lists[-1] if lists else None


def institutions_with_status(evidence: Evidence) -> list[str]:
    """Every institution with an asset or a grant here: each must have a status list."""
    return sorted({entry.institution for kind in ("asset", "grant") for entry in evidence.by_kind(kind)})


def check_sequences(evidence: Evidence) -> None:
    """The sequence of each institution's lists grows with the log.

    Raises:
        Rejected: ``E_STATUS_ROLLBACK``.
    """
    last: dict[str, Entry] = {}
    for entry in evidence.by_kind("status"):
        check_grows(entry, last.get(entry.institution))
        last[entry.institution] = entry


def check_grows(entry: Entry, before: Entry | None) -> None:
    """A status list has a higher sequence than the one before it.

    Raises:
        Rejected: ``E_STATUS_ROLLBACK``.
    """
    if before and entry.says["sequence"] <= before.says["sequence"]:
        raise Rejected(
            "E_STATUS_ROLLBACK",
            f"{entry}: sequence {entry.says['sequence']} does not exceed {before.says['sequence']}, "
            f"logged at index {before.index}",
        )


def check_names_newest(evidence: Evidence, entry: Entry) -> None:
    """A status list names the newest ring that is here.

    Raises:
        Rejected: ``E_KEYRING_STALE``.
    """
    newest = evidence.rings[entry.institution].newest
    if entry.subject != newest.digest:
        raise Rejected(
            "E_KEYRING_STALE",
            f"{entry}: names {entry.statement.subjects[0].name} with digest {entry.subject}, the newest ring "
            f"of {entry.institution} here is {newest.version}.root.json with {newest.digest}",
            "get a newer pack; an institution signs a new status list right after it changes its ring",
        )


def check_status(evidence: Evidence, institution: str, *, now: int, fresh: bool) -> int:
    """The age in seconds of an institution's status list, which must name its newest ring.

    Args:
        now: seconds since 1970.
        fresh: True when a use leans on this institution now.
    Raises:
        Rejected: ``E_STATUS_MISSING``, ``E_KEYRING_STALE``; with ``fresh`` also ``E_STATUS_STALE``.
    """
    entry = newest_status(evidence, institution)
    if entry is None:
        raise Rejected(
            "E_STATUS_MISSING",
            f"no status list of {institution}",
            f"{institution} signs one with: fedhub institution status",
        )
    check_names_newest(evidence, entry)
    age = now - entry.statement.issued_at
    until = parse_time(entry.says["nextUpdate"])
    if fresh and not (age >= -CLOCK_S and now <= until):
        raise Rejected(
            "E_STATUS_STALE",
            f"{entry}: issued {entry.says['issuedAt']}, good until {entry.says['nextUpdate']}",
            f"{institution} signs a new one with: fedhub institution status",
        )
    return age


def check_statuses(evidence: Evidence, *, now: int, leaning_on: Collection[str]) -> dict[str, int]:
    """Step V11: institution -> age in seconds of its status list.

    Args:
        now: seconds since 1970.
        leaning_on: the institutions of the chain that a use leans on; their lists must be fresh.
    Raises:
        Rejected: ``E_STATUS_MISSING``, ``E_STATUS_ROLLBACK``, ``E_STATUS_STALE``, ``E_KEYRING_STALE``.
    """
    needed = sorted({*institutions_with_status(evidence), *leaning_on})
    check_sequences(evidence)
    return {name: check_status(evidence, name, now=now, fresh=name in leaning_on) for name in needed}


def check_not_named(evidence: Evidence, entry: Entry, by: Collection[str] = ()) -> None:
    """In a pack: no newest status list of those who may revoke ``entry`` names it, or the key that signed it.

    Raises:
        Rejected: ``E_REVOKED``.
    """
    if evidence.whole:
        return
    for institution in sorted({entry.institution, *by}):
        status = newest_status(evidence, institution)
        if status is None:
            continue
        own = institution == entry.institution
        keys = {key["hint"]: key["fromIndex"] for key in status.says["keys"]} if own else {}
        if entry.id in status.says["revoked"] or entry.index >= keys.get(entry.hint, entry.index + 1):
            raise Rejected(
                "E_REVOKED",
                f"{entry}: named as revoked by {status}, whose revocation is withheld from this pack",
                "ask the hub for a whole pack, and the institution whether it revoked this",
            )
