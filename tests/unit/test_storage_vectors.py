"""Our own vectors come out of their script byte by byte."""

import json
from pathlib import Path

from storage.encoding import sha256_hex
from storage.keyring import read_ring
from storage.signing import check_signature, open_envelope
from storage.statements import KINDS, read_statement
from tests.vectors.make_vectors import EXAMPLES, ISSUER, KEY, make_keyring, make_statements

VECTORS = Path(__file__).parents[1] / "vectors"


def test_statement_vectors_are_what_their_script_makes() -> None:
    assert (VECTORS / "statements.json").read_text() == make_statements()


def test_key_ring_vectors_are_what_their_script_makes() -> None:
    assert [(VECTORS / "keyring" / f"{n}.root.json").read_bytes() for n in (1, 2)] == make_keyring()


def test_every_kind_has_a_vector_that_verifies() -> None:
    bundles = json.loads((VECTORS / "statements.json").read_text())
    assert set(bundles) == set(KINDS) == set(EXAMPLES)
    for kind, bundle in bundles.items():
        envelope = open_envelope(json.dumps(bundle).encode())
        check_signature(KEY.public_key(), envelope)
        assert read_statement(envelope).kind == kind


def test_key_ring_vector_reads_with_its_pin() -> None:
    raws = make_keyring()
    ring = read_ring(ISSUER, raws, sha256_hex(raws[0]))
    assert (ring.newest.version, ring.newest.root_threshold) == (2, 2)


def test_every_vector_file_is_named_in_the_readme() -> None:
    text = (VECTORS / "README.md").read_text()
    for path in VECTORS.iterdir():
        if path.suffix != ".py" and not path.name.startswith("__") and path.name != "README.md":
            assert f"`{path.name}" in text
