"""What stands before SuperLink's application: which paths each listener serves, how much it reads, how it
waits.

Plain ASGI around any application, without flwr. SuperLink has three APIs in one application and reads a body
before it asks who sends it; a ``Door`` answers 404 to all but its own paths and 413 before a byte too many is
read. ``Bell`` turns the short polls of nodes and coordinator into waits that end when something has arrived,
without a change to either side.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

FLEET = ("/v1/fleet/",)
RUNTIME = ("/v1/runtime/", "/health")
# The Control calls that the hub makes; every other one (accounts, connectors, app downloads) stays shut.
CONTROL = tuple(
    f"/v1/control/{call}"
    for call in (
        "start-run",
        "list-runs",
        "stop-run",
        "stream-logs",
        "register-node",
        "unregister-node",
        "list-nodes",
    )
)
BODY_S = 30.0  # how long a request's body may take to arrive
MAX_POLLERS = 4096


class Bell:
    """Holds an empty-handed poll until something was pushed to the other side, or ``hold_s`` has passed.

    Nobody new is ever held: only a caller whose last poll the application answered with 200 and nothing, that
        is one it has authenticated. It knows nothing of messages: it counts pushes, and a poll that begins
        after the last push that its caller has seen waits for the next.
    """

    def __init__(
        self,
        poll: str,
        pushes: tuple[str, ...],
        who: bytes,
        *,
        hold_s: float = 1.0,
        settle_s: float = 0.0,
    ) -> None:
        """
        Args:
            poll: path of the poll that is held.
            pushes: paths that ring when the application has answered them.
            who: name of the header that tells callers apart.
            settle_s: ring only when nothing more was pushed for that long, at most ten times that long after
                the first: a message is of no use to a site before all its objects have come.
        """
        self.poll = poll
        self.pushes = pushes
        self._who = who
        self._hold_s = hold_s
        self._settle_s = settle_s
        self._soon: asyncio.TimerHandle | None = None
        self._latest = 0.0
        self._rung = 0
        self._ringing = asyncio.Event()
        self._seen: OrderedDict[bytes, int] = OrderedDict()

    def caller(self, scope: Message) -> bytes:
        return next((value for name, value in scope["headers"] if name == self._who), b"")

    async def wait(self, caller: bytes) -> int:
        """Return the count of pushes that the poll which now follows will see."""
        until = time.monotonic() + self._hold_s
        while self._seen.get(caller) == self._rung and (left := until - time.monotonic()) > 0:
            try:
                await asyncio.wait_for(self._ringing.wait(), left)
            except TimeoutError:
                break
        return self._rung

    def polled(self, caller: bytes, seen: int, *, empty: bool) -> None:
        """Remember what a poll that was answered empty-handed has seen; any other caller may come again at
        once.
        """
        self._seen.pop(caller, None)
        if empty and caller:
            self._seen[caller] = seen
            while len(self._seen) > MAX_POLLERS:
                self._seen.popitem(last=False)

    def open(self) -> None:
        """Hold nobody any more: the server is about to end."""
        self._hold_s = 0.0
        self.ring()

    def pushed(self) -> None:
        """Ring, now or when pushes have settled."""
        if not self._settle_s:
            self.ring()
            return
        loop = asyncio.get_running_loop()
        if self._soon is None:
            self._latest = loop.time() + 10 * self._settle_s
        else:
            self._soon.cancel()
        self._soon = loop.call_at(min(self._latest, loop.time() + self._settle_s), self.ring)

    def ring(self) -> None:
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        self._rung += 1
        self._ringing.set()
        self._ringing = asyncio.Event()


class Door:
    """Lets through only requests for its own paths with bodies of at most ``max_body`` bytes."""

    def __init__(
        self, app: App, paths: tuple[str, ...], *, max_body: int, bells: tuple[Bell, ...] = ()
    ) -> None:
        """
        Args:
            paths: a path that ends with ``/`` stands for all below it.
            max_body: in bytes.
        """
        self._app = app
        self._paths = paths
        self._max_body = max_body
        self._bells = bells

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http" or not self._serves(scope["path"]):
            await _refuse(scope, send, 404)
            return
        body = await self._read(scope, receive)
        if isinstance(body, int):
            await _refuse(scope, send, body)
            return
        await self._ask(scope, _replay(body, receive), send)

    def _serves(self, path: str) -> bool:
        return any(path.startswith(own) if own.endswith("/") else path == own for own in self._paths)

    async def _read(self, scope: Message, receive: Receive) -> bytes | int:
        """The whole body, or the status that refuses it."""
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not announced.isdigit():
            return 400
        if len(announced) > 15 or int(announced) > self._max_body:
            return 413
        parts, size = [], 0
        try:
            async with asyncio.timeout(BODY_S):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return 400
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self._max_body:
                        return 413
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            return 408

    async def _ask(self, scope: Message, receive: Receive, send: Send) -> None:
        poll = next((bell for bell in self._bells if bell.poll == scope["path"]), None)
        push = next((bell for bell in self._bells if scope["path"] in bell.pushes), None)
        caller, seen, status, size = b"", 0, 0, 0
        if poll is not None:
            caller = poll.caller(scope)
            seen = await poll.wait(caller)

        async def note(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
            size += len(message.get("body", b""))
            await send(message)

        await self._app(scope, receive, note)
        if poll is not None:
            poll.polled(caller, seen, empty=status == 200 and size == 0)
        if push is not None and status == 200:
            push.pushed()


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _refuse(scope: Message, send: Send, status: int) -> None:
    """An answer without content; the connection of a refused body is closed, since the body was not read."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1000})
        return
    headers = [(b"content-length", b"0")]
    if status != 404:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
