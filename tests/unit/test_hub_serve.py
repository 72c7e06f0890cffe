"""Ports of the hub's process, before anything is started, and its children where the system gives them nothing."""

import errno
import socket
import threading
from typing import Any, cast

import pytest

from hub.serve import Children, bind, check_free, settle_ports
from hub.settings import load_settings
from storage.errors import Unchecked


def test_a_listener_says_that_it_is_tcp() -> None:
    """asyncio sets TCP_NODELAY only then; without it each small answer waits 40 ms."""
    with bind("127.0.0.1", 0, "FEDHUB_PORT") as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_a_port_in_use_is_told_with_address_and_setting() -> None:
    with bind("127.0.0.1", 0, "FEDHUB_PORT") as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            Unchecked, match=rf"FEDHUB_BLOB_PORT: cannot listen on 127\.0\.0\.1 port {port}"
        ) as caught:
            bind("127.0.0.1", port, "FEDHUB_BLOB_PORT")
    assert caught.value.code == "E_PORT" and "FEDHUB_BLOB_PORT" in caught.value.hint


def test_ports_left_open_are_chosen_and_differ() -> None:
    asked = load_settings(port=0, download_port=0, blob_port=0, fleet_port=0, control_port=0)
    settled = settle_ports(asked)
    names = ("port", "download_port", "blob_port", "fleet_port", "control_port")
    chosen = [getattr(settled, name) for name in names]
    assert len(set(chosen)) == 5 and 0 not in chosen
    assert str(settled.port) in settled.public and str(settled.blob_port) in settled.store_public


def test_ports_that_are_given_stay() -> None:
    assert settle_ports(load_settings(port=8123)).port == 8123


@pytest.mark.parametrize("name", ["blob_port", "fleet_port", "control_port"])
def test_a_child_s_port_is_looked_at_before_the_child_is_started(name: str) -> None:
    with bind("127.0.0.1", 0, "x") as taken:
        given = {"blob_port": 0, "fleet_port": 0, "control_port": 0, name: taken.getsockname()[1]}
        with pytest.raises(Unchecked, match=f"FEDHUB_{name.upper()}"):
            check_free(load_settings(**given))


def test_ports_of_children_that_will_not_be_started_are_not_looked_at() -> None:
    with bind("127.0.0.1", 0, "x") as taken:
        port = taken.getsockname()[1]
        check_free(
            load_settings(
                superlink="off",
                fleet_port=port,
                control_port=port,
                blob_port=port,
                store_url="s3+http://s:9000/b",
            )
        )


# --- children -----------------------------------------------------------------------------------------------


class Dead:
    """A child that has ended."""

    running = False

    def stop(self) -> None:
        """Nothing is left to end."""


class Lives(Dead):
    running = True


def children(monkeypatch: pytest.MonkeyPatch, *, first: Any) -> tuple[Children, threading.Event]:
    """A SuperLink that the disk has room for at the third try; ``first``: what the first one gives."""
    there, tries = threading.Event(), iter([first, OSError(errno.ENOSPC, "No space left on device"), Lives()])

    def start(*_given: object) -> Dead:
        found = next(tries)
        if isinstance(found, OSError):
            raise found
        if found.running:
            there.set()
        return cast(Dead, found)

    monkeypatch.setattr("hub.serve.start_superlink", start)
    settings = load_settings(superlink="child", store_url="s3+http://s:9000/b")
    return Children(settings, cast(Any, None)), there


def test_a_child_that_finds_no_room_is_tried_again_and_the_others_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, there = children(monkeypatch, first=Dead())
    found.start()
    found.wait_started()
    assert there.wait(30)
    found.stop()


def test_a_start_without_room_for_a_child_is_told_and_does_not_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, _there = children(monkeypatch, first=OSError(errno.ENOSPC, "No space left on device"))
    found.start()
    with pytest.raises(Unchecked, match="E_HUB_FULL"):
        found.wait_started()
    found.stop()
