"""Every error of the project, what it exits with, and the numbered steps of a verification.

::

    FedhubError          code, message, hint
    ├── Rejected         checked and not true: exit 1, knows the step V1-V15 where one is meant
    ├── Unchecked        could not be done or checked: exit 2
    ├── Refused          asked for and not allowed: exit 1, knows the HTTP status and the field
    └── Misuse           our own caller broke a rule of the code: exit 2, never caught

``code`` is a stable slug (``E_...``): the same in text, in ``--json``, in a problem document of the API
and in a signed refusal. ``message`` names the object, the rule, what was expected and what was found.
``hint`` says what to do next. Neither ever holds a secret or a row of data; ``shown`` prints a stranger's
value in a harmless form.
"""

from enum import IntEnum


class Exit(IntEnum):
    """What a command's exit status means."""

    DONE = 0
    REFUSED = 1
    FAILED = 2


# The error names of each step. A name that stands in one step only tells its step by itself.
STEPS: dict[str, tuple[str, ...]] = {
    "V1": ("E_INPUT", "E_TRUST", "E_LIMIT"),
    "V2": ("E_CHECKPOINT", "E_ORIGIN", "E_CHECKPOINT_SIG"),
    "V3": ("E_QUORUM", "E_CHECKPOINT_STALE"),
    "V4": ("E_ROLLBACK", "E_SPLIT_VIEW", "E_INCONSISTENT"),
    "V5": ("E_KEYRING_PIN", "E_KEYRING_NAME", "E_KEYRING", "E_KEYRING_EXPIRED", "E_KEYRING_SHARED"),
    "V6": ("E_BUNDLE",),
    "V7": ("E_KEY_UNKNOWN", "E_SIGNATURE"),
    "V8": ("E_PROOF", "E_NOT_LOGGED"),
    "V9": ("E_KIND", "E_STATEMENT", "E_ISSUER", "E_HUB", "E_TIME", "E_REPLAY"),
    "V10": ("E_KEYRING_UNLOGGED", "E_KEY_NOT_IN_FORCE", "E_KEY_ROLE", "E_KEY_REVOKED"),
    "V11": ("E_STATUS_MISSING", "E_STATUS_ROLLBACK", "E_STATUS_STALE", "E_KEYRING_STALE"),
    "V12": ("E_PATH", "E_SUBJECT", "E_REVOKED", "E_OMS", "E_VERSION_CHAIN", "E_ISSUER", "E_ASSET_CLAIMED"),
    "V13": (
        "E_GRANT_MISSING",
        "E_GRANT_GRANTEE",
        "E_GRANT_ACTION",
        "E_GRANT_PARENT",
        "E_GRANT_WIDENED",
        "E_GRANT_NOT_YET",
        "E_GRANT_EXPIRED",
        "E_GRANT_OWNER",
        "E_GRANT_CONDITION",
        "E_REVOKED",
    ),
    "V14": (
        "E_RECEIPT_GRANT",
        "E_RECEIPT_ISSUER",
        "E_REVOKED",
        "E_CONSENT",
        "E_PLAN",
        "E_BUDGET",
        "E_RECEIPT_CHAIN",
        "E_PARTICIPANTS",
        "E_ROUND_CHAIN",
    ),
    "V15": ("E_LINK", "E_APPROVALS", "E_LEVEL"),
}


def step_of(code: str) -> str | None:
    """The one step that uses this error name, or None when several do or none does."""
    steps = [step for step, codes in STEPS.items() if code in codes]
    return steps[0] if len(steps) == 1 else None


def shown(value: object, limit: int = 60) -> str:
    """A value from outside as one short line of ASCII, so that it can neither draw nor flood."""
    text = ascii(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


class FedhubError(Exception):
    """Root of the tree; ``str()`` is ``CODE: message``."""

    exit: Exit = Exit.FAILED

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(code, message, hint)
        self.code = code
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class Rejected(FedhubError):
    """Something was checked and is not true, or does not parse: tampering never looks like bad luck."""

    exit = Exit.REFUSED

    def __init__(self, code: str, message: str, hint: str = "", *, step: str | None = None) -> None:
        super().__init__(code, message, hint)
        self.step = step or step_of(code)


class Unchecked(FedhubError):
    """Nothing can be said: a file of ours is missing, a format is newer than we are, the hub is away."""


class Refused(FedhubError):
    """The request was understood and is not allowed."""

    exit = Exit.REFUSED

    def __init__(
        self, code: str, message: str, hint: str = "", *, status: int = 403, field: str | None = None
    ) -> None:
        super().__init__(code, message, hint)
        self.status = status
        self.field = field


class Misuse(FedhubError):
    """A bug of ours: a function was called in a way that its docstring forbids."""
