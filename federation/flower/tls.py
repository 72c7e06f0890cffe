"""The Fleet's own certificate authority and the certificate of its public port.

Labs get the authority's certificate with their invitation and trust nothing else for this port, so no public
authority, and nobody who owns a name, can stand in the middle. The certificate is made again whenever the
hosts change or less than a month is left; the authority stays.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from storage.errors import Unchecked
from storage.signing import new_private_key, read_private_key, write_private_key

CA_DAYS = 3650
SERVER_DAYS = 366
RENEW_DAYS = 30
_EARLIER = timedelta(minutes=10)  # clocks of sites may lag


@dataclass(frozen=True)
class FleetTls:
    """Files of the Fleet port: the authority's certificate for labs, certificate and key for the listener."""

    ca: Path
    certificate: Path
    key: Path


def make_fleet_tls(folder: Path, hosts: Sequence[str]) -> FleetTls:
    """What the Fleet port needs for TLS, made where it is missing.

    Args:
        folder: of these files alone; keys are 0600.
        hosts: names and addresses by which labs reach the port.
    Raises:
        Unchecked: ``E_FLEET_TLS``: no host, or the authority's key and certificate do not belong together.
    """
    names = _alternative_names(hosts)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    files = FleetTls(folder / "fleet-ca.pem", folder / "fleet.pem", folder / "fleet.key")
    authority_key = folder / "fleet-ca.key"
    if not files.ca.exists():
        if not authority_key.exists():
            write_private_key(authority_key, new_private_key())
        _write(files.ca, _authority(read_private_key(authority_key)))
    ca = _read(files.ca)
    key = read_private_key(authority_key)
    if ca.public_key() != key.public_key():
        raise Unchecked(
            "E_FLEET_TLS", f"{files.ca} is not the certificate of {authority_key}", "restore both files"
        )
    if not _still_good(files, ca, names):
        files.key.unlink(missing_ok=True)
        server_key = new_private_key()
        write_private_key(files.key, server_key)
        _write(files.certificate, _server(server_key, names, ca, key))
    return files


def _alternative_names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for host in dict.fromkeys(hosts):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host.strip("[]"))))
        except ValueError:
            names.append(x509.DNSName(host))
    if not names:
        raise Unchecked(
            "E_FLEET_TLS", "the Fleet port has no host name", "say how labs reach it: FEDHUB_FLEET_PUBLIC"
        )
    return names


def _authority(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedhub Fleet CA")])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        _builder(name, name, key.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _server(
    key: ec.EllipticCurvePrivateKey,
    names: list[x509.GeneralName],
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedhub Fleet")])
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return (
        _builder(name, ca.subject, key.public_key(), SERVER_DAYS)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(issuer, critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + timedelta(days=days))
    )


def _still_good(files: FleetTls, ca: x509.Certificate, names: list[x509.GeneralName]) -> bool:
    if not files.certificate.exists() or not files.key.exists():
        return False
    found = _read(files.certificate)
    held = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return (
        set(names) <= set(held)
        and found.issuer == ca.subject
        and found.public_key() == read_private_key(files.key).public_key()
        and found.not_valid_after_utc - datetime.now(UTC) > timedelta(days=RENEW_DAYS)
    )


def _read(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as error:
        raise Unchecked(
            "E_FLEET_TLS", f"{path} is not a certificate in PEM", "restore it, or remove it"
        ) from error


def _write(path: Path, certificate: x509.Certificate) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    temporary.replace(path)
