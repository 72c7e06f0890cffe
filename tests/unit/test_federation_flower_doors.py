"""The doors before SuperLink's application: paths, sizes, slow bodies, and polls that wait."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from federation.flower import doors
from federation.flower.doors import CONTROL, FLEET, RUNTIME, Bell, Door

Sent = list[dict[str, Any]]
POLL, PUSH, WHO = "/v1/fleet/pull-messages", "/v1/runtime/push-messages", b"who"


class Application:
    """Answers 200 with ``answers[path]`` (empty by default) and remembers the bodies it was given."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.answers: dict[str, bytes] = {}
        self.status = 200

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            self.bodies.append(b"lifespan")
            return
        message = await receive()
        self.bodies.append(message["body"])
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": self.answers.get(scope["path"], b"")})


def scope(
    path: str, *, length: bytes | None = None, caller: bytes = b"a", kind: str = "http"
) -> dict[str, Any]:
    headers = [(WHO, caller)]
    if length is not None:
        headers.append((b"content-length", length))
    return {"type": kind, "path": path, "headers": headers}


async def ask(door: Any, asked: dict[str, Any], *chunks: bytes) -> Sent:
    """What the door answers to a request whose body comes in these chunks."""
    parts = list(chunks) or [b""]
    sent: Sent = []

    async def receive() -> dict[str, Any]:
        body = parts.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(parts)}

    async def send(message: Any) -> None:
        sent.append(dict(message))

    await door(asked, receive, send)
    return sent


def status(sent: Sent) -> int:
    return int(sent[0]["status"])


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(work())  # type: ignore[arg-type]


# --- paths --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/runtime/acquire-task",
        "/docs",
        "/openapi.json",
        "/health",
        "/",
        "/v1/fleet",
        "/V1/FLEET/pull-messages",
        "//v1/fleet/pull-messages",
    ],
)
def test_the_public_door_serves_fleet_and_nothing_else(path: str) -> None:
    async def work() -> None:
        app = Application()
        assert status(await ask(Door(app, FLEET, max_body=10), scope(path), b"x")) == 404
        assert app.bodies == []
        assert status(await ask(Door(app, FLEET, max_body=10), scope("/v1/fleet/activate-node"), b"x")) == 200

    run(work)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/begin-connector-oauth",
        "/v1/control/add-app",
        "/v1/control/start-run/x",
        "/v1/fleet/get-fab",
    ],
)
def test_the_inner_door_leaves_out_every_control_call_that_the_hub_does_not_make(path: str) -> None:
    async def work() -> None:
        door = Door(Application(), CONTROL + RUNTIME, max_body=10)
        assert status(await ask(door, scope(path))) == 404
        for own in ("/v1/control/start-run", "/v1/control/list-nodes", "/v1/runtime/push-logs", "/health"):
            assert status(await ask(door, scope(own))) == 200

    run(work)


def test_a_websocket_is_closed_and_the_lifespan_goes_through() -> None:
    async def work() -> None:
        app = Application()
        door = Door(app, FLEET, max_body=10)
        assert (await ask(door, scope("/v1/fleet/x", kind="websocket")))[0]["type"] == "websocket.close"
        await ask(door, {"type": "lifespan"})
        assert app.bodies == [b"lifespan"]

    run(work)


# --- bodies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "chunks", "expected"),
    [
        (b"10", (b"0123456789",), 200),
        (None, (b"01234", b"56789"), 200),
        (b"11", (b"0123456789x",), 413),
        (b"9" * 40, (b"x",), 413),
        (None, (b"01234", b"56789", b"x"), 413),
        (b"ten", (b"x",), 400),
        (b"-1", (b"x",), 400),
    ],
)
def test_a_body_over_the_limit_never_reaches_the_application(
    length: bytes | None, chunks: tuple[bytes, ...], expected: int
) -> None:
    async def work() -> None:
        app = Application()
        sent = await ask(Door(app, FLEET, max_body=10), scope("/v1/fleet/x", length=length), *chunks)
        assert status(sent) == expected
        assert app.bodies == ([b"".join(chunks)] if expected == 200 else [])

    run(work)


def test_an_announced_body_is_refused_before_a_byte_of_it_is_read() -> None:
    async def work() -> None:
        async def receive() -> Any:
            raise AssertionError("the body was read")

        sent: Sent = []

        async def send(message: Any) -> None:
            sent.append(dict(message))

        await Door(Application(), FLEET, max_body=10)(scope("/v1/fleet/x", length=b"11"), receive, send)
        assert status(sent) == 413
        assert (b"connection", b"close") in sent[0]["headers"]

    run(work)


def test_a_body_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "BODY_S", 0.05)

    async def work() -> None:
        async def receive() -> Any:
            await asyncio.sleep(60)

        sent: Sent = []

        async def send(message: Any) -> None:
            sent.append(dict(message))

        await Door(Application(), FLEET, max_body=10)(scope("/v1/fleet/x"), receive, send)
        assert status(sent) == 408

    run(work)


# --- waiting ------------------------------------------------------------------------------------------------


async def timed(work: Awaitable[Sent]) -> float:
    loop = asyncio.get_running_loop()
    began = loop.time()
    await work
    return loop.time() - began


def doors_of(app: Application, hold_s: float = 0.3) -> Door:
    return Door(app, ("/v1/",), max_body=100, bells=(Bell(POLL, (PUSH,), WHO, hold_s=hold_s),))


def test_a_second_empty_poll_waits_and_ends_in_time_by_itself() -> None:
    async def work() -> None:
        door = doors_of(Application())
        assert await timed(ask(door, scope(POLL))) < 0.15
        assert 0.25 < await timed(ask(door, scope(POLL))) < 1.0

    run(work)


def test_a_push_ends_the_wait_of_every_poll() -> None:
    async def work() -> None:
        door = doors_of(Application(), hold_s=20)
        for caller in (b"a", b"b"):
            await ask(door, scope(POLL, caller=caller))
        waiting = [asyncio.create_task(ask(door, scope(POLL, caller=caller))) for caller in (b"a", b"b")]
        await asyncio.sleep(0.05)
        assert not any(one.done() for one in waiting)
        await ask(door, scope(PUSH))
        await asyncio.wait_for(asyncio.gather(*waiting), 5)

    run(work)


def test_pushes_close_together_wake_once_when_they_have_settled() -> None:
    async def work() -> None:
        app = Application()
        bell = Bell(POLL, (PUSH,), WHO, hold_s=20, settle_s=0.2)
        door = Door(app, ("/v1/",), max_body=100, bells=(bell,))
        await ask(door, scope(POLL))
        waiting = asyncio.create_task(ask(door, scope(POLL)))
        for _ in range(4):
            await ask(door, scope(PUSH))
            await asyncio.sleep(0.03)
            assert not waiting.done()
        await asyncio.wait_for(waiting, 5)
        assert len(app.bodies) == 6  # two polls and four pushes: nobody was woken in between

    run(work)


def test_pushes_that_never_settle_wake_in_the_end() -> None:
    async def work() -> None:
        bell = Bell(POLL, (PUSH,), WHO, hold_s=20, settle_s=0.05)
        door = Door(Application(), ("/v1/",), max_body=100, bells=(bell,))
        await ask(door, scope(POLL))
        waiting = asyncio.create_task(ask(door, scope(POLL)))
        until = asyncio.get_running_loop().time() + 10
        while not waiting.done() and asyncio.get_running_loop().time() < until:
            await ask(door, scope(PUSH))
            await asyncio.sleep(0.01)
        assert waiting.done()

    run(work)


def test_a_push_between_two_polls_is_not_missed() -> None:
    async def work() -> None:
        door = doors_of(Application(), hold_s=20)
        await ask(door, scope(POLL))
        await ask(door, scope(PUSH))
        await asyncio.wait_for(ask(door, scope(POLL)), 5)

    run(work)


def test_a_poll_that_brought_something_may_come_again_at_once() -> None:
    async def work() -> None:
        app = Application()
        door = doors_of(app, hold_s=20)
        app.answers[POLL] = b"a message"
        for _ in range(3):
            await asyncio.wait_for(ask(door, scope(POLL)), 5)

    run(work)


def test_a_caller_that_the_application_refuses_is_never_held() -> None:
    async def work() -> None:
        app = Application()
        app.status = 401
        door = doors_of(app, hold_s=20)
        for _ in range(3):
            await asyncio.wait_for(ask(door, scope(POLL)), 5)

    run(work)


def test_a_refused_push_wakes_nobody() -> None:
    async def work() -> None:
        app = Application()
        door = doors_of(app, hold_s=0.3)
        await ask(door, scope(POLL))
        waiting = asyncio.create_task(ask(door, scope(POLL)))
        await asyncio.sleep(0.05)
        app.status = 403
        await ask(door, scope(PUSH))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await waiting

    run(work)


def test_nobody_is_held_once_the_server_is_to_end() -> None:
    async def work() -> None:
        bell = Bell(POLL, (PUSH,), WHO, hold_s=20)
        door = Door(Application(), ("/v1/",), max_body=100, bells=(bell,))
        await ask(door, scope(POLL))
        waiting = asyncio.create_task(ask(door, scope(POLL)))
        await asyncio.sleep(0.05)
        bell.open()
        await asyncio.wait_for(waiting, 5)
        for _ in range(2):
            await asyncio.wait_for(ask(door, scope(POLL)), 5)

    run(work)


def test_callers_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "MAX_POLLERS", 2)

    async def work() -> None:
        door = doors_of(Application(), hold_s=20)
        for caller in (b"a", b"b", b"c"):
            await ask(door, scope(POLL, caller=caller))
        await asyncio.wait_for(ask(door, scope(POLL, caller=b"a")), 5)

    run(work)
