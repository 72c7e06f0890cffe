"""Applications of a hub on real ports, for clients that are processes of their own, and what reached them."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn


@dataclass
class Watched:
    """An application, the requests that reached it (``METHOD path``), and how many of them bore credentials."""

    app: Any
    seen: list[str] = field(default_factory=list)
    with_credentials: int = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self.seen.append(f"{scope['method']} {scope['path']}")
            self.with_credentials += any(name == b"authorization" for name, _value in scope["headers"])
        await self.app(scope, receive, send)


@contextmanager
def serving(app: Any, port: int) -> Iterator[None]:
    """Serve on 127.0.0.1 until the end of the block."""
    config = uvicorn.Config(
        app, host="127.0.0.1", port=port, log_config=None, access_log=False, ws="none", lifespan="on"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()
