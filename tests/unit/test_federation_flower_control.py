"""The hub's view of a SuperLink that is not there."""

import contextlib
import socket
import time

import pytest

from federation.flower.control import Control
from storage.errors import Unchecked


def test_a_superlink_whose_machine_is_gone_is_given_up_soon() -> None:
    with contextlib.ExitStack() as stack:
        deaf = stack.enter_context(socket.socket())
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for _ in range(2):  # Linux drops what comes after a full queue, as a machine that is gone does
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(deaf.getsockname())
        control = stack.enter_context(Control(f"http://127.0.0.1:{deaf.getsockname()[1]}", "t" * 32))
        began = time.monotonic()
        with pytest.raises(Unchecked, match="ConnectTimeout") as caught:
            control.list_nodes()
    assert caught.value.code == "E_SUPERLINK_AWAY"
    assert time.monotonic() - began < 20  # where flwr itself waits 30 s
