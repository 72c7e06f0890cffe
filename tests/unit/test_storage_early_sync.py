"""A file that is brought to the disk while it fills."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest

from storage.early_sync import EarlySync


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The descriptors that were synced, in order."""
    done: list[int] = []
    real = os.fdatasync

    def fdatasync(file: int) -> None:
        real(file)
        done.append(file)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    return done


def in_file(path: Path, use: Callable[[int], None]) -> None:
    with path.open("wb") as file:
        use(file.fileno())


def test_bytes_go_to_the_disk_as_often_as_enough_of_them_are_there(tmp_path: Path, synced: list[int]) -> None:
    def use(file: int) -> None:
        with EarlySync(file, 10) as disk:
            for count in (4, 6):
                disk.wrote(count)
            assert synced == []
            disk.wrote(1)
        assert synced == [file]
        with EarlySync(file, 10) as disk:
            disk.wrote(10)  # all of a file: its owner syncs that
        assert synced == [file]

    in_file(tmp_path / "a", use)


def test_what_comes_while_the_disk_writes_goes_there_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go, calls = Event(), Event(), list[int]()

    def fdatasync(file: int) -> None:
        calls.append(file)
        began.set()
        assert go.wait(10)

    monkeypatch.setattr(os, "fdatasync", fdatasync)

    def use(file: int) -> None:
        with EarlySync(file, 1) as disk:
            disk.wrote(2)
            assert began.wait(10)
            for _ in range(5):
                disk.wrote(2)
            assert len(calls) == 1
            go.set()
        assert len(calls) == 1

    in_file(tmp_path / "a", use)


def test_disk_that_takes_no_more_is_an_error_of_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fdatasync(file: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fdatasync", fdatasync)

    def use(file: int) -> None:
        with pytest.raises(OSError, match="full"), EarlySync(file, 1) as disk:
            disk.wrote(2)
        with pytest.raises(ValueError, match="its own"), EarlySync(file, 1) as disk:
            disk.wrote(2)
            raise ValueError("its own")

    in_file(tmp_path / "a", use)
