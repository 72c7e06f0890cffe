"""What a site stands on, before it joins and after: connections, clock, keys, disk, data, consents.

It only looks. The connections that it opens are to the hub, to the Fleet address and to the origin that
serves downloads; to the hub it sends what any client sends to ask who it is, and nothing of the site's data.
Every finding bears a code of the table of causes, or none where all is well.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from federation.consents import find_consent
from federation.home import Home, LocalDataset, decode_invitation
from federation.reaching import Place, check_skew, fleet_place, reach, read_roots, skew_s, trusting
from storage.encoding import format_time, sha256_hex
from storage.errors import FedhubError, Refused, Rejected, Unchecked
from storage.manifests import hash_file, read_manifest
from storage.signing import key_hint

if TYPE_CHECKING:
    from federation import wire
    from federation.client import HubClient

LOW_DISK_BYTES = 1 << 30
LOW_MEMORY_BYTES = 512 << 20
ANSWER_S = 5.0
LARGE_BYTES = 1 << 30  # a dataset's file above this is looked at, not read
SITE_KEYS = ("snapshot", "node")
_MODULES = {"lab": ("torch",), "text": ("torch", "transformers", "peft")}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. ``code`` is empty where it is well or could not be looked at.

    Attributes:
        state: ``ok``, ``broken``, or ``skipped`` with the reason in ``seen``.
    """

    what: str
    state: str
    seen: str
    code: str = ""


def ok(what: str, seen: str) -> Finding:
    """It is well."""
    return Finding(what, "ok", seen)


def broken(what: str, error: FedhubError) -> Finding:
    """It is not."""
    return Finding(what, "broken", error.message, error.code)


def skipped(what: str, why: str) -> Finding:
    """It could not be looked at."""
    return Finding(what, "skipped", why)


def look(what: str, check: Callable[[], str]) -> Finding:
    """What a check saw, or why it is broken."""
    try:
        return ok(what, check())
    except (Refused, Rejected, Unchecked) as error:
        return broken(what, error)


# --- before joining ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """Where a hub is, and whom to believe there, as far as it is known."""

    endpoint: str
    fleet: str = ""
    roots: bytes | None = None


def target_of(hub: str | None, invitation: str | None, home: Home | None) -> Target:
    """The hub to look at: named, invited to, or the home's own.

    Raises:
        Unchecked: ``E_INVITATION``; ``E_HOME``: none of the three is there.
    """
    if invitation is not None:
        found = decode_invitation(invitation)
        return Target(str(found.get("endpoint")), "", str(found.get("fleet_ca", "")).encode())
    if hub is not None:
        return Target(hub)
    if home is None:
        hint = "name the hub before joining: fedhub site check --hub URL, or --invitation CODE"
        raise Unchecked("E_HOME", "there is no home here, and no hub was named", hint)
    roots = None
    if (home.path / "fleet-ca.pem").exists():
        roots = read_roots(home.path)
    return Target(home.endpoint, home.fleet, roots)


def check_hub(target: Target) -> Iterator[Finding]:
    """Name, port, certificate and clock of the hub; then the Fleet address and the download origin."""
    parts = urlsplit(target.endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        wrong = Unchecked("E_DNS", f"{target.endpoint!r} is no http(s) address")
        yield broken("hub", wrong)
        return
    place = Place(
        parts.hostname, parts.port or (443 if parts.scheme == "https" else 80), parts.scheme == "https"
    )
    found = look("hub", lambda: _reached(place, None))
    yield found
    if found.state != "ok":
        yield skipped("clock", "the hub cannot be reached")
        yield from _check_fleet(target, None)
        return
    from federation.connection import ask_hub

    try:
        info, date = ask_hub(target.endpoint, ANSWER_S)
    except Unchecked as error:
        yield broken("hub's answer", error)
        yield from _check_fleet(target, None)
        return
    yield ok("hub's answer", f"{info.origin}, fedhub {info.version}, operated by {info.operator}")
    yield look("clock", lambda: _clock(date, target.endpoint))
    yield from _check_fleet(target, info)
    yield look("download origin", lambda: _reached(place_of(info.log_base), None))


def place_of(url: str) -> Place:
    """Host and port of a URL.

    Raises:
        Unchecked: ``E_HUB_ANSWER``: it has none.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Unchecked("E_HUB_ANSWER", f"{url!r} is no http(s) address")
    tls = parts.scheme == "https"
    return Place(parts.hostname, parts.port or (443 if tls else 80), tls)


def _reached(place: Place, roots: bytes | None) -> str:
    reach(place, None if roots is None else trusting(roots))
    return f"{place} answers{' by its certificate' if place.tls else ''}"


def _clock(date: str | None, endpoint: str) -> str:
    check_skew(date, endpoint)
    ahead = skew_s(date)
    return "the hub tells no time" if ahead is None else f"{abs(ahead):.0f} s from the hub's"


def _check_fleet(target: Target, info: "wire.HubInfo | None") -> Iterator[Finding]:
    fleet = target.fleet or (info.fleet if info is not None else "")
    roots = target.roots or (info.fleet_ca.encode() if info is not None else None)
    if not fleet or roots is None:
        yield skipped("fleet", "its address is not known yet")
        return
    yield look("fleet", lambda: _reached(fleet_place(fleet), roots))


# --- the machine ------------------------------------------------------------------------------------------


def check_machine(home: Home | None) -> Iterator[Finding]:
    """Disk, memory, and the modules that recipes need."""
    from federation.recipes.catalogue import RECIPES

    folder = (home.site if home is not None else Path()).absolute()
    while not folder.exists():
        folder = folder.parent
    need = LOW_DISK_BYTES + 2 * max((_size(each.manifest) for each in _datasets(home)), default=0)
    yield look("disk", lambda: _room(folder, need))
    yield look("memory", _memory)
    for recipe in RECIPES.values():
        yield _recipe(recipe.name, recipe.extra)


def _room(folder: Path, need: int) -> str:
    free = shutil.disk_usage(folder).free
    if free < need:
        raise Unchecked("E_SITE_DISK", f"{free >> 20:,} MiB free at {folder}, {need >> 20:,} MiB are needed")
    return f"{free >> 20:,} MiB free at {folder}"


def _memory() -> str:
    told = [line for line in _lines("/proc/meminfo") if line.startswith("MemAvailable")]
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if told:  # with what the system would give back
        free = int(told[0].split()[1]) << 10
    if free < LOW_MEMORY_BYTES:
        raise Refused("E_OUT_OF_MEMORY", f"{free >> 20:,} MiB of memory are free")
    return f"{free >> 20:,} MiB free"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _recipe(name: str, extra: str) -> Finding:
    """The recipe's own files are here, and what its module needs is installed; nothing is imported."""
    from federation.plan import build_recipe

    what = f"recipe {name}"
    missing = [each for each in _MODULES.get(extra, ()) if find_spec(each) is None]
    if missing and extra != "lab":
        return skipped(what, f"needs {', '.join(missing)}: pip install 'fedhub[{extra}]'")
    if missing:
        return broken(what, Unchecked("E_EXTRA", f"{', '.join(missing)} is not installed"))
    return look(what, lambda: f"code {sha256_hex(build_recipe(name))[:12]}")


# --- the home ---------------------------------------------------------------------------------------------


def check_home(home: Home, name: str) -> Iterator[Finding]:
    """Keys, pins, registration, data and consents of an institution that has a home."""
    for role in SITE_KEYS:
        yield look(f"key {role}", partial(_key, home, role))
    yield look("pins", lambda: f"{len(home.pins)} institutions, operator {home.trust.operator}")
    yield look("own ring", lambda: f"version {home.ring.newest.version}")
    yield look("home folder", lambda: _writable(home))
    for dataset in _datasets(home):
        yield look(f"dataset {dataset.name}", partial(_data, dataset))
    yield from _check_hub_side(home, name)


def _datasets(home: Home | None) -> list[LocalDataset]:
    try:
        return [] if home is None else home.datasets()
    except (FedhubError, OSError):
        return []


def _size(manifest: bytes) -> int:
    try:
        return sum(entry.size for entry in read_manifest(manifest).files)
    except Rejected:
        return 0


def _key(home: Home, role: str) -> str:
    return f"{key_hint(home.key(role).public_key())[:12]}, for its owner alone"


def _writable(home: Home) -> str:
    for folder in (home.path, home.site):
        if folder.exists() and not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise Refused("E_PERMISSION", f"{folder}: this user may not read and write there")
    return str(home.path)


def _data(dataset: LocalDataset) -> str:
    """Files are there, may be read, and are what the manifest says; and their header has a label."""
    manifest = read_manifest(dataset.manifest)
    for entry in manifest.files:
        path = dataset.folder / entry.name
        try:
            size = path.stat(follow_symlinks=False).st_size
            same = size == entry.size and (size > LARGE_BYTES or hash_file(path)[0] == entry.sha256)
        except FileNotFoundError as error:
            raise Rejected("E_DATA_MISSING", f"{entry.name} is not in the dataset's folder") from error
        except PermissionError as error:
            raise Refused("E_PERMISSION", f"{entry.name}: this user may not read it") from error
        except OSError as error:
            raise Unchecked("E_SITE_IO", f"{entry.name}: {error.strerror}") from error
        if not same:
            raise Rejected("E_DATASET_CHANGED", f"{entry.name} is not what the manifest says")
    return f"{len(manifest.files)} files as their manifest says"


def _check_hub_side(home: Home, name: str) -> Iterator[Finding]:
    """What the hub says of this institution: its login, its ring, its node key."""
    try:
        with _client(home) as client:
            yield look("login", lambda: _login(client))
            yield look("operator's ring", lambda: _operator_ring(home, client))
            yield look("node registered", lambda: _registered(home, client, name))
            yield from _consents(home, client)
    except FedhubError as error:
        yield broken("login", error)


def _client(home: Home) -> "HubClient":
    """One that tries once: who checks wants to know now."""
    from federation.client import HubClient

    key = home.key("snapshot")
    return HubClient(home.endpoint, institution=home.institution, key=key, origin=home.hub, patience_s=0)


def _login(client: "HubClient") -> str:
    seen = client.whoami()
    return f"{seen.institution}, {seen.role}"


def _operator_ring(home: Home, client: "HubClient") -> str:
    operator = home.trust.operator
    return f"version {home.ring_of(operator, client).newest.version}, by the pin of {operator}"


def _registered(home: Home, client: "HubClient", name: str) -> str:
    hint = key_hint(home.key("node").public_key())
    for site in client.sites():
        if (site.institution, site.name) == (home.institution, name):
            if site.key_hint != hint:
                raise Refused("E_NODE_REFUSED", f"site {name} is registered with another node key")
            return f"{'online' if site.online else 'offline'}, seen {site.last_seen or 'never'}"
    raise Refused("E_NODE_REFUSED", f"site {name} of {home.institution} is not registered")


def _consents(home: Home, client: "HubClient") -> Iterator[Finding]:
    """Whether the runs that go on with this institution's data stand on a consent of its own."""
    try:
        plans = client.plans()
    except FedhubError as error:
        yield broken("consents", error)
        return
    for plan in plans:
        for site in plan.participants:
            if site.institution == home.institution and plan.run in ("starting", "running"):
                yield look(f"consent to plan {plan.id[:12]}", partial(_consent, home, plan.id, site.dataset))


def _consent(home: Home, plan: str, dataset: str) -> str:
    return f"until {format_time(find_consent(home, plan, dataset, 'train', now=time.time()).expires)}"
