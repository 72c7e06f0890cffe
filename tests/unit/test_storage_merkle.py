"""Tree maths against the public vectors of Certificate Transparency and transparency-dev/merkle."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from storage.errors import Rejected
from storage.merkle import (
    EMPTY_ROOT,
    check_consistency,
    check_inclusion,
    consistency_ranges,
    inclusion_ranges,
    leaf_hash,
    nodes_of,
    range_root,
    root_of,
)

VECTORS = Path(__file__).parents[1] / "vectors" / "merkle"

# The 8 leaves and the 8 roots of the reference tree of certificate-transparency (cpp/merkletree/merkle_tree_test.cc).
LEAVES = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
HASHES = [leaf_hash(bytes.fromhex(leaf)) for leaf in LEAVES]


def vectors(kind: str) -> list[Any]:
    found: list[Any] = json.loads((VECTORS / f"{kind}.json").read_text())
    return found


def unb(text: str | None) -> bytes:
    return base64.b64decode(text or "")


def test_empty_tree_has_the_hash_of_nothing_as_root() -> None:
    assert root_of([]) == EMPTY_ROOT
    assert EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize("size", range(1, 9))
def test_reference_tree_has_its_published_roots(size: int) -> None:
    assert root_of(HASHES[:size]).hex() == ROOTS[size - 1]


def test_reference_tree_has_its_published_inclusion_path() -> None:
    # PATH(5, D[8]) of the same reference test, bottom up.
    path = [range_root(lo, hi, nodes_of(HASHES)) for lo, hi in inclusion_ranges(5, 8)]
    assert [value.hex()[:16] for value in path] == [
        "bc1a0643b12e4d2d",
        "ca854ea128ed050b",
        "d37ee418976dd957",
    ]


def test_reference_tree_has_its_published_consistency_proof() -> None:
    # PROOF(6, D[8]) of the same reference test.
    proof = [range_root(lo, hi, nodes_of(HASHES)) for lo, hi in consistency_ranges(6, 8)]
    assert [value.hex()[:16] for value in proof] == [
        "0ebc5d3437fbe2db",
        "ca854ea128ed050b",
        "d37ee418976dd957",
    ]


@pytest.mark.parametrize("vector", vectors("inclusion"), ids=lambda vector: str(vector["file"]))
def test_public_inclusion_vector_is_judged_as_published(vector: Any) -> None:
    args = (
        unb(vector["leafHash"]),
        vector["leafIdx"],
        vector["treeSize"],
        [unb(value) for value in vector["proof"] or []],
        unb(vector["root"]),
    )
    if vector["wantErr"]:
        with pytest.raises(Rejected, match=r"E_NOT_LOGGED"):
            check_inclusion(*args)
    else:
        check_inclusion(*args)


@pytest.mark.parametrize("vector", vectors("consistency"), ids=lambda vector: str(vector["file"]))
def test_public_consistency_vector_is_judged_as_published(vector: Any) -> None:
    args = (
        vector["size1"],
        unb(vector["root1"]),
        vector["size2"],
        unb(vector["root2"]),
        [unb(value) for value in vector["proof"] or []],
    )
    # We refuse size 0 always: no caller of ours may take "nothing saved" for a proof.
    if vector["wantErr"] or vector["size1"] == 0:
        with pytest.raises(Rejected, match=r"E_ROLLBACK|E_SPLIT_VIEW|E_INCONSISTENT"):
            check_consistency(*args)
    else:
        check_consistency(*args)


def test_hash_of_another_length_is_refused_before_it_is_hashed() -> None:
    with pytest.raises(Rejected, match=r"31 bytes, expected 32"):
        check_inclusion(HASHES[0], 0, 2, [HASHES[1][:31]], root_of(HASHES[:2]))
    with pytest.raises(Rejected, match=r"33 bytes, expected 32"):
        check_consistency(1, HASHES[0], 2, root_of(HASHES[:2]), [HASHES[1] + b"\0"])


def test_shrinking_log_is_a_rollback_and_two_logs_of_one_size_a_split_view() -> None:
    with pytest.raises(Rejected, match=r"E_ROLLBACK"):
        check_consistency(3, root_of(HASHES[:3]), 2, root_of(HASHES[:2]), [])
    with pytest.raises(Rejected, match=r"E_SPLIT_VIEW"):
        check_consistency(3, root_of(HASHES[:3]), 3, root_of(HASHES[1:4]), [])


def test_consistency_from_size_zero_is_refused() -> None:
    with pytest.raises(Rejected, match=r"nothing can be proved from size 0"):
        check_consistency(0, EMPTY_ROOT, 2, root_of(HASHES[:2]), [])
    with pytest.raises(Rejected, match=r"E_INCONSISTENT"):
        consistency_ranges(0, 2)


def test_endless_path_is_refused_unread() -> None:
    with pytest.raises(Rejected, match=r"more than any tree needs"):
        check_inclusion(HASHES[0], 0, 2, [HASHES[1]] * 10_000, root_of(HASHES[:2]))
