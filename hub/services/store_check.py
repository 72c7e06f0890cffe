"""Whether the hub may lean on its object store: the probe of ``storage.probe``, once per store and week.

A store that passed says so in itself, bound to its address and to the promises that were tried, so that the
next start of any process is quick. A store that breaks a promise on which safety rests stops the start.
"""

import hashlib
import json
import logging
from collections.abc import Sequence

from storage.blobs import BlobStore
from storage.errors import FedhubError, Unchecked
from storage.probe import PROMISES, Finding, probe

PASSED = "probe/passed.json"
GOOD_FOR_S = 7 * 86_400  # a server behind the same address may be replaced or upgraded
_log = logging.getLogger("fedhub.store")

_ACCESS = "check address, access key and secret key, and the clocks of both machines"
WHAT_TO_DO = {
    "an order puts the bytes it names": _ACCESS,
    "an order refuses other bytes": "use a store that checks x-amz-content-sha256: MinIO, versitygw",
    "an order is good for one key": "use a store that checks signatures; switch off anonymous writing",
    "a cut upload is never visible": "use a newer version of this store, or another one",
    "parts are checked, and visible only when completed": "use a store with S3's multipart uploads",
    "bytes sent before their digest are hashed by the store, and stay as they are": (
        "use a newer version of this store, or another one"
    ),
    "a key is written once where the hub says so": "use a store that knows If-None-Match: * on PUT",
    "a signed URL reads": _ACCESS,
    "a signed URL reads a range": "no proxy before the store may drop Range headers; pulls are slow without",
    "without a right signature nothing is read": "switch off anonymous reading of the bucket",
    "a signed URL stops working in time": "compare the store's clock with this machine's",
}


def check_store(store: BlobStore, address: str, now: int) -> list[Finding]:
    """Try every promise now; a store that keeps all vital ones is noted as passed.

    Args:
        store: signs for an address that this machine reaches.
        address: the store's, from the settings.
        now: seconds since 1970.
    """
    findings = probe(store)
    if not _broken(findings):
        note = {"store": _name(address), "at": now}
        store.put(PASSED, json.dumps(note, sort_keys=True).encode())
    return findings


def ensure_safe(store: BlobStore, address: str, now: int) -> None:
    """Check a store that has not passed lately.

    Raises:
        Unchecked: ``E_STORE_UNSAFE``; it breaks a promise that safety rests on, named with what to do.
    """
    if _passed(store, address, now):
        return
    findings = check_store(store, address, now)
    for finding in findings:
        if not finding.kept and not finding.vital:
            _log.warning("the object store breaks: %s (%s)", finding.promise, finding.seen)
    broken = _broken(findings)
    if broken:
        told = "; ".join(f"'{each.promise}' does not hold ({each.seen})" for each in broken)
        raise Unchecked(
            "E_STORE_UNSAFE", f"the object store {address}: {told}", WHAT_TO_DO[broken[0].promise]
        )


def _broken(findings: Sequence[Finding]) -> list[Finding]:
    return [each for each in findings if each.vital and not each.kept]


def _name(address: str) -> str:
    """What a note is about: this address, and the promises as they are now."""
    words = [address, *(promise for promise, _attempt, _vital in PROMISES)]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()


def _passed(store: BlobStore, address: str, now: int) -> bool:
    try:
        note = json.loads(store.get(PASSED))
    except (FedhubError, ValueError):
        return False  # not noted, or the store is away: the probe says which
    return (
        isinstance(note, dict)
        and note.get("store") == _name(address)
        and isinstance(note.get("at"), int)
        and 0 <= now - note["at"] < GOOD_FOR_S
    )
