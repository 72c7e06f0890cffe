"""The hub's refusals, and the HTTP status of every error: one table.

Services raise errors of ``storage.errors``; the API answers them as problem+json with the status found here.
Nothing else in the hub chooses a status.
"""

import errno

from storage.errors import FedhubError, Misuse, Refused, Rejected, Unchecked

# Codes whose status is not that of their class.
STATUS_OF_CODE: dict[str, int] = {
    "E_NOT_FOUND": 404,
    "E_REPOSITORY": 404,
    "E_REVISION": 404,
    "E_ENTRY": 404,
    "E_DATABASE": 503,
    "E_STORE": 503,
    "E_CONTROL": 503,
    "E_LIMIT": 413,
    "E_HUB_FULL": 507,  # RFC 4918 section 11.5: not to be repeated until somebody asks again
}
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_SQLITE_FULL = ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE")  # the second: the index of its WAL cannot grow
_POSTGRESQL_FULL = "53100"  # SQLSTATE disk_full


def status_of(error: FedhubError) -> int:
    """The HTTP status that answers ``error``.

    >>> status_of(Unchecked("E_NOT_FOUND", "model a.example/m: not here"))
    404
    """
    if isinstance(error, Refused):
        return error.status
    if error.code in STATUS_OF_CODE:
        return STATUS_OF_CODE[error.code]
    if isinstance(error, Rejected):
        return 422
    return 500 if isinstance(error, Misuse) else 503


def no_room(error: BaseException) -> Unchecked | None:
    """The error that tells people of a full disk at the hub, its database or its store.

    Args:
        error: of the system, or of SQLAlchemy, which has the driver's as ``orig``.
    Returns:
        ``E_HUB_FULL``, or None where the trouble is another one.
    """
    driver = getattr(error, "orig", None)
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        where = "the hub's machine"
    elif (
        getattr(driver, "sqlite_errorname", None) in _SQLITE_FULL
        or getattr(driver, "sqlstate", None) == _POSTGRESQL_FULL
    ):
        where = "the hub's database"
    else:
        return None
    return Unchecked(
        "E_HUB_FULL",
        f"{where} has no room: its disk is full; nothing was changed",
        "Tell the hub's operator, and repeat it when there is room.",
    )


def not_found(what: str, name: str, hint: str = "") -> Unchecked:
    """The object is not here, or the one who asks may not know that it is."""
    return Unchecked("E_NOT_FOUND", f"{what} {name}: not found".lstrip(), hint)


def conflict(code: str, message: str, hint: str = "") -> Refused:
    """The request is well formed, but contradicts what the hub already holds."""
    return Refused(code, message, hint, status=409)


def bad_field(field: str, rule: str, hint: str = "") -> Refused:
    """One named field of a request breaks a rule."""
    return Refused("E_FIELD", f"{field}: {rule}", hint, status=422, field=field)
