"""Whatever the tree: proofs made here are accepted here, and nothing else is."""

from hypothesis import given
from hypothesis import strategies as st

from storage.errors import Rejected
from storage.merkle import (
    check_consistency,
    check_inclusion,
    consistency_ranges,
    inclusion_ranges,
    leaf_hash,
    node_hash,
    nodes_of,
    range_root,
    root_of,
)

HASHES = [leaf_hash(b"%d" % i) for i in range(600)]
sizes = st.integers(1, 600)


def naive_root(hashes: list[bytes]) -> bytes:
    """MTH of RFC 6962 section 2.1, word for word, as the oracle."""
    if len(hashes) == 1:
        return hashes[0]
    k = 1
    while k * 2 < len(hashes):
        k *= 2
    return node_hash(naive_root(hashes[:k]), naive_root(hashes[k:]))


@given(sizes)
def test_root_equals_the_definition(size: int) -> None:
    assert root_of(HASHES[:size]) == naive_root(HASHES[:size])


@given(sizes, st.data())
def test_inclusion_proof_of_any_entry_is_accepted_and_of_another_entry_refused(
    size: int, data: st.DataObject
) -> None:
    index = data.draw(st.integers(0, size - 1))
    path = [range_root(lo, hi, nodes_of(HASHES[:size])) for lo, hi in inclusion_ranges(index, size)]
    root = root_of(HASHES[:size])
    check_inclusion(HASHES[index], index, size, path, root)
    other = data.draw(st.integers(0, size - 1).filter(lambda i: i != index)) if size > 1 else None
    for leaf, at in [
        (leaf_hash(b"x"), index),
        *([] if other is None else [(HASHES[index], other), (HASHES[other], index)]),
    ]:
        try:
            check_inclusion(leaf, at, size, path, root)
        except Rejected:
            continue
        raise AssertionError(f"entry {index} was accepted as another at {at}")


@given(sizes, st.data())
def test_consistency_proof_is_accepted_and_with_any_bit_flipped_refused(
    size: int, data: st.DataObject
) -> None:
    old = data.draw(st.integers(1, size))
    path = [range_root(lo, hi, nodes_of(HASHES[:size])) for lo, hi in consistency_ranges(old, size)]
    check_consistency(old, root_of(HASHES[:old]), size, root_of(HASHES[:size]), path)
    if not path:
        return
    which, bit = data.draw(st.integers(0, len(path) - 1)), data.draw(st.integers(0, 255))
    broken = list(path)
    broken[which] = bytes(v ^ (1 << bit % 8 if i == bit // 8 else 0) for i, v in enumerate(path[which]))
    try:
        check_consistency(old, root_of(HASHES[:old]), size, root_of(HASHES[:size]), broken)
    except Rejected:
        return
    raise AssertionError("a changed proof was accepted")
