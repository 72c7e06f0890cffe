"""What coordinator and lab agent say to each other: references, figures and signed papers, never tensors.

One JSON text each way, carried by whatever transport there is. Both sides read strictly; a peer's text is
bounded before it is parsed.
"""

from typing import Annotated, Literal, TypeVar

from pydantic import Field, ValidationError

from federation.wire import Digest, Wire
from storage.errors import Rejected

MESSAGE_LIMIT_BYTES = 512 << 10

Action = Literal["train", "evaluate", "statistics"]
Figure = Annotated[float | int, Field(allow_inf_nan=False)]


class InputReference(Wire):
    """The weights that an order starts from. No address: a site asks its own hub where they lie."""

    sha256: Digest
    size: int = Field(ge=1)


class OrderMessage(Wire):
    """An order on its way to one site. Only what ``order`` signs may be believed."""

    plan: Digest
    round: int = Field(ge=1)
    action: Action
    input: InputReference
    deadline: str
    order: str  # bundle


class UpdateReference(Wire):
    """An update in the hub's store, by digest and size in bytes."""

    sha256: Digest
    size: int = Field(ge=1)
    upload: str = Field(max_length=256)


class ReceiptReference(Wire):
    """A logged receipt."""

    id: Digest
    bundle: str


class RefusalNote(Wire):
    """Why a site did not do what it was told; without a statement where there was nothing to sign."""

    code: str = Field(pattern=r"^E_[A-Z0-9_]{1,62}$")
    message: str = Field(max_length=2000)
    statement: str | None  # bundle
    again: bool = False  # the site could not, rather than would not: the same order may be sent again


class OrderReply(Wire):
    """A site's answer: an update or metrics with its receipt, or a refusal."""

    dataset: Digest | None
    update: UpdateReference | None = None
    examples: int = Field(default=0, ge=0)
    metrics: dict[str, Figure] = Field(default_factory=dict, max_length=64)
    receipt: ReceiptReference | None = None
    refusal: RefusalNote | None = None


M = TypeVar("M", OrderMessage, OrderReply)


def read_message(text: str, form: type[M]) -> M:
    """A message of the agreed form.

    Raises:
        Rejected: ``E_MESSAGE``, with the field that is wrong; ``E_LIMIT``.
    """
    if len(text) > MESSAGE_LIMIT_BYTES:
        raise Rejected("E_LIMIT", f"message: at most {MESSAGE_LIMIT_BYTES} bytes are read, found {len(text)}")
    try:
        return form.model_validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(step) for step in first["loc"]) or "message"
        raise Rejected(
            "E_MESSAGE",
            f"{form.__name__}: {where}: {first['msg']}",
            "hub and site may run different versions of fedhub",
        ) from error
