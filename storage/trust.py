"""``trust.json``: what a reader believes before it reads anything else.

It is the reader's own file, made from an invitation code and from pins compared by another way. It is never
taken from a pack, and a fault in it is never the pack's: every error here is ``E_TRUST``, exit 2.
"""

from dataclasses import dataclass

from storage.checkpoint import Policy, parse_policy
from storage.encoding import check_institution, is_digest, read_json, sha256_hex
from storage.errors import Rejected, Unchecked, shown

MAX_CHECKPOINT_AGE_S = 86_400
TRUST_LIMIT_BYTES = 1 << 20
HINT = "trust.json is your own file: restore it, or make it again from the invitation code"


@dataclass(frozen=True)
class Trust:
    """A reader's pins.

    Attributes:
        hub: origin of the log.
        operator: the institution that runs the hub; it signs rounds and receipts of pulls.
        policy: which log key is believed, and whose cosignatures a checkpoint needs.
        institutions: name -> SHA-256 of its ``1.root.json``.
        max_checkpoint_age: seconds since the quorum saw the checkpoint.
        digest: SHA-256 of the file, as verdicts name it.
    """

    hub: str
    operator: str
    policy: Policy
    institutions: dict[str, str]
    max_checkpoint_age: int
    digest: str

    @classmethod
    def read(cls, raw: bytes) -> "Trust":
        """The pins in a ``trust.json``.

        Raises:
            Unchecked: ``E_TRUST``.
        """
        try:
            found = read_json(raw, code="E_TRUST", limit=TRUST_LIMIT_BYTES)
        except Rejected as error:
            raise _bad(error.message) from error
        needed, allowed = {"hub", "operator", "policy", "institutions"}, {"maxCheckpointAge"}
        if not isinstance(found, dict) or not needed <= set(found) <= needed | allowed:
            members = ", ".join(sorted(needed | allowed))
            raise _bad(f"expected the members {members}, found {shown(found)}")
        age = found.get("maxCheckpointAge", MAX_CHECKPOINT_AGE_S)
        if type(age) is not int or age <= 0:
            raise _bad(f"maxCheckpointAge must be a number of seconds, found {shown(age)}")
        if not isinstance(found["policy"], str):
            raise _bad("policy must be text")
        return cls(
            _name(found["hub"]),
            _name(found["operator"]),
            parse_policy(found["policy"]),
            _pins(found["institutions"]),
            age,
            sha256_hex(raw),
        )


def _bad(message: str) -> Unchecked:
    return Unchecked("E_TRUST", f"trust.json: {message}", HINT)


def _name(value: object) -> str:
    try:
        return check_institution(value)
    except Rejected as error:
        raise _bad(error.message) from error


def _pins(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(is_digest(pin) for pin in value.values()):
        raise _bad("institutions must map names to the SHA-256 of each 1.root.json")
    return {_name(name): pin for name, pin in value.items()}
