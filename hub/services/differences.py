"""Two versions of a model side by side, for people: files, tensors, licence, and where each came from.

Files are compared by digest, as everybody who sees the model sees them listed. Tensors are read from the
headers of the safetensors files in the store, and shown to who may pull both versions: no weights are read,
nothing is fetched by the reader, so no receipt is logged. ``fedhub model diff`` makes the same comparison
from outside, by pulls.
"""

from dataclasses import dataclass
from functools import partial

from sqlmodel import Session

from federation import wire
from federation.comparing import Difference, Tensor, difference, holds_tensors, read_tensors
from hub.access import Actor
from hub.context import Hub
from hub.services import dossiers
from hub.services.dossiers import Lineage
from hub.services.pulls import may_pull
from hub.tables import BlobRow
from storage.errors import Rejected, Unchecked

READ_BYTES = 8 << 20  # of one version, for one page: tens of thousands of tensors


@dataclass(frozen=True)
class Side:
    """One of the two versions, and its way here as far as the reader may know it."""

    version: wire.ModelVersion
    lineage: Lineage

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.version.files)


@dataclass(frozen=True)
class Comparison:
    """Both sides and what is between them; ``with_tensors`` is False where the reader may not pull both."""

    before: Side
    after: Side
    changes: Difference
    with_tensors: bool


def compare(
    hub: Hub, session: Session, actor: Actor, before: wire.ModelVersion, after: wire.ModelVersion
) -> Comparison:
    """What changed between two versions that the actor may see."""
    both = (before, after)
    opened = all(may_pull(hub, session, actor.institution or "", each.asset_id) for each in both)
    unread: list[str] = []
    was, now = (_tensors(hub, session, each, unread) if opened else {} for each in both)
    one, two = (Side(each, dossiers.lineage(hub, session, actor, each)) for each in both)
    return Comparison(one, two, difference(before, after, was, now, unread), opened)


class _Budget:
    """Reads of one version's files, until so many bytes were read."""

    def __init__(self, hub: Hub) -> None:
        self._hub, self.left = hub, READ_BYTES

    def read(self, key: str, offset: int, length: int) -> bytes:
        """A range of an object."""
        self.left -= length
        return self._hub.store.read(key, offset, length)


def _tensors(hub: Hub, session: Session, version: wire.ModelVersion, unread: list[str]) -> dict[str, Tensor]:
    """The tensors of a version's safetensors files, as long as their headers are not too long together."""
    found: dict[str, Tensor] = {}
    budget = _Budget(hub)
    for file in version.files:
        if not holds_tensors(file.name):
            continue
        blob = session.get(BlobRow, file.sha256)
        try:
            if blob is None or budget.left <= 0:
                raise Unchecked("E_NO_BLOB", f"{file.name} is not read")
            found |= read_tensors(file.name, file.size, partial(budget.read, blob.key), most=budget.left)
        except (Rejected, Unchecked):
            unread.append(f"{version.version}: {file.name}")
    return found
