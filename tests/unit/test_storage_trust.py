"""``trust.json``: what it must say, and that its faults are the reader's own."""

import json
from typing import Any

import pytest

from storage.errors import Exit, Unchecked
from storage.trust import Trust
from tests.simulators import HUB, OPERATOR, OWNER, Alliance


@pytest.fixture(scope="module")
def alliance() -> Alliance:
    return Alliance((OPERATOR, OWNER))


def test_a_trust_file_is_read_with_its_defaults(alliance: Alliance) -> None:
    found = alliance.trust()
    assert (found.hub, found.operator, found.max_checkpoint_age) == (HUB, OPERATOR, 86_400)
    assert set(found.institutions) == {OPERATOR, OWNER}
    assert found.policy.quorum == "g"
    assert len(found.digest) == 64


def test_a_trust_file_names_its_own_age_limit(alliance: Alliance) -> None:
    assert alliance.trust(maxCheckpointAge=60).max_checkpoint_age == 60


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 1},
        {"hub": "Hub.example"},
        {"hub": "hub"},
        {"hub": 7},
        {"operator": "../x"},
        {"policy": None},
        {"policy": ""},
        {"policy": "quorum none\nquorum none\n"},
        {"policy": "log nonsense\nquorum none\n"},
        {"institutions": []},
        {"institutions": {"owner.example": "short"}},
        {"institutions": {"../owner.example": "0" * 64}},
        {"institutions": {"owner.example": None}},
        {"maxCheckpointAge": 0},
        {"maxCheckpointAge": True},
        {"maxCheckpointAge": "86400"},
    ],
)
def test_a_trust_file_with_a_fault_is_refused_as_the_readers_own(
    alliance: Alliance, change: dict[str, Any]
) -> None:
    with pytest.raises(Unchecked) as caught:
        Trust.read(json.dumps(alliance.trust_document(**change)).encode())
    assert (caught.value.code, caught.value.exit) == ("E_TRUST", Exit.FAILED)


@pytest.mark.parametrize("name", ["hub", "operator", "policy", "institutions"])
def test_a_trust_file_without_a_member_is_refused(alliance: Alliance, name: str) -> None:
    document = alliance.trust_document()
    del document[name]
    with pytest.raises(Unchecked, match="E_TRUST"):
        Trust.read(json.dumps(document).encode())


@pytest.mark.parametrize("raw", [b"", b"[]", b"null", b'{"hub":1,"hub":2}', b"\xff", b'"x"', b"[" * 100_000])
def test_what_is_no_json_object_is_no_trust_file(raw: bytes) -> None:
    with pytest.raises(Unchecked, match="E_TRUST"):
        Trust.read(raw)
