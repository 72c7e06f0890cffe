"""A whole hub inside the test's own process: real database, folder store and log, no socket.

``HubInProcess`` opens a hub as ``hub.serve`` does, without children. ``client(...)`` gives the product's own client,
whose requests go straight into the application. ``enrol`` makes an institution's home, with real keys, through the
same calls as ``fedhub institution create``.
"""

import base64
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import httpx
from fastapi import FastAPI

from federation import wire
from federation.client import HubClient
from federation.home import Home, Place
from hub.api.app import create_app, create_download_app, open_hub
from hub.context import NodeRegistry
from hub.settings import Settings, load_settings
from storage.encoding import sha256_hex

ORIGIN = "hub.example"
OPERATOR = "operator.example"
ENDPOINT = "http://hub.test"


class AppTransport(httpx.BaseTransport):
    """Sends a synchronous client's requests into an ASGI application, on an event loop of its own."""

    def __init__(self, app: FastAPI) -> None:
        self._inner = httpx.ASGITransport(app, raise_app_exceptions=False)
        self._portal_maker = anyio.from_thread.start_blocking_portal()
        self._portal = self._portal_maker.__enter__()
        self._closed = threading.Event()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """One exchange."""
        return self._portal.call(self._exchange, request)

    async def _exchange(self, request: httpx.Request) -> httpx.Response:
        sent = httpx.Request(request.method, request.url, headers=request.headers, content=request.read())
        response = await self._inner.handle_async_request(sent)
        assert isinstance(response.stream, httpx.AsyncByteStream)
        body = b"".join([chunk async for chunk in response.stream])
        return httpx.Response(response.status_code, headers=response.headers, content=body, request=request)

    def close(self) -> None:
        """Leave the loop running: many clients share it; ``shut`` ends it."""

    def shut(self) -> None:
        """End the loop."""
        self._portal_maker.__exit__(None, None, None)


class HubInProcess:
    """An open hub with homes of its institutions under ``folder``."""

    def __init__(self, folder: Path, *, nodes: NodeRegistry | None = None, **given: Any) -> None:
        settings = {"origin": ORIGIN, "operator": OPERATOR, "superlink": "off", "public_url": ENDPOINT}
        settings |= {"data_dir": folder / "hub", "operator_home": folder / "homes" / "operator"}
        settings |= {"requests_per_minute": 0, **given}
        self.folder = folder
        self.settings: Settings = load_settings(**settings)
        self.hub = open_hub(self.settings, nodes=nodes)
        self.app = create_app(self.settings, hub=self.hub)
        self.transport = AppTransport(self.app)
        self.downloads = AppTransport(create_download_app(self.settings, hub=self.hub))
        self.operator = Home.open(self.settings.operator_folder)

    def close(self) -> None:
        """Give everything back."""
        self.transport.shut()
        self.downloads.shut()
        self.hub.database.close()

    def client(
        self, home: Home | None = None, role: str = "targets", *, token: str | None = None
    ) -> HubClient:
        """A client as this home with its key of ``role``, with a token, or without any login."""
        if home is not None and token is None:
            key = home.key(role)
            return HubClient(
                ENDPOINT,
                origin=ORIGIN,
                institution=home.institution,
                key=key,
                transport=self.transport,
                patience_s=0,
            )
        return HubClient(ENDPOINT, token=token, transport=self.transport, patience_s=0)

    def http(self, *, token: str | None = None, downloads: bool = False) -> httpx.Client:
        """A bare HTTP client."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        transport = self.downloads if downloads else self.transport
        return httpx.Client(base_url=ENDPOINT, transport=transport, headers=headers)

    def coordinator(self) -> HubClient:
        """A client with the coordinator's token."""
        return self.client(token=self.hub.keys.coordinator_token)

    def invite(self, name: str, role: str) -> wire.Invitation:
        """An invitation by the operator."""
        with self.client(self.operator) as client:
            return client.invite(name, role)

    def new_home(self, name: str, role: str, *, folder: str | None = None) -> Home:
        """A home with fresh keys that has not applied anywhere; it pins the operator."""
        with self.client() as client:
            info = client.hub()
        place = Place(
            hub=info.origin,
            endpoint=ENDPOINT,
            fleet=info.fleet,
            fleet_ca=info.fleet_ca,
            operator=info.operator,
            operator_pin=info.operator_pin,
            log_key=info.log_key,
        )
        return Home.create(self.folder / "homes" / (folder or name.partition(".")[0]), name, role, place)

    def enrol(self, name: str, role: str = "lab", *, approve: bool = True) -> Home:
        """A member with a home of its own, from invitation to approval."""
        invitation, home = self.invite(name, role), self.new_home(name, role)
        with self.client() as client:
            client.enrol(enrolment(home, invitation.secret))
        if approve:
            with self.client(self.operator) as client:
                client.approve(name)
        return home


def enrolment(home: Home, secret: str, **members: Any) -> wire.EnrolRequest:
    """The request by which this home applies."""
    root = home.ring.versions[1].raw
    statement = home.sign("keyring", [("1.root.json", sha256_hex(root))], {"version": 1})
    return wire.EnrolRequest(
        **{
            "institution": home.institution,
            "secret": secret,
            "roots": [base64.b64encode(root).decode()],
            "statement": statement.decode(),
            **members,
        }
    )


@contextmanager
def running_hub(folder: Path, **given: Any) -> Iterator[HubInProcess]:
    """An open hub, closed at the end."""
    hub = HubInProcess(folder, **given)
    try:
        yield hub
    finally:
        hub.close()
