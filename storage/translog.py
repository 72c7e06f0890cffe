"""Publishes the transparency log: entry bundles, tiles and checkpoints as static files, and proofs from them.

Layout under ``log/`` (C2SP tlog-tiles)::

    checkpoint                       the newest head; the only object that is ever replaced
    checkpoints/<size>               every head ever published
    tile/<L>/<NNN>[.p/<W>]           up to 256 hashes of 32 bytes
    tile/entries/<NNN>[.p/<W>]       up to 256 entries, each behind its length as uint16, big-endian

Which entry has which index is decided before, in the hub's database, one transaction per batch; here an entry
only gets published. Bundles and tiles are a pure function of those rows, so whoever publishes the same rows
writes the same bytes, and a crash anywhere is repaired by publishing again. The caller holds a lock for the
time of ``publish`` and stores the new head afterwards; ``check_start`` covers a crash between the two.

Adding one entry reads no more than the last unfinished tile of each level above the lowest.
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from storage.blobs import BlobStore
from storage.checkpoint import Checkpoint, LogKey, Policy, Proof, check_log_signature, sign_checkpoint
from storage.errors import Misuse, Rejected
from storage.merkle import (
    HASH_BYTES,
    check_consistency,
    check_inclusion,
    consistency_ranges,
    fold,
    inclusion_ranges,
    leaf_hash,
    nodes_of,
    range_root,
)
from storage.notes import VerifierKey

PREFIX = "log/"
OTHER_LOG = (
    "the store holds the log of another key, or its checkpoint was changed: see that FEDHUB_STORE_URL and "
    "FEDHUB_DATA_DIR are of one hub, or bring the store back from a backup"
)
HEAD = PREFIX + "checkpoint"
TILE = 256  # hashes in a full tile, entries in a full bundle
MAX_ENTRY_BYTES = 65_535
MAX_HEAD_BYTES = 1 << 16

Leaves = Callable[[int, int], Sequence[bytes]]


class Cosigner(Protocol):
    """A witness that is asked while publishing: what it saw last, and its line over a newer head."""

    size: int

    def cosign(self, old: int, path: Sequence[bytes], note: bytes) -> bytes:
        """Cosignature line for ``note``, given the consistency proof from size ``old``."""


def tile_key(level: int | str, index: int, width: int = TILE) -> str:
    """Key of a tile, or of an entry bundle when ``level`` is ``"entries"``.

    >>> tile_key(0, 1234067), tile_key("entries", 5, 17)
    ('log/tile/0/x001/x234/067', 'log/tile/entries/005.p/17')
    """
    path = f"{index % 1000:03d}"
    while index := index // 1000:
        path = f"x{index % 1000:03d}/{path}"
    return f"{PREFIX}tile/{level}/{path}" + ("" if width == TILE else f".p/{width}")


def checkpoint_key(size: int) -> str:
    return f"{PREFIX}checkpoints/{size}"


class Tiles:
    """Hashes of the log of ``size`` entries, read tile by tile, each once."""

    def __init__(self, store: BlobStore, size: int) -> None:
        self._store = store
        self._cache: dict[tuple[int, int], bytes] = {}
        self.size = size

    def tile(self, level: int, index: int) -> bytes:
        """All hashes of one tile, as long as this size of the log makes it."""
        if (level, index) not in self._cache:
            width = self.width(level, index)
            raw = self._store.get(tile_key(level, index, width))
            if len(raw) != width * HASH_BYTES:
                raise Rejected(
                    "E_LOG_TILE", f"{tile_key(level, index, width)} has {len(raw)} bytes, not {width} hashes"
                )
            self._cache[level, index] = raw
        return self._cache[level, index]

    def put(self, level: int, index: int, raw: bytes) -> None:
        """Know a tile without reading it."""
        self._cache[level, index] = raw

    def width(self, level: int, index: int) -> int:
        return min(TILE, (self.size >> (8 * level)) - index * TILE)

    def node(self, level: int, index: int) -> bytes:
        """Hash of the perfect subtree over the entries ``[index << level, (index + 1) << level)``."""
        tile_level, rest = divmod(level, 8)
        first = index << rest
        raw = self.tile(tile_level, first // TILE)
        start = first % TILE * HASH_BYTES
        return fold(_hashes(raw[start : start + (HASH_BYTES << rest)]))

    def root(self) -> bytes:
        return range_root(0, self.size, self.node)

    def inclusion(self, index: int) -> list[bytes]:
        return [range_root(lo, hi, self.node) for lo, hi in inclusion_ranges(index, self.size)]

    def consistency(self, old: int) -> list[bytes]:
        return [range_root(lo, hi, self.node) for lo, hi in consistency_ranges(old, self.size)]


def _hashes(raw: bytes) -> list[bytes]:
    return [raw[i : i + HASH_BYTES] for i in range(0, len(raw), HASH_BYTES)]


def _bundle(entries: Sequence[bytes]) -> bytes:
    for entry in entries:
        if len(entry) > MAX_ENTRY_BYTES:
            raise Misuse("E_LIMIT", f"a log entry has {len(entry)} bytes, at most {MAX_ENTRY_BYTES} fit")
    return b"".join(struct.pack(">H", len(entry)) + entry for entry in entries)


def _grow(
    store: BlobStore, leaves: Leaves, old: Checkpoint | None, size: int
) -> tuple[Tiles, list[tuple[str, bytes]]]:
    """Tiles of the log at ``size`` and the objects that it adds to the log at ``old``, in writing order.

    Raises:
        Rejected: the rows or the stored tiles do not extend ``old``.
    """
    before = old.size if old else 0
    start = before - before % TILE
    rows = list(leaves(start, size))
    if len(rows) != size - start:
        raise Misuse("E_LOG_ROWS", f"asked for entries {start} to {size}, got {len(rows)}")
    tiles, objects = Tiles(store, size), list[tuple[str, bytes]]()
    for offset in range(0, len(rows), TILE):
        entries, index = rows[offset : offset + TILE], (start + offset) // TILE
        raw = b"".join(leaf_hash(entry) for entry in entries)
        tiles.put(0, index, raw)
        objects.append((tile_key("entries", index, len(entries)), _bundle(entries)))
        objects.append((tile_key(0, index, len(entries)), raw))
    known, level = Tiles(store, before), 1
    while size >> (8 * level):
        total, first = size >> (8 * level), before >> (8 * level)
        for index in range(first // TILE, -(-total // TILE)):
            kept = known.tile(level, index) if index == first // TILE and first % TILE else b""
            below = range(index * TILE + len(kept) // HASH_BYTES, min(total, (index + 1) * TILE))
            raw = kept + b"".join(fold(_hashes(tiles.tile(level - 1, child))) for child in below)
            tiles.put(level, index, raw)
            if raw != kept:
                objects.append((tile_key(level, index, len(raw) // HASH_BYTES), raw))
        level += 1
    if old and old.size:
        check_consistency(old.size, old.root, size, tiles.root(), tiles.consistency(old.size))
    return tiles, objects


def publish(
    store: BlobStore,
    key: LogKey,
    origin: str,
    leaves: Leaves,
    old: Checkpoint | None,
    size: int,
    *,
    cosigners: Sequence[Cosigner] = (),
) -> Checkpoint:
    """Publish the log's first ``size`` entries and return the new signed head.

    The caller holds the log's lock from reading ``old`` to storing the result. Repeating a call that was cut
    short writes the same bytes again.

    Args:
        leaves: entries ``[lo, hi)`` by index, as they were sequenced.
        old: the head in the database, or None before the first.
    Raises:
        Rejected: ``E_INCONSISTENT`` and the like, when the rows do not extend ``old``. Nothing was signed.
        Misuse: ``E_LOG_ROWS``; the caller's rows or sizes do not fit together.
    """
    if key.name != origin:
        raise Misuse("E_ORIGIN", f"the log key signs for {key.name}, not for {origin}")
    if size < (old.size if old else 0):
        raise Misuse("E_LOG_ROWS", f"cannot publish {size} entries over a head of {old.size if old else 0}")
    if old and old.size == size:
        return old
    tiles, objects = _grow(store, leaves, old, size)
    for name, raw in objects:
        store.put(name, raw)
    checkpoint = sign_checkpoint(key, size, tiles.root())
    for cosigner in cosigners:
        path = tiles.consistency(cosigner.size) if 0 < cosigner.size <= size else []
        note = checkpoint.note + cosigner.cosign(cosigner.size, path, checkpoint.note)
        checkpoint = Checkpoint(origin, size, checkpoint.root, note)
    store.put(checkpoint_key(size), checkpoint.note)
    store.put(HEAD, checkpoint.note)
    return checkpoint


def stored_head(store: BlobStore, log: VerifierKey) -> Checkpoint | None:
    """The published head, its signature checked, or None before the first."""
    if store.size(HEAD) is None:
        return None
    return check_log_signature(store.read(HEAD, 0, MAX_HEAD_BYTES), Policy((log,), {}, {}, "none"), log.name)


def check_start(
    store: BlobStore, log: VerifierKey, leaves: Leaves, head: Checkpoint | None, rows: int
) -> Checkpoint | None:
    """The head that the database must hold, or a stop, before a hub appends anything.

    The published head may be one step ahead of the database, when a crash lost only the last update: then it
    is returned, and the caller stores it. Everything else means that database or store were put back to an
    earlier time, and going on would show two histories to the world.

    Args:
        head: the head in the database, or None.
        rows: number of entries sequenced in the database.
    Raises:
        Rejected: ``E_LOG_FORK``.
    """
    try:
        stored = stored_head(store, log)
    except Rejected as error:
        raise Rejected(error.code, error.message, error.hint or OTHER_LOG) from error
    if stored is None and head is None:
        return None
    hint = (
        "see that FEDHUB_DATABASE_URL and FEDHUB_STORE_URL name two that belong together; where the database "
        "is an older one, from a backup: fedhub hub restore"
    )
    if stored is None or (head and stored.size < head.size):
        found = "none" if stored is None else f"one of {stored.size} entries"
        raise Rejected(
            "E_LOG_FORK",
            f"the database has a head of {head.size if head else 0} entries, the store {found}",
            hint,
        )
    if stored.size > rows:
        raise Rejected(
            "E_LOG_FORK", f"the published log has {stored.size} entries, the database {rows}", hint
        )
    if head and head.size == stored.size:
        root = head.root
    else:
        try:
            root = _grow(store, leaves, head, stored.size)[0].root()
        except Rejected as error:
            raise Rejected(
                "E_LOG_FORK", f"the database does not extend its own head: {error}", hint
            ) from error
    if root != stored.root:
        raise Rejected(
            "E_LOG_FORK", f"the published log and the database differ within {stored.size} entries", hint
        )
    return stored


# --- reading ------------------------------------------------------------------------------------------------


def inclusion_proofs(store: BlobStore, checkpoint: Checkpoint, indexes: Sequence[int]) -> list[Proof]:
    """Proofs that these entries are in the log of this checkpoint; tiles that they share are read once.

    Raises:
        Rejected: ``E_NOT_LOGGED``, an index outside, or tiles in the store that do not give this root.
    """
    tiles, proofs = Tiles(store, checkpoint.size), []
    for index in indexes:
        path = tiles.inclusion(index)
        check_inclusion(tiles.node(0, index), index, checkpoint.size, path, checkpoint.root)
        proofs.append(Proof(index, tuple(path), checkpoint.note))
    return proofs


def inclusion_proof(store: BlobStore, checkpoint: Checkpoint, index: int) -> Proof:
    """Proof that entry ``index`` is in the log of this checkpoint."""
    return inclusion_proofs(store, checkpoint, [index])[0]


def consistency_proof(store: BlobStore, checkpoint: Checkpoint, old: int) -> list[bytes]:
    """Hashes that prove that the log of this checkpoint extends its own first ``old`` entries (> 0)."""
    return Tiles(store, checkpoint.size).consistency(old)


def read_entries(store: BlobStore, checkpoint: Checkpoint) -> Iterator[list[bytes]]:
    """All entries of the log, bundle by bundle, each checked against this checkpoint's root.

    Raises:
        Rejected: ``E_LOG_TILE``; a tile or a bundle is not what the checkpoint says.
    """
    tiles, size = Tiles(store, checkpoint.size), checkpoint.size
    count = -(-size // TILE)
    lowest = [value for index in range(count) for value in _hashes(tiles.tile(0, index))]
    if range_root(0, size, nodes_of(lowest)) != checkpoint.root:
        raise Rejected("E_LOG_TILE", f"the tiles of level 0 do not give the root of checkpoint {size}")
    for index in range(count):
        name = tile_key("entries", index, tiles.width(0, index))
        entries = _split_bundle(name, store.get(name))
        if [leaf_hash(entry) for entry in entries] != lowest[index * TILE : (index + 1) * TILE]:
            raise Rejected("E_LOG_TILE", f"{name} does not hold the entries that its tile names")
        yield entries


def _split_bundle(name: str, raw: bytes) -> list[bytes]:
    entries, at = [], 0
    while at < len(raw):
        end = at + 2 + int.from_bytes(raw[at : at + 2], "big")
        if end > len(raw):
            raise Rejected("E_LOG_TILE", f"{name} ends inside an entry")
        entries.append(raw[at + 2 : end])
        at = end
    return entries
