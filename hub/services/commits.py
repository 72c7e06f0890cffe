"""What is asked of a commit, however it was read: by itself, or with its repository in one statement."""

from dataclasses import dataclass
from typing import Protocol


class Commit(Protocol):
    """A commit; ``hub.tables.RevisionRow`` is one."""

    @property
    def id(self) -> str:
        """40 hex digits."""

    @property
    def asset_id(self) -> str | None:
        """Digest of its manifest; None: no files."""

    @property
    def statement(self) -> str | None:
        """The asset statement; None: a draft."""

    @property
    def version(self) -> int | None:
        """The version's number; None: a draft."""

    @property
    def created_at(self) -> int:
        """Seconds since 1970."""


@dataclass(frozen=True)
class FoundCommit:
    """A commit as it was read together with its repository."""

    id: str
    asset_id: str | None
    statement: str | None
    version: int | None
    created_at: int
