"""Looking after a hub that has been founded, beside it or while it stands still."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from storage.errors import Unchecked

if TYPE_CHECKING:
    from hub.context import Hub
    from hub.services.restoring import Restored
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


def restore_hub(settings: "Settings", folder: Path | None, *, replace: bool) -> "Restored":
    """Put a backup (None: no backup, the database is there) in its place and bring it up to the log.

    Raises:
        Unchecked: ``E_RUNNING``, ``E_BACKUP``, ``E_TARGET``, ``E_NO_HUB`` (no keys, or no operator's home).
        Rejected: ``E_LOG_FORK``, ``E_LOG_TILE``; nothing more was added.
    """
    from hub.api.app import operator_home, store_of
    from hub.commands.doctor import is_running
    from hub.context import Hub
    from hub.database import Database
    from hub.keys import keys_of
    from hub.ledger import Ledger
    from hub.services.backups import place_backup
    from hub.services.restoring import restore_log

    if is_running(settings):
        raise Unchecked("E_RUNNING", f"a hub is running on port {settings.port}", "stop it first")
    if folder is not None:
        place_backup(settings, folder, replace=replace)
    check_founded(settings)
    if not (settings.operator_folder / "home.json").exists():
        raise Unchecked(
            "E_NO_HUB",
            f"the operator's home is not at {settings.operator_folder}",
            "put it there, or set FEDHUB_OPERATOR_HOME; a backup has it only with --operator-home",
        )
    keys = keys_of(settings)
    database = Database(settings.database, busy_s=settings.database_busy_s, pool=settings.database_pool)
    try:
        database.upgrade()
        store, operator = store_of(settings, keys), operator_home(settings, keys, "")
        ledger = Ledger(database, store, keys.log, operator.institution)
        return restore_log(Hub(settings, database, store, ledger, keys, operator, fleet_ca=""))
    finally:
        database.close()


def check_founded(settings: "Settings") -> None:
    """Refuse settings that name no hub."""
    if not (settings.data_dir / "keys" / "log.key").exists():
        raise Unchecked(
            "E_NO_HUB",
            f"there is no hub in {settings.data_dir.absolute()}",
            "set FEDHUB_DATA_DIR (and the others) as for: fedhub hub up",
        )
