"""Tree maths of RFC 6962: roots, inclusion and consistency, and nothing else.

Pure functions over 32-byte hashes, no storage and no signatures. A tree of ``n`` entries is described by
where its *perfect* subtrees lie: ``node(level, index)`` is the hash over the entries ``[index << level,
(index + 1) << level)``. Whoever holds hashes (a list in memory, tiles in a store) hands in that one function,
so that a proof read from tiles and a proof made in memory are the same code.

Read ``range_root`` first, then the two ``*_ranges`` functions (which subtrees a proof consists of), then the
two ``check_*`` functions (what a verifier does with them).
"""

import hashlib
from collections.abc import Callable, Sequence

from storage.errors import Rejected

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()
MAX_PATH = 63  # hashes; a tree of 2^53 entries needs no more, and tlog-witness allows no more

Node = Callable[[int, int], bytes]


def leaf_hash(entry: bytes) -> bytes:
    """Hash of one log entry (RFC 6962 section 2.1, prefix 0x00)."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node (RFC 6962 section 2.1, prefix 0x01)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def fold(hashes: Sequence[bytes]) -> bytes:
    """Root over a power of two of neighbouring hashes, all of one level."""
    level = list(hashes)
    while len(level) > 1:
        level = [node_hash(level[i], level[i + 1]) for i in range(0, len(level), 2)]
    return level[0]


def _split(count: int) -> int:
    """Largest power of two smaller than ``count`` (``k`` in RFC 6962), for ``count`` > 1."""
    return 1 << ((count - 1).bit_length() - 1)


def range_root(lo: int, hi: int, node: Node) -> bytes:
    """Tree hash of the entries ``[lo, hi)``, from the hashes of perfect subtrees.

    >>> range_root(0, 0, lambda level, index: b"") == EMPTY_ROOT
    True
    """
    count = hi - lo
    if count == 0:
        return EMPTY_ROOT
    if count & (count - 1) == 0 and lo % count == 0:
        return node(count.bit_length() - 1, lo // count)
    middle = lo + _split(count)
    return node_hash(range_root(lo, middle, node), range_root(middle, hi, node))


def nodes_of(hashes: Sequence[bytes]) -> Node:
    """The ``node`` function of a tree whose leaf hashes are all in memory."""

    def node(level: int, index: int) -> bytes:
        return fold(hashes[index << level : (index + 1) << level])

    return node


def root_of(hashes: Sequence[bytes]) -> bytes:
    """Root of the tree over these leaf hashes.

    >>> root_of([leaf_hash(b"")]).hex()[:16]
    '6e340b9cffb37a98'
    """
    return range_root(0, len(hashes), nodes_of(hashes))


def inclusion_ranges(index: int, size: int) -> list[tuple[int, int]]:
    """Entry ranges whose hashes prove entry ``index`` in a tree of ``size``, leaf's sibling first.

    Source: PATH(m, D[n]), RFC 6962 section 2.1.1.

    >>> inclusion_ranges(4, 7)
    [(5, 6), (6, 7), (0, 4)]
    """
    if not 0 <= index < size:
        raise Rejected("E_NOT_LOGGED", f"entry {index} is not in a log of {size} entries")
    lo, hi, ranges = 0, size, []
    while hi - lo > 1:
        middle = lo + _split(hi - lo)
        if index < middle:
            ranges.append((middle, hi))
            hi = middle
        else:
            ranges.append((lo, middle))
            lo = middle
    return ranges[::-1]


def consistency_ranges(old: int, size: int) -> list[tuple[int, int]]:
    """Entry ranges whose hashes prove that the first ``old`` entries are unchanged in a tree of ``size``.

    Source: PROOF(m, D[n]), RFC 6962 section 2.1.2. Empty when the sizes are equal.

    >>> consistency_ranges(3, 7)
    [(2, 3), (3, 4), (0, 2), (4, 7)]
    """
    if not 0 < old <= size:
        raise Rejected("E_INCONSISTENT", f"no consistency proof exists from size {old} to size {size}")
    lo, hi, whole, ranges = 0, size, True, []
    while hi != old:
        middle = lo + _split(hi - lo)
        if old <= middle:
            ranges.append((middle, hi))
            hi = middle
        else:
            ranges.append((lo, middle))
            lo, whole = middle, False
    if not whole:
        ranges.append((lo, hi))
    return ranges[::-1]


def check_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> None:
    """Accept ``leaf`` (a leaf hash) as entry ``index`` of the tree with this size and root, or raise.

    Raises:
        Rejected: ``E_NOT_LOGGED``, saying which rule failed.
    Source: RFC 9162 section 2.1.3.2, which is RFC 6962 section 2.1.1 as an algorithm.
    """
    code, what = "E_NOT_LOGGED", f"inclusion proof of entry {index} in {size}"
    if not 0 <= index < size:
        raise Rejected(code, f"{what}: the index lies outside the tree")
    _check_hashes(code, what, (leaf, root, *path))
    fn, sn, computed = index, size - 1, leaf
    for sibling in path:
        if sn == 0:
            raise Rejected(code, f"{what}: {len(path)} hashes are too many")
        if fn & 1 or fn == sn:
            computed = node_hash(sibling, computed)
            while fn and not fn & 1:
                fn >>= 1
                sn >>= 1
        else:
            computed = node_hash(computed, sibling)
        fn >>= 1
        sn >>= 1
    if sn:
        raise Rejected(code, f"{what}: {len(path)} hashes are too few")
    if computed != root:
        raise Rejected(code, f"{what}: it leads to root {computed.hex()}, the checkpoint has {root.hex()}")


def check_consistency(old: int, old_root: bytes, new: int, new_root: bytes, path: Sequence[bytes]) -> None:
    """Accept the tree ``new`` as an extension of the tree ``old``, or raise.

    Size 0 is refused: it means "nothing saved", and an empty tree proves nothing about what came after.

    Raises:
        Rejected: ``E_ROLLBACK`` (smaller), ``E_SPLIT_VIEW`` (same size, other root), ``E_INCONSISTENT``.
    Source: RFC 9162 section 2.1.4.2.
    """
    code, what = "E_INCONSISTENT", f"consistency proof from {old} to {new}"
    if new < old:
        raise Rejected("E_ROLLBACK", f"the log shrank from {old} to {new} entries")
    if old <= 0:
        raise Rejected(code, f"{what}: nothing can be proved from size {old}")
    _check_hashes(code, what, path)
    if old == new:
        if old_root != new_root:
            raise Rejected(
                "E_SPLIT_VIEW", f"two logs of {old} entries: roots {old_root.hex()}, {new_root.hex()}"
            )
        if path:
            raise Rejected(code, f"{what}: equal sizes need no hashes, found {len(path)}")
        return
    _check_hashes(code, what, (old_root, new_root))
    steps = [old_root, *path] if old & (old - 1) == 0 else list(path)
    if not path:
        raise Rejected(code, f"{what}: it holds no hash")
    fn, sn = old - 1, new - 1
    while fn & 1:
        fn >>= 1
        sn >>= 1
    first = second = steps[0]
    for sibling in steps[1:]:
        if sn == 0:
            raise Rejected(code, f"{what}: {len(path)} hashes are too many")
        if fn & 1 or fn == sn:
            first, second = node_hash(sibling, first), node_hash(sibling, second)
            while fn and not fn & 1:
                fn >>= 1
                sn >>= 1
        else:
            second = node_hash(second, sibling)
        fn >>= 1
        sn >>= 1
    if sn:
        raise Rejected(code, f"{what}: {len(path)} hashes are too few")
    if first != old_root or second != new_root:
        raise Rejected(code, f"{what}: it does not lead to both roots, so the log's history was changed")


def _check_hashes(code: str, what: str, hashes: Sequence[bytes]) -> None:
    if len(hashes) > MAX_PATH + 2:
        raise Rejected(code, f"{what}: {len(hashes)} hashes are more than any tree needs")
    for value in hashes:
        if len(value) != HASH_BYTES:
            raise Rejected(code, f"{what}: a hash has {len(value)} bytes, expected {HASH_BYTES}")
