"""Step V9, beyond the form of a single statement: who says it, for which hub, when, and only once.

The form itself is checked where statements are read (``storage.statements``).
"""

from storage.errors import Rejected
from storage.evidence import Entry, Evidence
from storage.statements import KINDS, Statement


def check_header(statement: Statement, institution: str, *, hub: str, latest: int) -> None:
    """A statement that is logged, says who signed it, is for this hub, and is not from the future.

    Standard kinds have no header: their issuer is the institution whose ring holds the key, and their hub is
    the log that they are in.

    Args:
        institution: whose ring holds the key that signed.
        latest: seconds since 1970 after which nothing can have been issued yet.
    Raises:
        Rejected: ``E_KIND``, ``E_ISSUER``, ``E_HUB``, ``E_TIME``.
    """
    what = f"statement {statement.id}"
    kind = KINDS[statement.kind]
    if not kind.logged:
        raise Rejected("E_KIND", f"{what}: a {kind.name} is never logged")
    if not kind.own:
        return
    if statement.issuer != institution:
        raise Rejected(
            "E_ISSUER", f"{what}: says {statement.issuer}, signed by a key of {institution}", step="V9"
        )
    if statement.predicate["hub"] != hub:
        raise Rejected("E_HUB", f"{what}: is for the hub {statement.predicate['hub']}, this is {hub}")
    if statement.issued_at > latest:
        raise Rejected("E_TIME", f"{what}: issued {statement.predicate['issuedAt']}, which is in the future")


def check_nonce(evidence: Evidence, entry: Entry) -> None:
    """The issuer never used this nonce before.

    Raises:
        Rejected: ``E_REPLAY``.
    """
    if KINDS[entry.kind].own:
        first = evidence.used_nonce(entry.institution, entry.says["nonce"])
        if first is not None and first != entry.id:
            raise Rejected("E_REPLAY", f"{entry}: its nonce stands in statement {first} already")
