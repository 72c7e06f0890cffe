"""Uploads by Xet, taken in as plain files: chunks are kept for hours, files are rebuilt, hashed and stored.

Newer stock clients send every large file this way without asking. They get a token for one institution, post
xorbs, then a shard that says which files they make. The hub puts each file together in pieces of 32 MiB, and
only if its SHA-256 is the one in the shard does it become a blob. Only xorbs of the same institution count,
else a hash alone would fetch another's bytes. Downloads stay plain HTTP: no answer ever names a Xet hash.

Read ``write_token``, ``take_xorb``, ``take_shard``.
"""

import secrets
from collections import OrderedDict
from dataclasses import dataclass
from threading import BoundedSemaphore
from typing import Any

import jwt
from sqlmodel import Session, col, func, select

from federation.stock_names import LARGEST_BYTES
from hub.access import Actor
from hub.context import Hub
from hub.services.downloads import Bearer, check_token
from hub.services.plain_uploads import PartHasher, blob_key, keep, usable_blobs
from hub.services.quotas import check_quota
from hub.services.revisions import Repo, check_writer
from hub.services.uploads import uploader_of
from hub.services.xet_format import ShardFile, Xorb, read_shard
from hub.tables import InstitutionRow, XorbRow
from storage.encoding import is_digest, sha256_hex
from storage.errors import Refused, Rejected, Unchecked
from storage.manifests import PART_BYTES

TOKEN_S = 3600
USED_S = 900  # how long xorbs that a shard has used are kept for the next one
XORBS_AT_HAND = 2
XORBS_MOST = 10_000  # of one institution at a time
SHARD_UNPACKED_BYTES = 4 * LARGEST_BYTES
PREFIX = "xet/"

_rebuilding = BoundedSemaphore(2)  # shards at a time: each holds a few xorbs and one part in memory


@dataclass(frozen=True)
class WriteToken:
    """What a client needs to post chunks."""

    text: str
    expires: int


def write_token(hub: Hub, bearer: Bearer, repo: Repo) -> WriteToken:
    """A token for posting chunks as this institution, as long as the bearer's own token is good."""
    check_writer(bearer.actor, repo)
    expires = hub.ledger.now() + TOKEN_S
    claims = {"sub": uploader_of(bearer.actor), "token": bearer.token_digest, "exp": expires}
    claims["jti"] = secrets.token_hex(8)
    return WriteToken(jwt.encode(claims, _secret(hub), algorithm="HS256"), expires)


def holder(hub: Hub, authorization: str | None) -> Actor:
    """Whose token this is.

    Raises:
        Refused: ``E_TOKEN`` (401).
    """
    token = (authorization or "").partition(" ")[2].strip()
    try:
        claims: dict[str, Any] = jwt.decode(
            token,
            _secret(hub),
            algorithms=["HS256"],
            options={"require": ["exp", "sub", "token"], "verify_exp": False, "verify_iat": False},
        )
    except jwt.InvalidTokenError as error:
        raise Refused("E_TOKEN", "token: not a Xet token of this hub", status=401) from error
    if claims["exp"] <= hub.ledger.now():
        raise Refused("E_TOKEN", "token: the Xet token has expired", status=401)
    with hub.database.session_scope(write=False) as session:
        member = session.get(InstitutionRow, claims["sub"])
        check_token(hub, session, claims["token"])
    if member is None or member.state != "approved":
        raise Refused("E_TOKEN", f"token: {claims['sub']} is not an approved member", status=401)
    return Actor(member.name, member.role, "personal", frozenset({"read", "write"}))


def _secret(hub: Hub) -> bytes:
    return hub.keys.derive("xet token")


# --- chunks -----------------------------------------------------------------------------------------------


def take_xorb(hub: Hub, actor: Actor, name: str, data: bytes) -> bool:
    """Keep a xorb for the shards to come; whether it is new.

    Raises:
        Rejected: ``E_XET``; it breaks a rule of the format.
    """
    if not is_digest(name):
        raise Rejected("E_XET", "xorb: its name is no hash")
    Xorb(data)
    owner, expires = uploader_of(actor), hub.ledger.now() + hub.settings.xorb_hours * 3600
    with hub.database.session_scope(write=False) as session:
        known = session.get(XorbRow, (owner, name))
        waiting = session.exec(select(func.count()).where(XorbRow.owner == owner)).one()
    if known is None and waiting >= XORBS_MOST:
        rule = f"{owner} has {waiting} xorbs that wait for a file, at most {XORBS_MOST} are kept"
        raise Refused("E_LIMIT", rule, f"They go after {hub.settings.xorb_hours} hours.", status=429)
    if known is not None and known.size == len(data) and known.expires_at > hub.ledger.now() + USED_S:
        return False
    key = f"{PREFIX}{sha256_hex(owner.encode())[:16]}/{name}.{secrets.token_hex(8)}"
    hub.store.put(key, data)
    with hub.database.session_scope() as session:
        row = session.get(XorbRow, (owner, name), with_for_update=True)
        spare = None if row is None else row.key
        row = row or XorbRow(owner=owner, hash=name, key=key, size=0, expires_at=0)
        row.key, row.size, row.expires_at = key, len(data), expires
        session.add(row)
    if spare is not None and spare != key:
        hub.store.delete(spare)
    return spare is None


# --- files ------------------------------------------------------------------------------------------------


def take_shard(hub: Hub, actor: Actor, data: bytes) -> int:
    """Rebuild, check and keep the files of a shard; a repeat finds them there. Returns how many it names.

    Raises:
        Rejected: ``E_XET`` (form, chunks that this institution did not post), ``E_DIGEST`` (other bytes).
        Refused: ``E_LIMIT``.
    """
    files = read_shard(data)
    if sum(segment.length for file in files for segment in file.segments) > SHARD_UNPACKED_BYTES:
        rule = f"a shard of files of together more than {SHARD_UNPACKED_BYTES} bytes"
        raise Refused("E_LIMIT", rule, "Upload fewer files at once.", status=413)
    for file in files:
        with hub.database.session_scope(write=False) as session:
            if file.sha256 in usable_blobs(hub, session, actor, [file.sha256]):
                continue
        with _rebuilding:
            _Builder(hub, actor).build(file)
    _age(hub, actor, {segment.xorb for file in files for segment in file.segments})
    return len(files)


class _Builder:
    """Puts one file together from chunks, holding one part of it and a few xorbs in memory."""

    def __init__(self, hub: Hub, actor: Actor) -> None:
        self._hub, self._owner = hub, uploader_of(actor)
        self._id = secrets.token_hex(16)
        self._xorbs: OrderedDict[str, Xorb] = OrderedDict()
        self._hasher = PartHasher()
        self._buffer = bytearray()
        self._key, self._multipart, self._number = "", "", 0

    def build(self, file: ShardFile) -> None:
        """Make the file a blob of the owner's."""
        length = sum(segment.length for segment in file.segments)
        limit = min(self._hub.settings.upload_limit, LARGEST_BYTES)
        if length > limit:
            raise Refused("E_LIMIT", f"a file of {length} bytes, at most {limit} are taken", status=413)
        with self._hub.database.session_scope(write=False) as session:
            check_quota(self._hub, session, self._owner, length)
        self._key = blob_key(file.sha256, self._id)
        try:
            self._write(file, length)
        except BaseException:
            if self._multipart:
                self._hub.store.abort_parts(self._key, self._multipart)
            raise

    def _write(self, file: ShardFile, length: int) -> None:
        for segment in file.segments:
            for chunk in self._xorb(segment.xorb).chunks(segment.start, segment.end):
                self._add(chunk, length)
        found, size, parts = self._hasher.result()
        if found != file.sha256:
            raise Rejected("E_DIGEST", f"the chunks make {found}, the shard says {file.sha256}")
        store = self._hub.store
        if self._multipart:
            if self._buffer:
                self._flush(bytes(self._buffer))
            store.complete_parts(self._key, self._multipart, store.stored_parts(self._key, self._multipart))
            store.sync(self._key)
        else:
            store.put(self._key, bytes(self._buffer))
        keep(self._hub, self._owner, found, size, parts, self._key, upload_id=self._id)

    def _add(self, chunk: bytes, length: int) -> None:
        self._hasher.update(chunk)
        if self._hasher.size > length:
            raise Rejected("E_XET", f"the chunks make more than the {length} bytes that the shard says")
        self._buffer += chunk
        while len(self._buffer) > PART_BYTES:
            self._flush(bytes(self._buffer[:PART_BYTES]))
            del self._buffer[:PART_BYTES]

    def _flush(self, part: bytes) -> None:
        if not self._multipart:
            self._multipart = self._hub.store.begin_parts(self._key)
        self._number += 1
        self._hub.store.put_part(self._key, self._multipart, self._number, part)

    def _xorb(self, name: str) -> Xorb:
        if name in self._xorbs:
            self._xorbs.move_to_end(name)
            return self._xorbs[name]
        with self._hub.database.session_scope(write=False) as session:
            row = session.get(XorbRow, (self._owner, name))
        if row is None:
            raise Rejected("E_XET", f"xorb {name}: not posted by {self._owner}, or too long ago")
        while len(self._xorbs) >= XORBS_AT_HAND:
            self._xorbs.popitem(last=False)
        self._xorbs[name] = Xorb(self._hub.store.get(row.key))
        return self._xorbs[name]


# --- tidying ----------------------------------------------------------------------------------------------


def _age(hub: Hub, actor: Actor, names: set[str]) -> None:
    """Xorbs that were used are wanted for moments only."""
    until = hub.ledger.now() + USED_S
    with hub.database.session_scope() as session:
        for name in sorted(names):
            row = session.get(XorbRow, (uploader_of(actor), name))
            if row is not None and row.expires_at > until:
                row.expires_at = until
                session.add(row)


def expire(hub: Hub) -> int:
    """Drop xorbs that nobody will name any more; returns how many."""
    with hub.database.session_scope(write=False) as session:
        rows = session.exec(select(XorbRow).where(col(XorbRow.expires_at) <= hub.ledger.now())).all()
    for row in rows:
        _drop(hub, row)
    return len(rows)


def _drop(hub: Hub, row: XorbRow) -> None:
    with hub.database.session_scope() as session:
        stale = _unchanged(session, row)
        if stale is None:
            return
        session.delete(stale)
    try:
        hub.store.delete(row.key)
    except Unchecked:
        return  # the store is away: an object that no row names is swept with the others


def _unchanged(session: Session, row: XorbRow) -> XorbRow | None:
    found = session.get(XorbRow, (row.owner, row.hash), with_for_update=True)
    return found if found is not None and found.key == row.key else None
