"""What every service stands on: one hub's settings, rows, objects, log, secrets and signing hand."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from hub.database import Database
from hub.keys import HubKeys
from hub.ledger import Ledger
from hub.settings import Settings
from storage.blobs import BlobStore, FolderStore


class Signer(Protocol):
    """The operator's hand: ``federation.home.Home`` opened on its home folder."""

    @property
    def institution(self) -> str:
        """Whose word is signed."""

    def sign(
        self, kind: str, subjects: list[tuple[str, str]], members: dict[str, Any], *, now: int | None = None
    ) -> bytes:
        """A signed statement as its bundle."""


class Node(Protocol):
    """One node as SuperLink knows it."""

    @property
    def id(self) -> str:
        """SuperLink's number for it, a uint64 in decimal."""

    @property
    def public_key(self) -> str:
        """The key it proves itself with, PEM."""

    @property
    def online(self) -> bool:
        """Whether its agent is connected."""


class NodeRegistry(Protocol):
    """SuperLink's list of nodes: ``federation.flower.control.Control``."""

    def register_node(self, public_key_pem: str, name: str) -> str:
        """Admit a node's key and give its node id; a key known already keeps its id."""

    def list_nodes(self) -> Sequence[Node]:
        """All nodes that are registered."""


class Bell:
    """Rung when there is work, so that whoever looks for it from time to time looks at once."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._rings = 0

    def ring(self) -> None:
        """Let everybody who waits look now, and who is looking look again."""
        with self._changed:
            self._rings += 1
            self._changed.notify_all()

    def wait(self, heard: int, timeout_s: float) -> int:
        """Wait for a ring after the first ``heard`` ones, or ``timeout_s``; how many there were by now."""
        with self._changed:
            self._changed.wait_for(lambda: self._rings > heard, timeout_s)
            return self._rings


@dataclass(frozen=True)
class Hub:
    """One process's view of one hub."""

    settings: Settings
    database: Database
    store: BlobStore
    ledger: Ledger
    keys: HubKeys
    operator: Signer
    fleet_ca: str  # PEM of the Fleet address's certificate authority
    nodes: NodeRegistry | None = None  # None: SuperLink is switched off
    inside: BlobStore | None = None  # the store as the coordinator reaches it; None: at its public address
    bell: Bell = field(default_factory=Bell)  # calls this process's background work

    @property
    def folder(self) -> FolderStore | None:
        """The store where it is a folder: a coordinator beside us reads and writes there without a server."""
        return self.store if isinstance(self.store, FolderStore) else None

    @property
    def coordinator_store(self) -> BlobStore:
        """Signs orders and addresses for the coordinator, which stands beside the hub."""
        return self.inside or self.store
