"""Bytes of clients that can send no headers, so that no store checks them: kept apart until the hub has.

A stock client gets signed URLs of the parts of an upload of its own; a file in one piece is one part, because
the URL of a part is dead once the object is joined, while that of an object could overwrite what was checked.
When the client says that all is there, the hub joins the parts and reads them once, and only if digest and
size are the announced ones do the bytes become a blob, and the uploader's to use. Bytes that the hub itself
holds (a small file, a file rebuilt from chunks) go in by ``keep`` too.

An upload's id is 128 random bits and all that its completion needs: stock clients send no token then.

Read ``batch``, ``complete``, ``keep``.
"""

import hashlib
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sqlmodel import Session, col, func, select, update

from federation.ahead import ahead
from federation.small_files import SMALL_BYTES
from federation.stock_names import LARGEST_BYTES
from federation.wire import SmallFiles
from hub.access import Actor, Thing, decide
from hub.context import Hub
from hub.errors import not_found
from hub.services.keeping import hold_blob, hold_blobs
from hub.services.quotas import check_quota
from hub.services.uploads import add_blobs, begin_anew, may_use, uploader_of
from hub.tables import BlobRow, PlainUploadRow, UnhashedUploadRow, UploadRow
from storage.encoding import is_digest, unb64
from storage.errors import Refused, Rejected, Unchecked, shown
from storage.manifests import PART_BYTES

PARTS_MOST = 10_000  # of one S3 upload
BATCH_MOST = 1000
WRITERS = 8  # to the store at once, for one request of small files


@dataclass(frozen=True)
class Wanted:
    """A file that a client announces."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Place:
    """Where a client puts an announced file; no URLs: it need not."""

    sha256: str
    size: int
    id: str = ""
    part_bytes: int = 0
    parts: tuple[str, ...] = ()  # one URL per part
    refused: str = ""  # why it is not taken


# --- announcing -------------------------------------------------------------------------------------------


def batch(hub: Hub, actor: Actor, wanted: Sequence[Wanted], *, in_parts: bool) -> list[Place]:
    """A place for each file, or none where the caller may use the same bytes already.

    Args:
        in_parts: the client can send parts.
    Raises:
        Refused: ``E_LIMIT``; too many files at once, or too many unfinished uploads.
    """
    if len(wanted) > BATCH_MOST:
        raise Refused("E_LIMIT", f"at most {BATCH_MOST} files at once, found {len(wanted)}", status=413)
    with hub.database.session_scope(write=False) as session:
        usable = usable_blobs(hub, session, actor, [one.sha256 for one in wanted if is_digest(one.sha256)])
    return [_place(hub, actor, one, usable, in_parts=in_parts) for one in wanted]


def usable_blobs(hub: Hub, session: Session, actor: Actor, digests: Sequence[str]) -> dict[str, int]:
    """Digest -> size of the blobs that the actor uploaded or may read."""
    usable = may_use(hub, session, actor, digests)
    return {row.sha256: row.size for digest in usable if (row := session.get(BlobRow, digest)) is not None}


def _place(hub: Hub, actor: Actor, one: Wanted, usable: dict[str, int], *, in_parts: bool) -> Place:
    limit = min(hub.settings.upload_limit, LARGEST_BYTES)
    if not is_digest(one.sha256) or one.size < 0:
        return Place(one.sha256, one.size, refused=f"{shown(one.sha256)} is no SHA-256 with a size")
    if one.size > limit:
        rule = f"{one.size} bytes are too many for one file, at most {limit}: save it as shards of 5 GB"
        return Place(one.sha256, one.size, refused=rule)
    if usable.get(one.sha256) == one.size:
        return Place(one.sha256, one.size)
    if one.size == 0:
        return Place(*keep_small(hub, actor, b""))
    part_bytes = max(hub.settings.plain_part_bytes, -(-one.size // PARTS_MOST)) if in_parts else one.size
    row = _with_parts(hub, _open_row(hub, actor, one))
    urls = [
        hub.store.part_url(
            row.key,
            row.multipart,
            number,
            min(part_bytes, one.size - (number - 1) * part_bytes),
            expires_s=hub.settings.plain_upload_s,
        )
        for number in range(1, -(-one.size // part_bytes) + 1)
    ]
    return Place(one.sha256, one.size, row.id, part_bytes, tuple(urls))


def _open_row(hub: Hub, actor: Actor, one: Wanted) -> PlainUploadRow:
    """The caller's unfinished upload of these bytes, or a new one; each use moves its end on."""
    uploader = uploader_of(actor)
    expires = hub.ledger.now() + hub.settings.upload_hours * 3600
    with hub.database.session_scope() as session:
        same = select(PlainUploadRow).where(
            PlainUploadRow.uploader == uploader, PlainUploadRow.sha256 == one.sha256
        )
        for row in session.exec(same.with_for_update()):
            if row.size == one.size:
                row.expires_at = expires
                session.add(row)
                return row
        waiting = select(func.count()).where(PlainUploadRow.uploader == uploader)
        if session.exec(waiting).one() >= hub.settings.uploads_open:
            raise Refused(
                "E_LIMIT",
                f"{uploader} has {hub.settings.uploads_open} unfinished uploads, no more are opened",
                f"Finish them, or wait: they expire after {hub.settings.upload_hours} hours.",
                status=429,
            )
        check_quota(hub, session, uploader, one.size, sha256=one.sha256)
    upload_id = secrets.token_hex(16)
    key = blob_key(one.sha256, upload_id)
    row = PlainUploadRow(
        id=upload_id,
        uploader=uploader,
        sha256=one.sha256,
        size=one.size,
        key=key,
        multipart=hub.store.begin_parts(key),
        expires_at=expires,
    )
    with hub.database.session_scope() as session:
        session.add(row)
    return row


def _with_parts(hub: Hub, row: PlainUploadRow) -> PlainUploadRow:
    """The upload with parts that the store knows: begun anew where it has joined or dropped them."""
    try:
        hub.store.stored_parts(row.key, row.multipart)
        return row
    except Unchecked as error:
        if error.code != "E_NO_UPLOAD":
            raise
    begin_anew(hub, row)
    with hub.database.session_scope(write=False) as session:
        return session.get(PlainUploadRow, row.id) or row


def blob_key(sha256: str, upload_id: str) -> str:
    """Where the bytes of an upload lie."""
    return f"blobs/sha256/{sha256[:2]}/{sha256}.{upload_id}"


# --- completing -------------------------------------------------------------------------------------------


def complete(hub: Hub, upload_id: str) -> None:
    """Read and hash what lies at an upload's place, once, and make it a blob; a repeat changes nothing.

    Raises:
        Unchecked: ``E_NOT_FOUND``; no such upload, or it expired.
        Refused: ``E_INCOMPLETE`` (409); bytes are missing.
        Rejected: ``E_DIGEST``; the bytes are not the announced ones, and were dropped.
    """
    with hub.database.session_scope(write=False) as session:
        row = session.get(PlainUploadRow, upload_id)
        done = session.get(UploadRow, upload_id)
    if row is None:
        if done is None or done.state != "stored":
            raise not_found("upload", "of this address", "It may have expired: send the file again.")
        return
    _join(hub, row)
    found, size, parts = hash_object(hub, row.key)
    if (found, size) != (row.sha256, row.size):
        drop(hub, row)
        raise Rejected(
            "E_DIGEST",
            f"announced were {row.size} bytes of {row.sha256}, the store holds {size} of {found}",
            "The file changed while it was sent, or the transfer failed: send it again.",
        )
    hub.store.sync(row.key)
    keep(hub, row.uploader, row.sha256, row.size, parts, row.key, upload_id=row.id)


def _join(hub: Hub, row: PlainUploadRow) -> None:
    """Make the parts one object; it may have been done by a request that was cut."""
    try:
        etags = hub.store.stored_parts(row.key, row.multipart)
    except Unchecked as error:
        if error.code != "E_NO_UPLOAD":
            raise
        if hub.store.size(row.key) is not None:
            return
        etags = {}  # the store has dropped them by a rule of its own
    if not etags:
        raise Refused("E_INCOMPLETE", f"file {row.sha256}: the store holds no bytes of it", status=409)
    hub.store.complete_parts(row.key, row.multipart, etags)


def hash_object(hub: Hub, key: str) -> tuple[str, int, list[str] | None]:
    """Digest, size and digests of the 32 MiB parts (None up to one part) of an object, in one read."""
    hasher = PartHasher()
    for chunk in ahead(hub.store.stream(key), 1):
        hasher.update(chunk)
    return hasher.result()


class PartHasher:
    """The digest of a whole and of its 32 MiB parts, fed in pieces of any length."""

    def __init__(self) -> None:
        self._whole, self._part = hashlib.sha256(), hashlib.sha256()
        self._parts: list[str] = []
        self.size = 0

    def update(self, data: bytes) -> None:
        """The next bytes."""
        self._whole.update(data)
        view = memoryview(data)
        while view:
            piece = view[: PART_BYTES - self.size % PART_BYTES]
            self._part.update(piece)
            self.size += len(piece)
            view = view[len(piece) :]
            if self.size % PART_BYTES == 0:
                self._parts.append(self._part.hexdigest())
                self._part = hashlib.sha256()

    def result(self) -> tuple[str, int, list[str] | None]:
        """Digest, size, parts."""
        parts = list(self._parts)
        if self.size % PART_BYTES:
            parts.append(self._part.hexdigest())
        return self._whole.hexdigest(), self.size, parts if self.size > PART_BYTES else None


def keep(
    hub: Hub,
    uploader: str,
    sha256: str,
    size: int,
    parts: list[str] | None,
    key: str,
    *,
    upload_id: str | None = None,
) -> None:
    """Make bytes that the hub has hashed a blob, and the uploader's to use; a second copy is dropped."""
    upload_id = upload_id or secrets.token_hex(16)
    now = hub.ledger.now()
    with hub.database.session_scope() as session:
        plain = session.get(PlainUploadRow, upload_id)
        if plain is not None:
            session.delete(plain)
        row = session.get(UploadRow, upload_id)
        if row is None:
            row = UploadRow(
                id=upload_id,
                uploader=uploader,
                sha256=sha256,
                size=size,
                parts=parts,
                key=key,
                etags={},
                state="stored",
                created_at=now,
                expires_at=now,
            )
            session.add(row)
        blob = add_blobs(hub, session, [row], "hub")[sha256]
        spare = blob.key != key
    if spare:
        hub.store.delete(key)


def keep_small(hub: Hub, actor: Actor, data: bytes) -> tuple[str, int]:
    """Make bytes at hand a blob of the actor's; returns digest and size."""
    sha256 = hashlib.sha256(data).hexdigest()
    _keep_files(hub, actor, {sha256: data})
    return sha256, len(data)


def keep_group(hub: Hub, actor: Actor, request: SmallFiles) -> None:
    """Make small files at hand blobs of the actor's, all in one transaction; a repeat changes nothing.

    Raises:
        Refused: ``E_LIMIT``; one is no small file. ``E_QUOTA``.
        Rejected: ``E_DIGEST``; one has another digest than is said.
    """
    decide(actor, "upload", Thing("small files"))
    _keep_files(hub, actor, _checked_files(request))


def _keep_files(hub: Hub, actor: Actor, files: dict[str, bytes]) -> None:
    """Put those of these files, by digest, that the actor may not use yet and nobody else has brought."""
    with hub.database.session_scope(write=False) as session:
        usable = usable_blobs(hub, session, actor, list(files))
    used = [sha256 for sha256, data in files.items() if usable.get(sha256) == len(data)]
    fresh = {sha256: files[sha256] for sha256 in files.keys() - _use_anew(hub, uploader_of(actor), used)}
    with hub.database.session_scope(write=False) as session:
        there = {sha256 for sha256 in fresh if session.get(BlobRow, sha256) is not None}
        check_quota(hub, session, uploader_of(actor), sum(map(len, fresh.values())))
    ids = {sha256: secrets.token_hex(16) for sha256 in fresh}
    missing = [sha256 for sha256 in fresh if sha256 not in there]
    with ThreadPoolExecutor(WRITERS, thread_name_prefix="small") as pool:
        for put in [
            pool.submit(hub.store.put, blob_key(sha256, ids[sha256]), fresh[sha256]) for sha256 in missing
        ]:
            put.result()
    _keep_all(hub, uploader_of(actor), fresh, ids, set(missing))


def _use_anew(hub: Hub, uploader: str, digests: Sequence[str]) -> set[str]:
    """Those of these blobs that are there still; no sweep takes them now for bytes not used for long."""
    if not digests:
        return set()
    with hub.database.session_scope() as session:
        held = hold_blobs(session, digests)
        mine = col(UploadRow.sha256).in_(held)
        uploads = update(UploadRow).where(mine, col(UploadRow.uploader) == uploader)
        session.exec(uploads.where(col(UploadRow.state) == "stored").values(created_at=hub.ledger.now()))
    return set(held)


def _checked_files(request: SmallFiles) -> dict[str, bytes]:
    """Digest -> bytes, each hashed."""
    files: dict[str, bytes] = {}
    for number, file in enumerate(request.files):
        data = unb64(file.data, "E_FIELD")
        if len(data) > SMALL_BYTES:
            raise Refused(
                "E_LIMIT", f"files.{number}: at most {SMALL_BYTES} bytes, found {len(data)}", status=413
            )
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise Rejected("E_DIGEST", f"files.{number}: the bytes do not have the digest {file.sha256}")
        files[file.sha256] = data
    return files


def _keep_all(hub: Hub, uploader: str, files: dict[str, bytes], ids: dict[str, str], put: set[str]) -> None:
    """Note blobs and whose they are to use; objects that turned out to be second copies are dropped."""
    now, spare = hub.ledger.now(), []
    with hub.database.session_scope() as session:
        for sha256 in sorted(files):  # in one order for all, so that two who hold them never wait in a ring
            key = blob_key(sha256, ids[sha256])
            row = UploadRow(
                id=ids[sha256],
                uploader=uploader,
                sha256=sha256,
                size=len(files[sha256]),
                key=key,
                etags={},
                state="stored",
                created_at=now,
                expires_at=now,
            )
            blob = hold_blob(session, sha256)
            if blob is None and sha256 not in put:  # it was swept at this moment
                hub.store.put(key, files[sha256])
                put.add(sha256)
            blob = blob or add_blobs(hub, session, [row], "hub")[sha256]
            row.key = blob.key
            session.add(row)
            if sha256 in put and blob.key != key:
                spare.append(key)
    for key in spare:
        hub.store.delete(key)


# --- tidying ----------------------------------------------------------------------------------------------


def expire(hub: Hub) -> int:
    """Drop plain uploads that nobody finished; returns how many."""
    with hub.database.session_scope(write=False) as session:
        rows = session.exec(
            select(PlainUploadRow).where(col(PlainUploadRow.expires_at) <= hub.ledger.now())
        ).all()
    for row in rows:
        drop(hub, row)
    return len(rows)


def drop(hub: Hub, row: PlainUploadRow | UnhashedUploadRow) -> None:
    """Forget an upload that nobody has checked, and its bytes."""
    with hub.database.session_scope() as session:
        stale = session.get(type(row), row.id, with_for_update=True)
        if stale is None:
            return  # it was finished meanwhile: the object is a blob's
        session.delete(stale)
    drop_object(hub, row)


def drop_object(hub: Hub, row: PlainUploadRow | UnhashedUploadRow) -> None:
    """Remove what came of an upload that has no row."""
    if row.multipart is not None:
        hub.store.abort_parts(row.key, row.multipart)
    hub.store.delete(row.key)
