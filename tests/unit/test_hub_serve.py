"""Ports of the hub's process, before anything is started."""

import socket

import pytest

from hub.serve import bind, check_free, settle_ports
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
