"""The published log: layout, growth, crashes between any two writes, forks, proofs."""

from collections.abc import Sequence

import pytest

from storage.checkpoint import (
    Checkpoint,
    LogKey,
    Policy,
    Witness,
    check_quorum,
    parse_checkpoint,
    parse_proof,
    proof_text,
)
from storage.errors import Misuse, Rejected
from storage.merkle import check_consistency, check_inclusion, leaf_hash, root_of
from storage.notes import WITNESS
from storage.translog import (
    HEAD,
    check_start,
    checkpoint_key,
    consistency_proof,
    inclusion_proof,
    inclusion_proofs,
    publish,
    read_entries,
    stored_head,
    tile_key,
)
from tests.memory_store import MemoryStore

ORIGIN = "hub.example"
KEY = LogKey.generate(ORIGIN)


class Rows:
    """The sequenced entries, as a hub's database hands them out."""

    def __init__(self, salt: str = "") -> None:
        self.salt = salt
        self.asked: list[tuple[int, int]] = []

    def entry(self, index: int) -> bytes:
        return f"{self.salt}{index}".encode() * (1 + index % 3)

    def __call__(self, lo: int, hi: int) -> Sequence[bytes]:
        self.asked.append((lo, hi))
        return [self.entry(index) for index in range(lo, hi)]


class WatchedStore(MemoryStore):
    """Counts reads and breaks at the write it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []
        self.writes: list[str] = []
        self.writes_left: int | None = None

    def get(self, key: str) -> bytes:
        self.reads.append(key)
        return super().get(key)

    def put(self, key: str, data: bytes, *, create_only: bool = False) -> None:
        if self.writes_left is not None:
            if self.writes_left == 0:
                raise OSError(5, "pulled the plug")
            self.writes_left -= 1
        self.writes.append(key)
        super().put(key, data, create_only=create_only)


def grown(*sizes: int, rows: Rows | None = None) -> tuple[WatchedStore, Checkpoint]:
    store, head = WatchedStore(), None
    for size in sizes:
        head = publish(store, KEY, ORIGIN, rows or Rows(), head, size)
    assert head is not None
    return store, head


def root_at(size: int, rows: Rows | None = None) -> bytes:
    return root_of([leaf_hash((rows or Rows()).entry(index)) for index in range(size)])


def test_tile_keys_are_those_of_the_specification() -> None:
    assert tile_key(0, 1234067) == "log/tile/0/x001/x234/067"
    assert tile_key(2, 0, 1) == "log/tile/2/000.p/1"
    assert tile_key("entries", 1000, 9) == "log/tile/entries/x001/000.p/9"


def test_log_of_70000_entries_has_the_tiles_of_the_specifications_example() -> None:
    store, _ = grown(70_000)
    tiles = [key for key in store.objects if "/tile/" in key]
    assert sum("/tile/0/" in key and ".p/" not in key for key in tiles) == 273
    for key, size in [
        ("log/tile/0/273.p/112", 112),
        ("log/tile/1/000", 256),
        ("log/tile/1/001.p/17", 17),
        ("log/tile/2/000.p/1", 1),
    ]:
        assert len(store.objects[key]) == 32 * size
    assert len([key for key in tiles if "entries" not in key]) == 273 + 1 + 2 + 1


def test_log_of_256_entries_has_a_full_tile_and_a_partial_one_above() -> None:
    store, _ = grown(256)
    assert sorted(store.objects) == [
        HEAD,
        checkpoint_key(256),
        tile_key(0, 0),
        tile_key(1, 0, 1),
        tile_key("entries", 0),
    ]


def test_empty_log_has_a_signed_head_and_nothing_else() -> None:
    store, head = grown(0)
    assert sorted(store.objects) == [HEAD, checkpoint_key(0)]
    assert head.root == root_of([])


@pytest.mark.parametrize(
    "steps",
    [
        (1, 2, 3),
        (0, 255, 256, 257),
        (256, 512, 513),
        (200, 700, 65_535, 65_536, 65_537, 66_000),
        (65_792, 65_793),
    ],
)
def test_log_grown_in_steps_equals_the_log_made_at_once(steps: tuple[int, ...]) -> None:
    store, head = grown(*steps)
    at_once, other = grown(steps[-1])
    assert head.root == other.root == root_at(steps[-1])
    assert at_once.objects.items() <= store.objects.items()


@pytest.mark.parametrize("size", [1, 300, 65_535, 65_536, 65_792, 131_072, 140_000])
def test_one_more_entry_costs_one_row_read_and_at_most_one_tile_a_level(size: int) -> None:
    store, head = grown(size)
    store.reads.clear()
    store.writes.clear()
    rows = Rows()
    publish(store, KEY, ORIGIN, rows, head, size + 1)
    assert rows.asked == [(size - size % 256, size + 1)]
    assert len(store.reads) <= 2
    assert all(not key.startswith("log/tile/0/") for key in store.reads)
    assert store.writes[-2:] == [checkpoint_key(size + 1), HEAD]
    assert len(store.writes) <= 2 + 2 + 2


def test_crash_between_any_two_writes_is_repaired_by_publishing_again() -> None:
    """The head moves last, so the log stands at every moment; the retry ends with the same bytes."""
    before, head = grown(255)
    whole, _ = grown(255)
    publish(whole, KEY, ORIGIN, Rows(), head, 800)
    writes = len(whole.writes) - len(before.writes)
    assert writes == 2 * 4 + 1 + 2
    for cut in range(writes):
        store, _ = grown(255)
        store.writes_left = cut
        with pytest.raises(OSError, match=r"plug"):
            publish(store, KEY, ORIGIN, Rows(), head, 800)
        seen = stored_head(store, KEY.public)
        assert seen == head
        assert [e for part in read_entries(store, head) for e in part] == Rows()(0, 255)
        store.writes_left = None
        publish(store, KEY, ORIGIN, Rows(), head, 800)
        assert store.objects == whole.objects


def test_crash_then_more_entries_is_repaired_too() -> None:
    for cut in range(5):
        store, head = grown(3)
        store.writes_left = cut
        with pytest.raises(OSError, match=r"plug") if cut < 4 else pytest.raises(StopIteration):
            publish(store, KEY, ORIGIN, Rows(), head, 5)
            raise StopIteration
        store.writes_left = None
        newer = publish(store, KEY, ORIGIN, Rows(), head, 9)
        assert stored_head(store, KEY.public) == newer
        assert newer.root == root_at(9)


def test_head_already_published_is_not_signed_again() -> None:
    store, head = grown(5)
    store.writes.clear()
    assert publish(store, KEY, ORIGIN, Rows(), head, 5) is head
    assert store.writes == []


def test_rows_that_do_not_extend_the_head_are_never_signed() -> None:
    store, head = grown(300)
    store.writes.clear()
    with pytest.raises(Rejected, match=r"E_INCONSISTENT"):
        publish(store, KEY, ORIGIN, Rows("other"), head, 301)
    assert store.writes == []


def test_damaged_upper_tile_stops_the_log_before_it_signs() -> None:
    store, head = grown(600)
    key = tile_key(1, 0, 2)
    store.objects[key] = bytes(64)
    with pytest.raises(Rejected, match=r"E_INCONSISTENT"):
        publish(store, KEY, ORIGIN, Rows(), head, 601)
    store.objects[key] = bytes(63)
    with pytest.raises(Rejected, match=r"E_LOG_TILE.*63 bytes"):
        publish(store, KEY, ORIGIN, Rows(), head, 601)


def test_caller_that_contradicts_itself_is_told() -> None:
    store, head = grown(5)
    with pytest.raises(Misuse, match=r"over a head of 5"):
        publish(store, KEY, ORIGIN, Rows(), head, 4)
    with pytest.raises(Misuse, match=r"got 0"):
        publish(store, KEY, ORIGIN, lambda lo, hi: [], head, 6)
    with pytest.raises(Misuse, match=r"not for other\.example"):
        publish(store, KEY, "other.example", Rows(), head, 6)
    with pytest.raises(Misuse, match=r"65536 bytes"):
        publish(store, KEY, ORIGIN, lambda lo, hi: [b"x" * 65_536] * (hi - lo), None, 1)


def test_witnesses_cosign_while_publishing() -> None:
    keys = [LogKey.generate(f"w{n}.example", WITNESS) for n in range(2)]
    witnesses = [Witness(key, KEY.public, clock=lambda: 1000) for key in keys]
    store, head = MemoryStore(), None
    for size in (3, 300, 301):
        head = publish(store, KEY, ORIGIN, Rows(), head, size, cosigners=witnesses)
    policy = Policy(
        (KEY.public,), {f"w{n}": key.public for n, key in enumerate(keys)}, {"g": (2, ("w0", "w1"))}, "g"
    )
    assert check_quorum(parse_checkpoint(store.get(HEAD)), policy, 1000, 0) == 0
    assert store.get(HEAD) == store.get(checkpoint_key(301))


# --- start ----------------------------------------------------------------------------------------------------


def test_start_accepts_a_new_hub_and_the_head_it_knows() -> None:
    assert check_start(MemoryStore(), KEY.public, Rows(), None, 0) is None
    store, head = grown(5)
    assert check_start(store, KEY.public, Rows(), head, 9) == head


def test_start_after_a_crash_takes_up_the_head_whose_update_was_lost() -> None:
    for sizes in [(5, 8), (255, 257), (300, 70_000)]:
        store, newest = grown(*sizes)
        old = parse_checkpoint(store.get(checkpoint_key(sizes[0])))
        assert check_start(store, KEY.public, Rows(), old, sizes[1] + 3) == newest
    store, first = grown(4)
    assert check_start(store, KEY.public, Rows(), None, 4) == first


def test_start_from_a_restored_database_stops_before_it_forks_the_log() -> None:
    store, _ = grown(5, 8)
    old = parse_checkpoint(store.get(checkpoint_key(5)))

    class Forked(Rows):
        def entry(self, index: int) -> bytes:
            return super().entry(index) if index < 6 else b"new since the restore"

    for rows, count, match in [
        (Rows(), 7, "published log has 8 entries, the database 7"),
        (Forked(), 8, "differ within 8"),
        (Forked(), 20, "differ within 8"),
        (Rows("other"), 8, "does not extend its own head"),
    ]:
        with pytest.raises(Rejected, match=f"E_LOG_FORK.*{match}"):
            check_start(store, KEY.public, rows, old, count)


def test_start_with_a_store_older_than_the_database_stops() -> None:
    store, head = grown(5, 8)
    store.objects[HEAD] = store.objects[checkpoint_key(5)]
    with pytest.raises(Rejected, match=r"E_LOG_FORK.*head of 8 entries, the store one of 5"):
        check_start(store, KEY.public, Rows(), head, 8)
    with pytest.raises(Rejected, match=r"E_LOG_FORK.*the store none"):
        check_start(MemoryStore(), KEY.public, Rows(), head, 8)


def test_start_with_another_root_of_the_same_size_stops() -> None:
    _, head = grown(5)
    forked, _ = grown(5, rows=Rows("other"))
    with pytest.raises(Rejected, match=r"E_LOG_FORK.*differ within 5"):
        check_start(forked, KEY.public, Rows(), head, 5)


def test_start_with_another_key_than_the_logs_stops() -> None:
    store, head = grown(5)
    with pytest.raises(Rejected, match=r"E_CHECKPOINT_SIG") as caught:
        check_start(store, LogKey.generate(ORIGIN).public, Rows(), head, 5)
    assert "FEDHUB_STORE_URL" in caught.value.hint


# --- proofs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 256, 257, 70_000])
def test_proofs_from_tiles_are_accepted(size: int) -> None:
    store, head = grown(size)
    for index in {0, size // 2, size - 1}:
        proof = parse_proof(proof_text(inclusion_proof(store, head, index)))
        assert parse_checkpoint(proof.note) == head
        check_inclusion(leaf_hash(Rows().entry(index)), index, size, proof.path, head.root)
    for old in {1, (size + 1) // 2, size}:
        check_consistency(old, root_at(old), size, head.root, consistency_proof(store, head, old))


def test_proof_to_an_older_checkpoint_uses_that_checkpoints_tiles() -> None:
    store, _ = grown(200, 600)
    old = parse_checkpoint(store.get(checkpoint_key(200)))
    proof = inclusion_proof(store, old, 150)
    check_inclusion(leaf_hash(Rows().entry(150)), 150, 200, proof.path, old.root)


def test_many_proofs_read_each_tile_once() -> None:
    store, head = grown(1000)
    store.reads.clear()
    assert len(inclusion_proofs(store, head, range(0, 1000, 10))) == 100
    assert len(store.reads) == len(set(store.reads)) == 5


def test_proof_outside_the_log_or_over_damaged_tiles_is_refused() -> None:
    store, head = grown(300)
    with pytest.raises(Rejected, match=r"E_NOT_LOGGED"):
        inclusion_proof(store, head, 300)
    store.objects[tile_key(0, 0)] = bytes(8192)
    with pytest.raises(Rejected, match=r"E_NOT_LOGGED"):
        inclusion_proof(store, head, 10)


def test_entries_read_back_are_those_published() -> None:
    store, head = grown(100, 600)
    assert [entry for part in read_entries(store, head) for entry in part] == Rows()(0, 600)
    assert list(read_entries(*grown(0))) == []


@pytest.mark.parametrize(
    ("key", "raw", "match"),
    [
        (tile_key("entries", 0), b"\0\5ab", "ends inside an entry"),
        (tile_key("entries", 0), b"\0\1a", "does not hold the entries"),
        (tile_key(0, 0), bytes(8192), "do not give the root"),
    ],
)
def test_damaged_bundle_or_tile_is_named(key: str, raw: bytes, match: str) -> None:
    store, head = grown(600)
    store.objects[key] = raw
    with pytest.raises(Rejected, match=f"E_LOG_TILE.*{match}"):
        list(read_entries(store, head))
