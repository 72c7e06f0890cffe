"""Looking after a hub that has been founded, beside it or while it stands still."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from storage.errors import Unchecked

if TYPE_CHECKING:
    from hub.context import Hub
    from hub.settings import Settings


@contextmanager
def existing_hub(settings: "Settings") -> "Iterator[Hub]":
    """The hub of these settings, opened without children or ports; none is founded.

    Raises:
        Unchecked: ``E_NO_HUB``; nothing was founded there.
        Rejected: ``E_LOG_FORK``; its database is not the one that the log was made from.
    """
    from hub.api.app import open_hub

    check_founded(settings)
    hub = open_hub(settings)
    try:
        yield hub
    finally:
        hub.database.close()


def check_founded(settings: "Settings") -> None:
    """Refuse settings that name no hub."""
    if not (settings.data_dir / "keys" / "log.key").exists():
        raise Unchecked(
            "E_NO_HUB",
            f"there is no hub in {settings.data_dir.absolute()}",
            "set FEDHUB_DATA_DIR (and the others) as for: fedhub hub up",
        )
