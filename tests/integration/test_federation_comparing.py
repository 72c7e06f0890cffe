"""Two versions side by side, where a version came from, licences, and how much an institution may keep."""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from federation.comparing import compare, lineage, read_header
from federation.licences import check_license
from federation.origins import Peers
from hub.services.quotas import used_bytes
from storage.errors import FedhubError, Refused, Rejected
from tests.alliances import BASE, ENGINES, FIRM, LABS, MODEL, OWNER, AllianceInProcess, open_alliance
from tests.hubs import AppTransport
from tests.stock_http import Stock


@pytest.fixture(scope="module", params=ENGINES)
def alliance(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[AllianceInProcess]:
    folder = tmp_path_factory.mktemp("comparing")
    with open_alliance(folder, request.param, superlink="external", institution_bytes=500_000) as opened:
        yield opened


def tensors(**shapes: tuple[str, list[int]]) -> bytes:
    """A safetensors file; a ``pad`` in its metadata makes the header long."""
    widths = {"F32": 4, "F16": 2}
    header: dict[str, Any] = {}
    at = 0
    for name, (dtype, shape) in shapes.items():
        size = widths[dtype]
        for side in shape:
            size *= side
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + os.urandom(at)


class Direct(Peers):
    """Answers of the download origin in process, then of the store itself."""

    def __init__(self, downloads: AppTransport, origin: str) -> None:
        super().__init__()
        self._downloads, self._origin = downloads, origin
        self.asked: list[str] = []

    def get(self, url: str, headers: Any) -> Any:
        import httpx

        self.asked.append(headers["Range"])
        if url.startswith(self._origin):
            answer = self._downloads.handle_request(httpx.Request("GET", url))
            url = answer.headers["location"]
        return super().get(url, headers)


@pytest.fixture
def peers(alliance: AllianceInProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[Direct]:
    direct = Direct(alliance.downloads, alliance.settings.downloads)
    monkeypatch.setattr("federation.comparing.Peers", lambda: direct)
    yield direct
    direct.close()


def test_files_and_tensors_are_compared_by_their_headers_alone(
    alliance: AllianceInProcess, peers: Direct
) -> None:
    name = f"{OWNER}/changing"
    first = alliance.push(
        {
            "a.safetensors": tensors(kept=("F32", [2, 3]), gone=("F32", [1]), wide=("F32", [4, 4])),
            "same.txt": b"same",
            "old.txt": b"old",
            "card.md": b"1",
        },
        name,
    )
    second = alliance.push(
        {
            "b.safetensors": tensors(kept=("F32", [2, 3]), wide=("F16", [4, 4]), fresh=("F16", [300, 300])),
            "same.txt": b"same",
            "card.md": b"2",
        },
        name,
    )
    with alliance.as_(OWNER) as owner:
        found = compare(owner, first, second)
        assert compare(owner, first, first).same
    assert asdict(found) == {
        "files_added": ["b.safetensors"],
        "files_removed": ["a.safetensors", "old.txt"],
        "files_changed": ["card.md"],
        "tensors_added": {"fresh": "F16 [300, 300]"},
        "tensors_removed": {"gone": "F32 [1]"},
        "tensors_reshaped": {"wide": ("F32 [4, 4]", "F16 [4, 4]")},
        "tensors_alike": 1,
        "unread": [],
    }
    assert not found.same
    assert all(int(asked.partition("-")[2]) < 1 << 16 for asked in peers.asked)


def test_header_longer_than_the_first_look_is_read_on(alliance: AllianceInProcess, peers: Direct) -> None:
    many = {f"layer.{n:05d}.weight": ("F16", [1]) for n in range(2000)}
    version = alliance.push({"m.safetensors": tensors(**many)}, f"{OWNER}/many")
    with alliance.as_(OWNER) as owner:
        (file,) = owner.pull(version.asset_id).files
        assert len(read_header(peers, file.url, file.name, file.size)) == 2000
    assert len(peers.asked) == 2


@pytest.mark.parametrize(
    "data",
    [b"", b"1234567", (1 << 40).to_bytes(8, "little") + b"{}", b"\2\0\0\0\0\0\0\0[]", b"\2\0\0\0\0\0\0\0{x"],
    ids=["empty", "short", "longer than itself", "no object", "no JSON"],
)
def test_file_without_a_header_is_told(alliance: AllianceInProcess, peers: Direct, data: bytes) -> None:
    alliance.hub.store.put("k", data)
    with pytest.raises(Rejected, match="E_TENSORS"):
        read_header(peers, alliance.hub.store.signed_url("k", expires_s=30), "k", len(data))


def test_stranger_compares_nothing(alliance: AllianceInProcess, peers: Direct) -> None:
    name = f"{OWNER}/closed"
    first = alliance.push({"m.safetensors": tensors(w=("F32", [1]))}, name)
    second = alliance.push({"m.safetensors": tensors(w=("F32", [2]))}, name)
    with alliance.as_(FIRM) as firm, pytest.raises(Refused, match="E_GRANT"):
        compare(firm, first, second)
    assert peers.asked == []


def test_line_of_descent_goes_back_to_the_first_version(alliance: AllianceInProcess) -> None:
    name = f"{OWNER}/growing"
    for n in range(3):
        newest = alliance.push({"config.json": b"%d" % n}, name)
    with alliance.as_(FIRM) as firm:
        line = lineage(firm, newest)
    assert [one.reference for one in line] == [f"{name}@{n}" for n in (3, 2, 1)]
    assert [one.how for one in line] == ["", "the version before it", "the version before it"]


def test_version_of_a_run_comes_from_its_plan_s_base(alliance: AllianceInProcess) -> None:
    base = alliance.push({"model.safetensors": BASE}, MODEL)
    plan = alliance.submit(base, {lab: alliance.describe(lab) for lab in LABS[:2]})
    with alliance.as_(OWNER) as owner:
        made = base.model_copy(update={"plan": plan.id, "version": 9, "statement": "f" * 64})
        line = lineage(owner, made)
    assert line[1].version is not None and line[1].rounds == plan.rounds
    assert (
        list(line[1].participants) == sorted(LABS[:2]) and line[1].how == f"the base of plan {plan.id[:12]}"
    )
    with alliance.as_(FIRM) as firm:
        hidden = lineage(firm, made)
    assert hidden[1].version is None and "not for this institution" in hidden[1].how


# --- licences and quotas ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "signed"),
    [
        ("apache-2.0", "Apache-2.0"),
        ("mit OR cc-by-4.0", "MIT OR CC-BY-4.0"),
        ("LicenseRef-Ours", "LicenseRef-Ours"),
    ],
)
def test_licence_is_signed_as_spdx_spells_it(alliance: AllianceInProcess, text: str, signed: str) -> None:
    pushed = alliance.push({"config.json": text.encode()}, f"{OWNER}/licensed", license_id=text)
    assert pushed.license == signed == check_license(text)


@pytest.mark.parametrize("text", ["other", "Apache 2", "MIT OR", "GPL-99.0", ""])
def test_licence_that_spdx_does_not_know_is_refused_before_anything_is_sent(
    alliance: AllianceInProcess, text: str
) -> None:
    with pytest.raises(Refused, match="E_LICENSE") as caught:
        check_license(text)
    assert "Apache-2.0" in caught.value.hint


def test_quota_refuses_what_does_not_fit_with_the_way_out(
    alliance: AllianceInProcess, tmp_path: Path
) -> None:
    lab = LABS[0]
    with alliance.as_(lab) as client:
        data = os.urandom(300_000)
        alliance.send(client, data)
        with pytest.raises(FedhubError) as caught:
            alliance.send(client, os.urandom(200_001))
        assert caught.value.code == "E_QUOTA" and "300,000 of 500,000" in caught.value.message
        assert "FEDHUB_INSTITUTION_BYTES" in caught.value.hint
        alliance.send(client, data)  # what is there already takes no more room
        alliance.send(client, os.urandom(200_000))
    with alliance.as_(LABS[1]) as other:
        alliance.send(other, os.urandom(300_000))  # each has its own
    with alliance.hub.database.session_scope(write=False) as session:
        assert used_bytes(session, lab) == 500_000
        assert used_bytes(session, "nobody.example") == 0


def test_file_whose_upload_has_begun_counts_once_whoever_goes_on_with_it(alliance: AllianceInProcess) -> None:
    stock, data = Stock.of(alliance, FIRM), os.urandom(400_000)
    repo, announced = f"{FIRM}/begun", (hashlib.sha256(data).hexdigest(), len(data))
    assert stock.create(repo).status_code == 200
    for _ in range(2):  # a stock client that was killed, and another one
        (found,) = stock.batch(repo, announced).json()["objects"]
        assert "upload" in found["actions"]
    with alliance.as_(FIRM) as firm:
        assert alliance.send(firm, data).state == "stored"
        with pytest.raises(FedhubError, match="E_QUOTA"):
            alliance.send(firm, os.urandom(100_001))
