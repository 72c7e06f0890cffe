"""Every parser of outside bytes meets a thousand broken documents and may only say so in our own words."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage.encoding import canonical, read_canonical, read_json, sha256_hex
from storage.errors import FedhubError
from storage.keyring import read_ring
from storage.manifests import MANIFEST_TYPE, PART_BYTES, read_manifest
from storage.signing import (
    check_signature,
    open_envelope,
    read_private_key,
    read_public_key,
    sign,
    write_private_key,
)
from storage.statements import KINDS, read_statement
from storage.tables import read_tables
from tests.vectors.make_vectors import ISSUER, KEY, example_payload, make_keyring

ROUNDS = 1000
FIRST, SECOND = make_keyring()
ODD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    2**53,
    10**400,
    1.5,
    float("inf"),
    "",
    "x" * 5000,
    "\u0000",
    "\ud800",
    "٣",
    [],
    [[]],
    {},
    {"": None},
    "E_X",
    "0" * 64,
    "2026-11-25T22:00:00Z",
]


def edited_bytes(raw: bytes, dice: random.Random) -> bytes:
    """The document with some bytes replaced, removed, repeated or put in."""
    data = bytearray(raw)
    for _ in range(dice.choice((1, 1, 1, 2, 5, 20))):
        place = dice.randrange(len(data) + 1)
        match dice.randrange(4):
            case 0:
                data[place : place + 1] = bytes([dice.randrange(256)])
            case 1:
                del data[place : place + dice.choice((1, 2, 50))]
            case 2:
                data[place:place] = data[place : place + dice.choice((1, 10, 100))]
            case _:
                data[place:place] = dice.choice(
                    (b"{", b"[", b'"', b",", b"\\u", b"\xff", b"NaN", b"1e999", b"[" * 2000)
                )
    return bytes(data)


def edited_tree(value: Any, dice: random.Random) -> Any:
    """The parsed document with one value somewhere replaced, removed, renamed or repeated."""
    value = json.loads(json.dumps(value))
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        children = (
            node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        )
        for key, child in children:
            places.append((node, key))
            visit(child)

    visit(value)
    node, key = dice.choice(places)
    match dice.randrange(4):
        case 0:
            del node[key]
        case 1 if isinstance(node, dict):
            node[dice.choice(("extra", key + " ", "é", ""))] = node.pop(key)
        case 2 if isinstance(node, list):
            node.insert(key, node[key])
        case _:
            node[key] = dice.choice(ODD)
    return value


def survives(parse: Callable[[bytes], object], raw: bytes) -> bool:
    """True when accepted, False when refused in our own words; anything else fails the test."""
    try:
        parse(raw)
    except FedhubError as error:
        assert error.code.startswith("E_")
        assert error.message and "\n" not in error.message and len(error.message) < 2000
        return False
    return True


def broken(good: bytes, seed: int) -> list[bytes]:
    dice = random.Random(seed)
    document = json.loads(good)
    texts = [
        json.dumps(edited_tree(document, dice)).encode("utf-8", "surrogatepass") for _ in range(ROUNDS // 2)
    ]
    return texts + [edited_bytes(good, dice) for _ in range(ROUNDS // 2)]


MANIFEST = canonical(
    {
        "files": [
            {"name": "a", "sha256": "0" * 64, "size": 1},
            {"name": "b/c", "sha256": "1" * 64, "size": PART_BYTES + 1, "parts": ["2" * 64, "3" * 64]},
        ],
        "name": "owner.example/m",
        "type": MANIFEST_TYPE,
        "salt": "4" * 64,
    }
)


def read_bundle(raw: bytes) -> object:
    envelope = open_envelope(raw)
    check_signature(KEY.public_key(), envelope)
    return read_statement(envelope)


PARSERS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "json": (read_json, MANIFEST),
    "canonical": (read_canonical, MANIFEST),
    "bundle": (read_bundle, sign(KEY, example_payload("grant"))),
    "manifest": (read_manifest, MANIFEST),
    "first ring": (lambda raw: read_ring(ISSUER, [raw], sha256_hex(raw)), FIRST),
    "second ring": (lambda raw: read_ring(ISSUER, [FIRST, raw], sha256_hex(FIRST)), SECOND),
}


@pytest.mark.parametrize("name", PARSERS)
def test_parser_refuses_broken_documents_in_our_own_words(name: str) -> None:
    parse, good = PARSERS[name]
    assert survives(parse, good)
    accepted = [raw for raw in broken(good, seed=7) if survives(parse, raw)]
    if name in ("bundle", "first ring"):
        # White space between members, an empty member left out, or a signature over the threshold.
        assert len(accepted) < ROUNDS // 20


@pytest.mark.parametrize("kind", KINDS)
def test_signed_but_broken_statement_is_refused_in_our_own_words(kind: str) -> None:
    def parse(payload: bytes) -> object:
        return read_statement(open_envelope(sign(KEY, payload)))

    good = example_payload(kind)
    assert survives(parse, good)
    for raw in broken(good, seed=len(kind))[:: 2 if KINDS[kind].own else 1]:
        survives(parse, raw)


def test_public_key_texts_are_refused_in_our_own_words() -> None:
    dice = random.Random(3)
    good = json.loads(FIRST)["signed"]["keys"].popitem()[1]["keyval"]["public"]
    for _ in range(ROUNDS):
        text = edited_bytes(good.encode(), dice).decode("latin-1")
        survives(lambda raw: read_public_key(raw.decode("latin-1"), "E_KEYRING"), text.encode("latin-1"))


def test_private_key_files_are_refused_in_our_own_words(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    write_private_key(path, KEY)
    good, dice = path.read_bytes(), random.Random(4)
    for _ in range(200):
        path.write_bytes(edited_bytes(good, dice))
        survives(lambda _: read_private_key(path), b"")


def test_tables_are_refused_in_our_own_words(tmp_path: Path) -> None:
    good, dice = b'label,p00,"a b"\r\n1,0.5,"x, y"\r\n2,,NA\r\n' * 3, random.Random(5)
    for _ in range(ROUNDS):
        (tmp_path / "t.csv").write_bytes(edited_bytes(good, dice))
        survives(lambda _: read_tables(tmp_path, ["t.csv"]), b"")
