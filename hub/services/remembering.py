"""What no statement says and the object store remembers besides, so that a restored database knows it.

The log proves who signed what; who may see a repository, which tag names which version and which tokens were
revoked stands in the database alone, and a backup of it may be old. Forgetting that a model was made private,
or that a token was revoked, would open what was closed. So each such change leaves a small object here before
its transaction ends; ``services.restoring`` reads them all. Objects are written over and never needed while
the database lives: no other part reads them.

No secret is kept: of a token its id, its name and whose it is.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hub.context import Hub
from hub.tables import PersonalTokenRow
from storage.blobs import BlobStore
from storage.encoding import canonical, read_json
from storage.errors import Rejected

PREFIX = "kept/"
VISIBILITIES, TAGS, TOKENS, ATTACHMENTS = (
    f"{PREFIX}{each}/" for each in ("visibility", "tags", "tokens", "attachments")
)
LIMIT_BYTES = 4096


@dataclass(frozen=True)
class Remembered:
    """One object: the steps of its key after the prefix, and what it says."""

    steps: tuple[str, ...]
    says: dict[str, Any]


def keep_visibility(hub: Hub, kind: str, name: str, visibility: str) -> None:
    """Who may see a repository, from its making on."""
    hub.store.put(f"{VISIBILITIES}{kind}/{name}", canonical({"visibility": visibility}))


def forget_repository(hub: Hub, kind: str, name: str) -> None:
    """A repository without versions is gone."""
    hub.store.delete(f"{VISIBILITIES}{kind}/{name}")


def keep_tag(hub: Hub, name: str, tag: str, version: int) -> None:
    """A tag of a model's version."""
    hub.store.put(f"{TAGS}{name}/{tag}", canonical({"version": version}))


def keep_token(hub: Hub, row: PersonalTokenRow) -> None:
    """That a token was made, or revoked."""
    said = {"institution": row.institution, "name": row.name, "revoked": row.revoked_at is not None}
    hub.store.put(f"{TOKENS}{row.id}", canonical(said))


def keep_attachment(store: BlobStore, sha256: str, data: bytes) -> None:
    """A file that a statement names, such as a description."""
    store.put(f"{ATTACHMENTS}{sha256}", data)


def attachment(store: BlobStore, sha256: str) -> bytes | None:
    """The same again; None: it was not kept."""
    key = f"{ATTACHMENTS}{sha256}"
    return None if store.size(key) is None else store.get(key)


def all_below(store: BlobStore, prefix: str) -> Iterator[Remembered]:
    """Everything that was kept of one sort; what cannot be read is passed over."""
    for key in store.list(prefix):
        try:
            said = read_json(store.get(key), limit=LIMIT_BYTES)
        except Rejected:
            continue
        if isinstance(said, dict):
            yield Remembered(tuple(key.removeprefix(prefix).split("/")), said)
