"""The Fleet's own authority: labs believe its certificate and no other, and it outlives every certificate."""

import socket
import ssl
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from federation.flower import tls
from federation.flower.tls import FleetTls, make_fleet_tls
from storage.errors import Unchecked


def names(files: FleetTls) -> list[str]:
    found = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    held = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return sorted(str(name.value) for name in held)


def handshake(files: FleetTls, roots: bytes, host: str) -> None:
    """One TLS connection to a listener with these files, by a client that trusts ``roots`` alone."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files.certificate, files.key)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(cadata=roots.decode())
    left, right = socket.socketpair()

    def answer() -> None:
        try:
            server.wrap_socket(right, server_side=True).close()
        except (ssl.SSLError, OSError):
            right.close()

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        client.wrap_socket(left, server_hostname=host).close()
    finally:
        left.close()
        thread.join()


@pytest.mark.parametrize("host", ["fleet.example", "127.0.0.1", "::1"])
def test_a_client_with_the_authority_accepts_the_names_that_were_given(tmp_path: Path, host: str) -> None:
    files = make_fleet_tls(tmp_path, ["fleet.example", "127.0.0.1", "[::1]"])
    handshake(files, files.ca.read_bytes(), host)


def test_another_name_or_another_authority_is_refused(tmp_path: Path) -> None:
    files = make_fleet_tls(tmp_path / "a", ["fleet.example"])
    other = make_fleet_tls(tmp_path / "b", ["fleet.example"])
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(files, files.ca.read_bytes(), "evil.example")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(files, other.ca.read_bytes(), "fleet.example")


def test_private_keys_can_be_read_by_their_owner_only(tmp_path: Path) -> None:
    make_fleet_tls(tmp_path, ["fleet.example"])
    for name in ("fleet-ca.key", "fleet.key"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_a_second_call_changes_nothing_and_a_new_host_changes_the_certificate_alone(tmp_path: Path) -> None:
    first = make_fleet_tls(tmp_path, ["a.example"])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    make_fleet_tls(tmp_path, ["a.example"])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    moved = make_fleet_tls(tmp_path, ["b.example"])
    assert moved.ca.read_bytes() == before["fleet-ca.pem"]
    assert names(moved) == ["b.example"]
    handshake(moved, first.ca.read_bytes(), "b.example")


def test_a_certificate_near_its_end_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "SERVER_DAYS", tls.RENEW_DAYS - 1)
    old = make_fleet_tls(tmp_path, ["a.example"]).certificate.read_bytes()
    monkeypatch.undo()
    renewed = make_fleet_tls(tmp_path, ["a.example"]).certificate.read_bytes()
    assert renewed != old
    left = x509.load_pem_x509_certificate(renewed).not_valid_after_utc - datetime.now(UTC)
    assert left > timedelta(days=tls.RENEW_DAYS)


def test_an_authority_that_is_not_its_keys_is_named(tmp_path: Path) -> None:
    make_fleet_tls(tmp_path / "a", ["a.example"])
    make_fleet_tls(tmp_path / "b", ["a.example"])
    (tmp_path / "a" / "fleet-ca.pem").write_bytes((tmp_path / "b" / "fleet-ca.pem").read_bytes())
    with pytest.raises(Unchecked, match=r"E_FLEET_TLS.*not the certificate of"):
        make_fleet_tls(tmp_path / "a", ["a.example"])


def test_no_host_and_no_certificate_are_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(Unchecked, match=r"E_FLEET_TLS.*no host name"):
        make_fleet_tls(tmp_path, [])
    make_fleet_tls(tmp_path, ["a.example"])
    (tmp_path / "fleet-ca.pem").write_text("nonsense")
    with pytest.raises(Unchecked, match=r"E_FLEET_TLS.*not a certificate in PEM"):
        make_fleet_tls(tmp_path, ["a.example"])
