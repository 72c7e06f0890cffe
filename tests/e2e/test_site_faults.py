"""Faults between a site and its hub, on real sockets: the site's log, its status, the API and the run's page name them.

The hub is a real one behind a port; where Flower's Fleet port would be there is a listener that is at fault.
"""

import datetime
import html
import io
import ipaddress
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from federation import connection, reaching
from federation.home import Home
from federation.reaching import check_skew, explain
from federation.site_log import SiteLog
from federation.supervisor import run_site
from hub.cli import dispatch
from hub.terminal import Terminal
from storage.causes import cause_of, log_line
from storage.errors import Exit, Unchecked
from tests.alliances import LABS, AllianceInProcess, Journey, Setting, open_alliance
from tests.servers import free_port

SECONDS = 10.0  # within which a fault is told; waited for, not measured
LAB = LABS[0]
Key = ec.EllipticCurvePrivateKey


# --- certificates -------------------------------------------------------------------------------------------


def _certificate(
    subject: str, key: Key, issuer: str, signer: Key, *, days: int = 1, names: tuple[str, ...] = ()
) -> bytes:
    now = datetime.datetime.now(datetime.UTC)
    spoken = [
        x509.IPAddress(ipaddress.ip_address(name)) if name[0].isdigit() else x509.DNSName(name)
        for name in names
    ]
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=3))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=not names, path_length=None), critical=True)
    )
    if spoken:
        builder = builder.add_extension(x509.SubjectAlternativeName(spoken), critical=False)
    return builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.PEM)


class Authority:
    """A certificate authority of a test."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.pem = _certificate("ca", self.key, "ca", self.key)

    def context(
        self, folder: Path, *, days: int = 1, names: tuple[str, ...] = ("127.0.0.1",)
    ) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        chain = folder / f"{os.urandom(4).hex()}.pem"
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        chain.write_bytes(private + _certificate("fleet", key, "ca", self.key, days=days, names=names))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        return context


@contextmanager
def listener(context: ssl.SSLContext, answer: bytes = b"") -> Iterator[int]:
    """A port that greets by TLS, answers each request with ``answer``, and hangs up."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)

        def serve() -> None:
            while not over.is_set():
                try:
                    line, _ = server.accept()
                except TimeoutError:
                    continue
                with line:
                    line.settimeout(3)
                    try:
                        with context.wrap_socket(line, server_side=True) as secured:
                            if answer and secured.recv(1 << 16):
                                secured.sendall(answer)
                    except OSError:
                        continue  # the other side did not like our certificate

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            over.set()
            thread.join()


# --- the hub ------------------------------------------------------------------------------------------------


class Served:
    """An alliance behind a port, and a run that one lab's site is to take part in."""

    def __init__(self, alliance: AllianceInProcess, folder: Path) -> None:
        self.alliance, self.folder = alliance, folder
        self.port = free_port()
        self.server = uvicorn.Server(
            uvicorn.Config(alliance.app, port=self.port, log_level="error", lifespan="off", ws="none")
        )
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        self.authority = Authority()
        self.setting = Setting(alliance)
        for node in alliance.control.nodes.values():
            node.online = False
        self.journey: Journey = self.setting.running()

    def home(self, fleet: str, roots: bytes) -> Home:
        home = self.alliance.homes[LAB].moved(endpoint=f"http://127.0.0.1:{self.port}", fleet=fleet)
        (home.path / "fleet-ca.pem").write_bytes(roots)
        return home

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    with open_alliance(folder, superlink="external", open_pages=True) as alliance:
        one = Served(alliance, folder)
        yield one
        one.stop()


@contextmanager
def site(home: Home) -> Iterator[list[str]]:
    """The site's supervisor at work; its log."""
    log: list[str] = []
    stop = threading.Event()
    thread = threading.Thread(target=run_site, args=(home,), kwargs={"say": log.append, "stop": stop})
    thread.start()
    try:
        yield log
    finally:
        stop.set()
        thread.join(20)


def wait_for(condition: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
    until = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < until, f"{what} did not happen within {seconds:g} s"
        time.sleep(0.05)


def command(home: Home, *words: str) -> tuple[Exit, Any, str]:
    terminal = Terminal(home.path, json=True, out=io.StringIO(), err=io.StringIO())
    code = dispatch(list(words), terminal)
    return code, terminal.answer or terminal.problem, terminal.err.getvalue()


def newest(home: Home) -> str:
    """Code of the trouble that lasts."""
    trouble = SiteLog(home).newest()
    return "" if trouble is None else trouble.code


def told_everywhere(served: Served, home: Home, log: list[str], code: str) -> None:
    """The fault is named by log, status, API, command line and page, with the same words."""
    found = cause_of(code)
    words = {"cause": found.cause, "owner": found.owner, "step": found.step}
    tail = log_line(code, "").partition(" | ")[2]
    wait_for(
        lambda: any(line.startswith(f"{code}: ") and line.endswith(tail) for line in [*log]),
        f"{code} in {log}",
    )

    def on_the_run() -> Any:
        return [each for each in served.journey.run().faults if (each.site, each.code) == (LAB, code)]

    fault = wait_for(on_the_run, f"{code} at the hub ({log})")[0]
    assert words.items() <= fault.model_dump().items()
    _, status, _ = command(home, "site", "status")
    assert words.items() <= status["trouble"].items()
    _, run, _ = command(home, "run", "show", served.journey.id)
    assert any(words.items() <= each.items() for each in run["faults"])
    with served.alliance.http() as browser:
        page = html.unescape(browser.get(f"/runs/{served.journey.id}").text)
    assert all(text in page for text in (code, *words.values()))


def found_by_check(home: Home, code: str) -> None:
    """``fedhub site check`` finds the same, and exits 1."""
    exit_code, answer, _ = command(home, "site", "check")
    codes = {each.get("code") for each in answer["findings"] if each["state"] == "broken"}
    assert exit_code is Exit.REFUSED and code in codes, answer


# --- faults on the way --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code", ["E_DNS", "E_PORT_REFUSED", "E_TLS_CA", "E_TLS_EXPIRED", "E_TLS_NAME", "E_TLS"]
)
def test_a_fault_on_the_way_to_the_fleet_is_told_alike_everywhere_and_found_by_a_check(
    served: Served, code: str
) -> None:
    roots = served.authority.pem
    with ExitStack() as stack:
        fleet = "127.0.0.1"
        if code == "E_DNS":
            fleet, port = "no-such-host.invalid", 443
        elif code == "E_PORT_REFUSED":
            port = free_port()
        elif code == "E_TLS":
            port = served.port  # plain HTTP answers there
        else:
            days, names = (-1 if code == "E_TLS_EXPIRED" else 1), ("127.0.0.1",)
            if code == "E_TLS_NAME":
                names = ("another.example",)
            context = served.authority.context(served.folder, days=days, names=names)
            port = stack.enter_context(listener(context))
            roots = Authority().pem if code == "E_TLS_CA" else roots
        home = served.home(f"{fleet}:{port}", roots)
        with site(home) as log:
            told_everywhere(served, home, log, code)
        # The site has asked the hub for the Fleet address; that of the fault is put back.
        found_by_check(served.home(home.fleet, roots), code)


@pytest.mark.slow
def test_a_node_that_is_refused_and_an_agent_that_is_killed_are_told_alike_everywhere(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    with listener(served.authority.context(served.folder), answer) as port:
        home = served.home(f"127.0.0.1:{port}", served.authority.pem)
        # The agent's child connects where the hub says that its Fleet address is.
        settings = served.alliance.hub.settings.__dict__
        monkeypatch.setitem(settings, "fleet_public", f"127.0.0.1:{port}")
        with site(home) as log:
            # The child's own lines go to its standard error; the trouble it noted is what the supervisor tells.
            wait_for(lambda: newest(home) == "E_NODE_REFUSED", "the refusal", 60)
            wait_for(
                lambda: any(each.code == "E_NODE_REFUSED" for each in served.journey.run().faults),
                "the refusal, told to the hub",
                60,
            )
            started = [line for line in log if "runs as process" in line][-1]
            os.kill(int(started.rsplit(" ", 1)[1]), signal.SIGKILL)
            told_everywhere(served, home, log, "E_AGENT_DIED")


# --- faults of the home and the machine ---------------------------------------------------------------------


def test_a_check_finds_a_key_that_others_may_read_and_a_node_that_was_replaced(served: Served) -> None:
    home = served.home(f"127.0.0.1:{free_port()}", served.authority.pem)
    key = home.path / "keys" / "node.pem"
    before = key.read_bytes()
    try:
        key.chmod(0o644)
        found_by_check(home, "E_KEY_FILE")
        fresh = ec.generate_private_key(ec.SECP256R1())
        key.write_bytes(fresh.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        key.chmod(0o600)
        found_by_check(home, "E_NODE_REFUSED")
    finally:
        key.write_bytes(before)
        key.chmod(0o600)


def test_a_check_before_joining_needs_no_home_and_finds_name_port_and_what_is_no_hub(
    served: Served, tmp_path: Path
) -> None:
    nowhere = Home(tmp_path / "none", "", "", "", "", "")
    _, answer, _ = command(nowhere, "site", "check", "--hub", f"http://127.0.0.1:{served.port}")
    states = {each["what"]: each["state"] for each in answer["findings"]}
    assert (states["hub"], states["hub's answer"], states["clock"]) == ("ok", "ok", "ok"), answer
    for url, code in (
        ("https://no-such-host.invalid", "E_DNS"),
        (f"http://127.0.0.1:{free_port()}", "E_PORT_REFUSED"),
        (f"https://127.0.0.1:{served.port}", "E_TLS"),
    ):
        bad, answer, _ = command(nowhere, "site", "check", "--hub", url)
        first = answer["findings"][0]
        assert bad is Exit.REFUSED and first["code"] == code and first["step"] == cause_of(code).step
    refused, answer, _ = command(nowhere, "site", "check")
    assert refused is Exit.FAILED and answer["code"] == "E_HOME"
    refused, answer, _ = command(nowhere, "site", "check", "--invitation", "damaged")
    assert refused is Exit.FAILED and answer["code"] == "E_INVITATION"
    assert not nowhere.path.exists()


def test_a_clock_that_is_off_is_told_by_login_and_check(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = served.home(f"127.0.0.1:{free_port()}", served.authority.pem)
    with pytest.raises(Unchecked, match=r"360\d s ahead of") as caught:
        check_skew(formatdate(time.time() - 3600, usegmt=True), "hub.example")
    assert caught.value.code == "E_CLOCK"
    moved = type("Moved", (), {"time": staticmethod(lambda: time.time() + 3600), "monotonic": time.monotonic})
    monkeypatch.setattr(connection, "time", moved)
    monkeypatch.setattr(reaching, "time", moved)
    exit_code, answer, _ = command(home, "whoami")
    assert exit_code is Exit.FAILED and answer["code"] == "E_CLOCK", answer
    assert answer["step"] == cause_of("E_CLOCK").step
    found_by_check(home, "E_CLOCK")


def test_an_error_that_says_nothing_of_an_address_is_not_explained() -> None:
    assert explain(ValueError("no"), "x") is None
