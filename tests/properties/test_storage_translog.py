"""However a log grows: it ends as if it had been written at once, and every proof from it holds."""

from hypothesis import given, settings
from hypothesis import strategies as st

from storage.checkpoint import Checkpoint, LogKey
from storage.merkle import check_consistency, check_inclusion, leaf_hash, root_of
from storage.translog import check_start, consistency_proof, inclusion_proof, publish, read_entries
from tests.memory_store import MemoryStore

KEY = LogKey.generate("hub.example")
ENTRIES = [b"entry %d" % i for i in range(2_000)]
HASHES = [leaf_hash(entry) for entry in ENTRIES]


def rows(lo: int, hi: int) -> list[bytes]:
    return ENTRIES[lo:hi]


@settings(max_examples=60)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=6), st.data())
def test_append_equals_recompute(steps: list[int], data: st.DataObject) -> None:
    store, heads = MemoryStore(), list[Checkpoint]()
    size = 0
    for step in steps:
        size = min(size + step, len(ENTRIES))
        heads.append(publish(store, KEY, "hub.example", rows, heads[-1] if heads else None, size))
    once = MemoryStore()
    publish(once, KEY, "hub.example", rows, None, size)
    assert once.objects.items() <= store.objects.items()
    assert [head.root for head in heads] == [root_of(HASHES[: head.size]) for head in heads]
    assert [entry for part in read_entries(store, heads[-1]) for entry in part] == ENTRIES[:size]

    head = data.draw(st.sampled_from(heads))
    index = data.draw(st.integers(0, head.size - 1))
    check_inclusion(HASHES[index], index, head.size, inclusion_proof(store, head, index).path, head.root)
    old = data.draw(st.sampled_from([known for known in heads if known.size <= head.size]))
    check_consistency(old.size, old.root, head.size, head.root, consistency_proof(store, head, old.size))
    assert check_start(store, KEY.public, rows, head, size) == heads[-1]
