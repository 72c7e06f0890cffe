"""Reaching an address from a site: which of name, port, route, certificate and clock is in the way.

Connections only: nothing is sent but what TLS itself sends. A broken connection of any library is explained
by the system error at the end of its chain of causes, so that every door says the same of the same fault.
"""

import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

from storage.errors import Unchecked

CONNECT_S = 3.0
ON_THE_WAY = ("E_DNS", "E_PORT_REFUSED", "E_NO_ROUTE", "E_TLS", "E_TLS_CA", "E_TLS_EXPIRED", "E_TLS_NAME")
SKEW_S = 60  # logins live for 60 s, statements are taken within 10 minutes
# OpenSSL, x509_vfy.h: X509_V_ERR_CERT_NOT_YET_VALID, _HAS_EXPIRED; _HOSTNAME_, _EMAIL_, _IP_ADDRESS_MISMATCH
_NOT_NOW, _OTHER_NAME = (9, 10), (62, 63, 64)


@dataclass(frozen=True)
class Place:
    """A host and port, and whether TLS is spoken there."""

    host: str
    port: int
    tls: bool

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from, outermost first."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def explain(error: BaseException, address: str) -> Unchecked | None:
    """What is in the way of ``address``, or None where the error says nothing about it."""
    for one in chain(error):
        if isinstance(one, ssl.SSLCertVerificationError):
            code = "E_TLS_CA"
            if one.verify_code in _NOT_NOW:
                code = "E_TLS_EXPIRED"
            elif one.verify_code in _OTHER_NAME:
                code = "E_TLS_NAME"
            return Unchecked(code, f"{address}: {one.verify_message}")
        if isinstance(one, ssl.SSLError):
            return Unchecked("E_TLS", f"{address}: {one.reason or 'the handshake failed'}")
        if isinstance(one, socket.gaierror):
            return Unchecked("E_DNS", f"{address}: {one.strerror}")
        if isinstance(one, ConnectionRefusedError):
            return Unchecked("E_PORT_REFUSED", f"{address}: connection refused")
        if isinstance(one, ConnectionError):
            return Unchecked("E_TLS", f"{address}: the connection was closed during the handshake")
        if isinstance(one, OSError):
            return Unchecked("E_NO_ROUTE", f"{address}: {one.strerror or 'no answer'}")
    return None


def reach(place: Place, context: ssl.SSLContext | None = None) -> None:
    """Open a connection, greet by TLS where it is spoken, and close it again.

    Args:
        context: with the authorities to believe; the system's when None.
    Raises:
        Unchecked: ``E_DNS``, ``E_PORT_REFUSED``, ``E_NO_ROUTE``, ``E_TLS_CA``, ``E_TLS_EXPIRED``,
            ``E_TLS_NAME``, ``E_TLS``.
    """
    try:
        with socket.create_connection((place.host, place.port), CONNECT_S) as line:
            if place.tls:
                trusted = context or ssl.create_default_context()
                with trusted.wrap_socket(line, server_hostname=place.host):
                    pass
    except OSError as error:
        found = explain(error, str(place))
        assert found is not None
        raise found from error


def fleet_place(address: str) -> Place:
    """The Fleet address of a home.

    Raises:
        Unchecked: ``E_FLEET``: it is none.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise Unchecked("E_FLEET", f"{address!r} is no host:port", "join with an invitation first")
    return Place(host.strip("[]"), int(port), tls=True)


def read_roots(home: Path) -> bytes:
    """The authorities, PEM, that a home believes at its Fleet address.

    Raises:
        Unchecked: ``E_FLEET_CA``.
    """
    path = home / "fleet-ca.pem"
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unchecked(
            "E_FLEET_CA",
            f"{path}: cannot be read ({error.strerror})",
            "it came with the invitation: restore it",
        ) from error


def trusting(roots: bytes) -> ssl.SSLContext:
    """A context that believes these authorities alone, PEM.

    Raises:
        Unchecked: ``E_FLEET_CA``: they are none.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=roots.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise Unchecked("E_FLEET_CA", "fleet-ca.pem holds no certificate") from error
    return context


def skew_s(date: str | None, now: float | None = None) -> float | None:
    """Seconds that this machine's clock is ahead of an answer's ``Date`` (RFC 9110, section 6.6.1)."""
    try:
        told = parsedate_to_datetime(date or "")
    except ValueError:
        return None
    return (time.time() if now is None else now) - told.timestamp()


def check_skew(date: str | None, address: str) -> None:
    """Compare this machine's clock with an answer's.

    Raises:
        Unchecked: ``E_CLOCK``: they are more than ``SKEW_S`` apart.
    """
    ahead = skew_s(date)
    if ahead is not None and abs(ahead) > SKEW_S:
        side = "ahead of" if ahead > 0 else "behind"
        raise Unchecked("E_CLOCK", f"this machine's clock is {abs(ahead):.0f} s {side} that of {address}")
