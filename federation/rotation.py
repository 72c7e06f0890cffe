"""A fresh key for one role of an institution's ring: made, logged by the hub, then put into force."""

import shutil
import time

from federation.home import DAY_S, KEY_ROLES, RING_DAYS, Home, write_atomically
from storage.encoding import sha256_hex
from storage.errors import Unchecked
from storage.signing import new_private_key, sign, write_private_key
from storage.statements import compose


def prepare_rotation(home: Home, role: str) -> tuple[bytes, bytes]:
    """The next ring with a fresh key for ``role`` and its signed ``keyring`` statement; no change yet.

    The new key waits in ``keys/next/`` until ``finish_rotation``: a silent hub costs nothing.
    """
    from storage.ringmaker import make_ring

    if role not in KEY_ROLES:
        raise Unchecked("E_USAGE", f"{role!r} is no key role", f"one of: {', '.join(KEY_ROLES)}")
    waiting = home.path / "keys" / "next"
    shutil.rmtree(waiting, ignore_errors=True)
    waiting.mkdir(mode=0o700)
    fresh = new_private_key()
    write_private_key(waiting / f"{role}.pem", fresh)
    old_root = home.key("root")
    keys = {name: [fresh if name == role else home.key(name)] for name in KEY_ROLES}
    signers = [old_root, fresh] if role == "root" else [old_root]
    version = home.ring.newest.version + 1
    expires_at = int(time.time()) + RING_DAYS * DAY_S
    root = make_ring(
        home.institution,
        keys,
        version=version,
        expires_at=expires_at,
        signers=signers,
        before=home.ring.newest,
    )
    write_atomically(waiting / f"{version}.root.json", root)
    payload = compose(
        "keyring",
        [(f"{version}.root.json", sha256_hex(root))],
        {"version": version},
        issuer=home.institution,
        hub=home.hub,
    )
    return root, sign(keys["targets"][0], payload)


def finish_rotation(home: Home, role: str) -> int:
    """Put the waiting key and ring into force here once the hub has logged them; the ring's version.

    The ring moves first: with the new ring and the old key a signature fails closed, never the other way.
    """
    waiting = home.path / "keys" / "next"
    (root,) = waiting.glob("*.root.json")
    version = int(root.name.split(".")[0])
    root.rename(home.path / "keyring" / root.name)
    (waiting / f"{role}.pem").replace(home.path / "keys" / f"{role}.pem")
    waiting.rmdir()
    return version
