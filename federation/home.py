"""The folder in which an institution keeps its keys, its pins and its own statements.

Everything an institution trusts starts here: ``trust.json`` pins the rings of those it deals with, and no
ring is ever accepted because the hub names it. Private keys never leave the folder, and a statement is signed
here or nowhere. Layout::

    home.json                       who this is, and where its hub is
    keys/{root,targets,snapshot,timestamp}.pem, keys/node.pem     mode 0600
    keyring/N.root.json             this institution's own ring
    trust.json state.json           what it trusts, and the last checkpoint it accepted
    fleet-ca.pem                    who may answer as the Fleet address
    statements/<id>.sigstore.json   own statements kept, consents above all
    peers/<institution>/N.root.json rings of others, checked against the pins at every reading
    site/                           ledger.db, datasets/<asset id>/
    token                           a person's personal token, in a home without keys

Not here: what the hub knows (``federation.client``), and what a site may run (``federation.agent``).
"""

import json
import os
import shutil
import tempfile
import time
from base64 import b64decode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cryptography.hazmat.primitives.asymmetric import ec

from storage.encoding import canonical, check_institution, is_digest, read_json, sha256_hex
from storage.errors import Refused, Rejected, Unchecked
from storage.keyring import KeyRing, read_ring
from storage.signing import new_private_key, open_envelope, read_private_key, sign, write_private_key
from storage.statements import KINDS, Statement, compose, compose_standard, read_statement

if TYPE_CHECKING:
    from federation.client import HubClient
    from storage.trust import Trust

KEY_ROLES = ("root", "targets", "snapshot", "timestamp")
RING_DAYS = 366
MAX_CHECKPOINT_AGE_S = 86_400
DAY_S = 86_400
REMEMBERED = 256  # documents of each kind whose meaning is kept in memory, by their bytes
_ASK = "make one with: fedhub --home DIR institution create NAME --invitation CODE"


class Rings(Protocol):
    """The part of a hub client that serves key rings."""

    def keyring(self, name: str) -> list[str]:
        """The roots of an institution's ring, oldest first, base64."""


@dataclass(frozen=True)
class Place:
    """Where an institution's hub is and what its invitation said about it."""

    hub: str  # the log's origin
    endpoint: str  # URL of the hub
    fleet: str  # host:port of the Fleet address
    fleet_ca: str  # PEM
    operator: str
    operator_pin: str  # sha256 of the operator's 1.root.json; empty while the operator makes its own home
    log_key: str  # verifier key line of the log


@dataclass(frozen=True)
class LocalDataset:
    """A dataset that lies at this site: its public name, and the folder only this machine knows."""

    asset_id: str
    name: str
    folder: Path
    manifest: bytes
    croissant: bytes


@dataclass(frozen=True)
class Home:
    """One institution's own folder, opened."""

    path: Path
    institution: str
    role: str
    hub: str
    endpoint: str
    fleet: str

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Home":
        """The home at ``path``.

        Raises:
            Unchecked: there is no home, or ``home.json`` is not one (E_HOME).
        """
        folder = Path(path)
        raw = _read(folder / "home.json", f"no home at {folder}", _ASK)
        try:
            found = read_json(raw, code="E_HOME")
        except Rejected as error:
            raise Unchecked(
                "E_HOME", f"{folder / 'home.json'} is not a home: {error.message}", _ASK
            ) from error
        members = ("institution", "role", "hub", "endpoint", "fleet")
        if not isinstance(found, dict) or set(found) != set(members):
            names = ", ".join(members)
            raise Unchecked("E_HOME", f"{folder / 'home.json'} must have exactly the members {names}", _ASK)
        for name in members:
            if not isinstance(found[name], str):
                raise Unchecked("E_HOME", f"{folder / 'home.json'}: {name} must be text", _ASK)
        return cls(folder, **found)

    @classmethod
    def create(cls, path: str | os.PathLike[str], institution: str, role: str, place: Place) -> "Home":
        """A new home with fresh keys and ring version 1; it appears at ``path`` whole or not at all.

        Raises:
            Unchecked: something is there already (E_HOME).
            Rejected: ``institution`` is no institution's name.
        """
        folder = Path(path)
        check_institution(institution)
        if folder.exists() and any(folder.iterdir()):
            raise Unchecked(
                "E_HOME", f"{folder} is not empty", "keys are never overwritten: choose another folder"
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            home = cls(made, institution, role, place.hub, place.endpoint, place.fleet)
            home._fill(place)
            if folder.exists():
                folder.rmdir()
            made.rename(folder)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
        return replace(home, path=folder)

    @classmethod
    def create_for_person(
        cls,
        path: str | os.PathLike[str],
        *,
        institution: str,
        role: str,
        endpoint: str,
        token: str,
        trust: bytes,
    ) -> "Home":
        """A home without keys: a personal token that acts for ``institution``, and the pins it was given."""
        folder = Path(path)
        if (folder / "home.json").exists():
            raise Unchecked("E_HOME", f"{folder} is a home already", "choose another folder with --home")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        hub = _trust_members(trust, folder / "trust.json")["hub"]
        write_atomically(folder / "token", token.encode(), mode=0o600)
        write_atomically(folder / "trust.json", trust)
        home = cls(folder, institution, role, hub, endpoint, "")
        home._write_card()
        return home

    def _fill(self, place: Place) -> None:
        from storage.ringmaker import make_ring

        for name in ("keys", "keyring", "statements", "peers"):
            (self.path / name).mkdir(mode=0o700)
        keys = {role: new_private_key() for role in KEY_ROLES}
        for role, key in {**keys, "node": new_private_key()}.items():
            write_private_key(self.path / "keys" / f"{role}.pem", key)
        root = make_ring(
            self.institution,
            {role: [key] for role, key in keys.items()},
            version=1,
            expires_at=int(time.time()) + RING_DAYS * DAY_S,
            signers=[keys["root"]],
        )
        pin = sha256_hex(root)
        write_atomically(self.path / "keyring" / "1.root.json", root)
        write_atomically(self.path / "fleet-ca.pem", place.fleet_ca.encode())
        trust = {
            "hub": place.hub,
            "operator": place.operator,
            "policy": f"log {place.log_key}\nquorum none\n",
            "institutions": {place.operator: place.operator_pin or pin, self.institution: pin},
            "maxCheckpointAge": MAX_CHECKPOINT_AGE_S,
        }
        write_atomically(self.path / "trust.json", _pretty(trust))
        self._write_card()

    def _write_card(self) -> None:
        card = {
            "institution": self.institution,
            "role": self.role,
            "hub": self.hub,
            "endpoint": self.endpoint,
            "fleet": self.fleet,
        }
        write_atomically(self.path / "home.json", _pretty(card))

    def moved(self, *, endpoint: str, fleet: str) -> "Home":
        """This home with its hub at another address; the pins stay, so only the address is believed."""
        home = replace(self, endpoint=endpoint, fleet=fleet)
        if home != self:
            home._write_card()
        return home

    # --- keys and statements --------------------------------------------------------------------------------

    def key(self, role: str) -> ec.EllipticCurvePrivateKey:
        """The private key of one role, or of Flower's ``node``; it may lie elsewhere (a root key should), and
        then this says so.

        Raises:
            Unchecked: the key is not in this home (E_KEY_MISSING), or others can read it.
        """
        path = self.path / "keys" / f"{role}.pem"
        if not path.exists():
            hint = "run the command where that key lies; a home made by login has no keys and cannot sign"
            raise Unchecked("E_KEY_MISSING", f"{self.institution}'s {role} key is not at {path}", hint)
        return read_private_key(path)

    @property
    def has_keys(self) -> bool:
        """Whether this home can sign at all."""
        return (self.path / "keys").is_dir()

    def sign(
        self, kind: str, subjects: list[tuple[str, str]], members: dict[str, Any], *, now: int | None = None
    ) -> bytes:
        """A signed statement of ``kind`` (short name) as its bundle, by the key of the kind's role."""
        shape = KINDS[kind]
        if shape.own:
            payload = compose(kind, subjects, members, issuer=self.institution, hub=self.hub, now=now)
        else:
            payload = compose_standard(kind, subjects, members)
        return sign(self.key(shape.role), payload)

    def keep(self, raw: bytes) -> str:
        """Store an own statement durably and give its id; a statement kept before stays as it was."""
        envelope = open_envelope(raw)
        target = self.path / "statements" / f"{envelope.id}.sigstore.json"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(target, raw)
        return envelope.id

    def statements(self, kind: str | None = None) -> Iterator[tuple[Statement, bytes]]:
        """The own statements kept here, in the order of their ids, with the text of their bundles."""
        for path in sorted((self.path / "statements").glob("*.sigstore.json")):
            raw = path.read_bytes()
            statement = _statement(raw)
            if kind is None or statement.kind == kind:
                yield statement, raw

    # --- trust ----------------------------------------------------------------------------------------------

    @property
    def trust_path(self) -> Path:
        return self.path / "trust.json"

    @property
    def state_path(self) -> Path:
        return self.path / "state.json"

    @property
    def trust(self) -> "Trust":
        """What this home trusts, read afresh from ``trust.json``."""
        return _trust(self._trust_text())

    @property
    def pins(self) -> dict[str, str]:
        """Institution -> sha256 of its ``1.root.json``, as compared by another way than the hub."""
        return dict(_pins(self._trust_text(), self.trust_path))

    def _trust_text(self) -> bytes:
        return _read(self.trust_path, f"no trust.json in {self.path}", "restore it from your backup")

    def pin(self, institution: str, digest: str) -> None:
        """Trust ``institution``'s ring from now on, by the digest of its first root.

        Raises:
            Rejected: the name or the digest is malformed.
            Refused: another pin stands there already (E_KEYRING_PIN); a pin is changed by hand or not at all.
        """
        check_institution(institution)
        if not is_digest(digest):
            raise Rejected("E_KEYRING_PIN", f"the pin of {institution} must be 64 lower-case hex digits")
        raw = self._trust_text()
        trust = _trust_members(raw, self.trust_path)
        known = trust["institutions"].get(institution)
        if known == digest:
            return
        if known is not None:
            message = f"{self.trust_path} pins {institution} to {known}, not to {digest}"
            raise Refused(
                "E_KEYRING_PIN", message, "ask them; a ring is rotated, its first root never changes"
            )
        trust["institutions"][institution] = digest
        write_atomically(self.trust_path, _pretty(trust))

    @property
    def ring(self) -> KeyRing:
        """This institution's own key ring."""
        return _ring(self.institution, self.pins[self.institution], *_roots(self.path / "keyring"))

    def ring_of(self, institution: str, client: "Rings | None" = None) -> KeyRing:
        """The ring of ``institution``, under this home's own pin, with what the hub adds to it.

        The roots that the hub serves are kept under ``peers/`` only when they continue the pinned chain, so a
        later offline reading needs no hub.

        Raises:
            Refused: this home does not pin ``institution`` (E_KEYRING_PIN).
            Rejected: the roots do not lead back to the pin.
            Unchecked: no root is cached and there is no ``client`` to ask.
        """
        if institution == self.institution and self.has_keys:
            return self.ring
        pin = self.pins.get(institution)
        if pin is None:
            hint = (
                f"compare its pin by another way, then: fedhub institution trust {institution} --pin SHA256"
            )
            raise Refused("E_KEYRING_PIN", f"this home does not pin {institution}", hint)
        folder = self.path / "peers" / institution
        cached = _roots(folder)
        served = (
            cached
            if client is None
            else [b64decode(root, validate=True) for root in client.keyring(institution)]
        )
        if not cached and client is None:
            raise Unchecked(
                "E_KEYRING_UNKNOWN", f"no ring of {institution} is kept in {folder}", "ask the hub first"
            )
        if len(served) < len(cached) or served[: len(cached)] != cached:
            message = f"the hub shows an older or another ring of {institution} than this home has seen"
            raise Rejected("E_KEYRING", message, "a ring only grows: ask the institution, then the operator")
        ring = _ring(institution, pin, *served)
        folder.mkdir(parents=True, exist_ok=True)
        for number, root in enumerate(served, start=1):
            if number > len(cached):
                write_atomically(folder / f"{number}.root.json", root)
        return ring

    # --- the hub --------------------------------------------------------------------------------------------

    def client(self, role: str = "targets") -> "HubClient":
        """A client that proves itself by this institution's key of ``role``, or by a person's token."""
        from federation.client import HubClient

        if (self.path / "token").exists() and not self.has_keys:
            token = (self.path / "token").read_text().strip()
            return HubClient(self.endpoint, institution=self.institution, token=token)
        return HubClient(self.endpoint, institution=self.institution, key=self.key(role), origin=self.hub)

    # --- the site -------------------------------------------------------------------------------------------

    @property
    def site(self) -> Path:
        return self.path / "site"

    def add_dataset(self, name: str, folder: Path, manifest: bytes, croissant: bytes) -> LocalDataset:
        """Remember where a described dataset lies; its manifest never leaves this folder."""
        asset_id = sha256_hex(manifest)
        place = self.site / "datasets" / asset_id
        place.mkdir(parents=True, exist_ok=True)
        write_atomically(place / "manifest.json", manifest)
        write_atomically(place / "croissant.json", croissant)
        card = {"name": name, "folder": str(folder.resolve())}
        write_atomically(place / "dataset.json", _pretty(card))
        return LocalDataset(asset_id, name, folder.resolve(), manifest, croissant)

    def has_dataset(self, asset_id: str) -> bool:
        """Whether the dataset was described at this site."""
        return (self.site / "datasets" / asset_id / "dataset.json").exists()

    def dataset(self, asset_id: str) -> LocalDataset:
        """The dataset ``asset_id`` at this site.

        Raises:
            Unchecked: it was never described here (E_DATASET_UNKNOWN).
        """
        place = self.site / "datasets" / asset_id
        hint = "describe it with: fedhub data describe FOLDER NAME"
        card = read_json(
            _read(place / "dataset.json", f"no dataset {asset_id} at this site", hint), code="E_HOME"
        )
        manifest = (place / "manifest.json").read_bytes()
        croissant = (place / "croissant.json").read_bytes()
        return LocalDataset(asset_id, card["name"], Path(card["folder"]), manifest, croissant)

    def datasets(self) -> list[LocalDataset]:
        """All datasets described at this site, in the order of their asset ids."""
        places = sorted((self.site / "datasets").glob("*/dataset.json"))
        return [self.dataset(place.parent.name) for place in places]


def write_atomically(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Put ``data`` at ``path`` whole or not at all, durable once this returns."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def decode_invitation(code: str) -> dict[str, Any]:
    """The members of an invitation code (canonical JSON in unpadded base64url).

    Raises:
        Unchecked: the text is no invitation code, for example because it was cut in a mail (E_INVITATION).
    """
    hint = "ask the operator for it again: fedhub hub invite NAME ROLE"
    text = "".join(code.split())
    try:
        raw = b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        found = read_json(raw, code="E_INVITATION")
    except (ValueError, Rejected) as error:
        raise Unchecked("E_INVITATION", "the invitation code is damaged or incomplete", hint) from error
    if not isinstance(found, dict) or canonical(found) != raw:
        raise Unchecked("E_INVITATION", "the invitation code is damaged or incomplete", hint)
    return found


# An agent asks for the same few papers with each order. The files are read each time, as they are now; what
# bytes say, and that a ring's signatures hold, is found out once for the same bytes.


@lru_cache(REMEMBERED)
def _ring(institution: str, pin: str, *roots: bytes) -> KeyRing:
    return read_ring(institution, list(roots), pin)


@lru_cache(REMEMBERED)
def _statement(bundle: bytes) -> Statement:
    return read_statement(open_envelope(bundle))


@lru_cache(REMEMBERED)
def _trust(raw: bytes) -> "Trust":
    from storage.trust import Trust

    return Trust.read(raw)


@lru_cache(REMEMBERED)
def _pins(raw: bytes, path: Path) -> Mapping[str, str]:
    pins: Mapping[str, str] = _trust_members(raw, path)["institutions"]
    return pins


def _roots(folder: Path) -> list[bytes]:
    roots: list[bytes] = []
    while (path := folder / f"{len(roots) + 1}.root.json").exists():
        roots.append(path.read_bytes())
    return roots


def _read(path: Path, missing: str, hint: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise Unchecked("E_HOME", missing, hint) from error
    except OSError as error:
        raise Unchecked("E_HOME", f"{path} cannot be read: {error.strerror}", hint) from error


def _trust_members(raw: bytes, path: Path) -> dict[str, Any]:
    try:
        trust = read_json(raw, code="E_TRUST")
    except Rejected as error:
        raise Unchecked("E_TRUST", f"{path}: {error.message}", "restore it from your backup") from error
    if not isinstance(trust, dict) or not isinstance(trust.get("institutions"), dict) or "hub" not in trust:
        raise Unchecked("E_TRUST", f"{path} has no institutions or no hub", "restore it from your backup")
    return trust


def _pretty(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"
