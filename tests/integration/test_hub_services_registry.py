"""Models, versions, tags and data sets: a version is whole, signed and safe, or it is not there."""

import base64
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from federation import wire
from federation.client import HubClient
from hub.tables import BlobRow, VersionRow
from storage.encoding import sha256_hex
from storage.errors import FedhubError, Refused
from storage.manifests import Manifest, build_manifest, oms_payload, read_manifest
from storage.signing import open_envelope, sign
from tests.alliances import ENGINES, FIRM, LABS, OWNER, AllianceInProcess, digest, open_alliance, weights

GOOD = weights(1, 2, 3)


@pytest.fixture(scope="module", params=ENGINES)
def alliance(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[AllianceInProcess]:
    with open_alliance(
        tmp_path_factory.mktemp("registry"), request.param, superlink="external", page_size=3
    ) as opened:
        yield opened


def refused(code: str, call: Any, /, *arguments: Any, **options: Any) -> FedhubError:
    with pytest.raises(FedhubError) as caught:
        call(*arguments, **options)
    assert caught.value.code == code, caught.value
    return caught.value


def papers(
    alliance: AllianceInProcess,
    manifest: Manifest,
    *,
    by: str = OWNER,
    tags: tuple[str, ...] = (),
    **members: Any,
) -> wire.VersionPost:
    """A signed version of this manifest; ``members`` change the asset statement."""
    home = alliance.homes[by]
    oms = sign(home.key("targets"), oms_payload(manifest, manifest.name))
    said = {"type": "model", "name": manifest.name, "version": 1, "oms": open_envelope(oms).id, **members}
    asset = home.sign("asset", [("manifest.json", manifest.asset_id)], said)
    return wire.VersionPost(
        manifest=base64.b64encode(manifest.raw).decode(),
        oms=oms.decode(),
        asset=asset.decode(),
        tags=list(tags),
    )


def manifest_of(folder: Path, name: str, **files: bytes) -> Manifest:
    for file, data in files.items():
        path = folder / file.replace("__", ".")
        path.write_bytes(data)
    return build_manifest(folder, name)


def test_pushed_version_has_files_tags_and_manifest(alliance: AllianceInProcess) -> None:
    pushed = alliance.push({"model.safetensors": GOOD, "README.md": b"# digits"}, tags=["base", "v1.0"])
    with alliance.as_(FIRM) as firm:
        shown = firm.version(f"{OWNER}/digits", 1)
        model = firm.model(f"{OWNER}/digits")
        raw = firm.manifest(f"{OWNER}/digits", 1)
    assert shown == pushed and model.versions == [pushed]
    assert (model.owner, model.visibility) == (OWNER, "gated")
    assert (shown.tags, shown.released, shown.plan) == (["base", "v1.0"], False, None)
    assert sha256_hex(raw) == pushed.asset_id == read_manifest(raw).asset_id
    assert {file.name: file.sha256 for file in shown.files}["model.safetensors"] == digest(GOOD)
    assert alliance.store.get(f"assets/{pushed.asset_id}/manifest.json") == raw


def test_next_version_follows_the_one_before(alliance: AllianceInProcess) -> None:
    name = f"{OWNER}/growing"
    first = alliance.push({"model.safetensors": GOOD}, name)
    second = alliance.push({"model.safetensors": weights(7)}, name)
    again = alliance.push({"model.safetensors": GOOD}, name)
    assert [first.version, second.version, again.version] == [1, 2, 3]
    assert again.asset_id == first.asset_id and again.statement != first.statement
    with alliance.as_(OWNER) as owner:
        assert [one.version for one in owner.model(name).versions] == [1, 2, 3]


@pytest.mark.parametrize(
    ("file", "data"),
    [
        ("pytorch_model.bin", pickle.dumps({"w": 1})),
        ("model.safetensors", pickle.dumps({"w": 1})),
        ("README.md", pickle.dumps([print])),
        ("model.safetensors", GOOD[:-1]),
    ],
    ids=["pickle", "pickle in disguise", "pickle as text", "broken safetensors"],
)
def test_unsafe_file_keeps_the_whole_version_out(alliance: AllianceInProcess, file: str, data: bytes) -> None:
    name = f"{OWNER}/unsafe"
    error = refused("E_UNSAFE_FORMAT", alliance.push, {"config.json": b"{}", file: data}, name)
    assert repr(file) in error.message and error.hint
    with alliance.as_(OWNER) as owner:
        refused("E_NOT_FOUND", owner.model, name)
        assert not list(owner.all_statements(kind="asset", issuer=OWNER, subject="0" * 64))


def test_unsafe_file_leaves_nothing_in_the_log(alliance: AllianceInProcess) -> None:
    with alliance.as_(OWNER) as owner:
        before = len(list(owner.all_statements(issuer=OWNER)))
        refused("E_UNSAFE_FORMAT", alliance.push, {"m.bin": pickle.dumps([1, 2])}, f"{OWNER}/unlogged")
        assert len(list(owner.all_statements(issuer=OWNER))) == before


def test_file_that_was_looked_at_is_looked_at_again_under_another_name(alliance: AllianceInProcess) -> None:
    alliance.push({"notes.txt": b"plain text"}, f"{OWNER}/plain")
    with alliance.hub.database.session_scope(write=False) as session:
        assert session.get_one(BlobRow, digest(b"plain text")).content == "plain"
    refused("E_UNSAFE_FORMAT", alliance.push, {"model.safetensors": b"plain text"}, f"{OWNER}/disguised")


def test_version_without_its_files_is_refused(alliance: AllianceInProcess, tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, f"{OWNER}/absent", a__txt=b"never sent")
    with alliance.as_(OWNER) as owner:
        error = refused("E_BLOB_MISSING", owner.push_version, manifest.name, papers(alliance, manifest))
    assert "a.txt" in error.message


def test_files_of_another_institution_cannot_be_claimed_by_digest(
    alliance: AllianceInProcess, tmp_path: Path
) -> None:
    alliance.push({"secret.txt": b"the owner's own"}, f"{OWNER}/secret")
    manifest = manifest_of(tmp_path, f"{FIRM}/stolen", secret__txt=b"the owner's own")
    with alliance.as_(FIRM) as firm:
        refused("E_BLOB_MISSING", firm.push_version, manifest.name, papers(alliance, manifest, by=FIRM))


@pytest.mark.parametrize("path", ["model.sig", "Model.Sig", "fedhub/manifest.json", "FEDHUB/x", "fedhub"])
def test_file_in_the_place_of_a_version_s_own_proof_is_refused(
    alliance: AllianceInProcess, path: str
) -> None:
    name = f"{OWNER}/planted"
    error = refused("E_PATH", alliance.push, {"config.json": b"{}", path: b"false"}, name)
    assert path in error.message and error.hint
    with alliance.as_(OWNER) as owner:
        refused("E_NOT_FOUND", owner.model, name)


@pytest.mark.parametrize(
    "path",
    ["CON", "nul.txt", "a/Aux/b.txt", "com1.tar.gz", "LPT\u00b9", "conin$", "\u202etxt.exe", "x" * 241],
)
def test_file_that_not_every_machine_can_hold_is_refused(alliance: AllianceInProcess, path: str) -> None:
    name = f"{OWNER}/devices"
    error = refused("E_PATH", alliance.push, {"config.json": b"{}", path: b"x"}, name)
    assert "expected a name that" in error.message and error.hint == "rename the file"
    with alliance.as_(OWNER) as owner:
        refused("E_NOT_FOUND", owner.model, name)


def test_name_that_only_begins_like_a_device_is_as_good_as_any(alliance: AllianceInProcess) -> None:
    files = {"console.json": b"{}", "com10": b"a", "aux_loss.txt": b"b", "x" * 240: b"c", "nul-.d/a": b"d"}
    assert alliance.push(files, f"{OWNER}/plain-names").version == 1


def test_name_in_anothers_namespace_is_refused(alliance: AllianceInProcess, tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, f"{OWNER}/mine", a__txt=b"1")
    with alliance.as_(FIRM) as firm:
        refused("E_ACCESS", firm.push_version, f"{OWNER}/mine", papers(alliance, manifest, by=FIRM))
        refused("E_FIELD", firm.push_version, f"{FIRM}/mine", papers(alliance, manifest, by=FIRM))


@pytest.mark.parametrize("name", ["a..b", "a--b", "-a", "a_", "x" * 97])
def test_name_that_is_not_plain_is_refused(alliance: AllianceInProcess, tmp_path: Path, name: str) -> None:
    post = wire.VersionPost(manifest="", oms="", asset="")
    with alliance.as_(OWNER) as owner:
        refused("E_NAME", owner.push_version, f"{OWNER}/{name}", post)


def test_person_with_a_token_posts_what_the_targets_key_signed(
    alliance: AllianceInProcess, tmp_path: Path
) -> None:
    manifest = manifest_of(tmp_path, f"{OWNER}/by-token", a__txt=b"by token")
    post, home = papers(alliance, manifest), alliance.homes[OWNER]
    said = {"type": "model", "name": manifest.name, "version": 1, "oms": open_envelope(post.oms.encode()).id}
    payload = open_envelope(home.sign("asset", [("manifest.json", manifest.asset_id)], said)).payload
    by_site = post.model_copy(update={"asset": sign(home.key("snapshot"), payload).decode()})
    with alliance.as_(OWNER) as owner:
        token = owner.create_token("laptop", ["write"]).token
    with alliance.client(token=token) as person:
        alliance.send(person, b"by token")
        refused("E_KEY_ROLE", person.push_version, manifest.name, by_site)
        assert person.push_version(manifest.name, post).version == 1


def test_papers_about_something_else_are_refused(alliance: AllianceInProcess, tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, f"{OWNER}/papers", a__txt=b"papers")
    with alliance.as_(OWNER) as owner:
        alliance.send(owner, b"papers")
        good = papers(alliance, manifest)
        refused("E_OMS", owner.push_version, manifest.name, papers(alliance, manifest, oms="0" * 64))
        refused(
            "E_FIELD", owner.push_version, manifest.name, papers(alliance, manifest, name=f"{OWNER}/other")
        )
        (tmp_path / "b.txt").write_bytes(b"one more")
        other = build_manifest(tmp_path, manifest.name)
        mixed = good.model_copy(update={"manifest": base64.b64encode(other.raw).decode()})
        refused("E_SUBJECT", owner.push_version, manifest.name, mixed)
        refused(
            "E_VERSION_CHAIN",
            owner.push_version,
            manifest.name,
            papers(alliance, manifest, version=2, previous="0" * 64),
        )
        spaced = good.model_copy(update={"manifest": base64.b64encode(manifest.raw + b" ").decode()})
        refused("E_MALFORMED", owner.push_version, manifest.name, spaced)
        assert owner.push_version(manifest.name, good).version == 1


def test_posting_a_version_again_answers_with_it(alliance: AllianceInProcess, tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, f"{OWNER}/twice", a__txt=b"twice")
    with alliance.as_(OWNER) as owner:
        alliance.send(owner, b"twice")
        post = papers(alliance, manifest, tags=("first",))
        assert owner.push_version(manifest.name, post) == owner.push_version(manifest.name, post)
    with alliance.hub.database.session_scope(write=False) as session:
        assert len(session.exec(select(VersionRow).where(VersionRow.name == manifest.name)).all()) == 1


def test_version_with_more_files_than_the_limit_is_refused(tmp_path: Path) -> None:
    with open_alliance(tmp_path, superlink="external", version_files=2, members=(OWNER,)) as small:
        refused("E_LIMIT", small.push, {"a": b"1", "b": b"2", "c": b"3"})


# --- tags, visibility -----------------------------------------------------------------------------------


def test_tag_is_made_once_and_never_moves(alliance: AllianceInProcess) -> None:
    name = f"{OWNER}/tagged"
    alliance.push({"a": b"1"}, name)
    alliance.push({"a": b"2"}, name)
    with alliance.as_(OWNER) as owner, alliance.as_(FIRM) as firm:
        assert owner.tag(name, "stable", 1).tags == ["stable"]
        assert owner.tag(name, "stable", 1).tags == ["stable"]
        error = refused("E_TAG", owner.tag, name, "stable", 2)
        assert isinstance(error, Refused) and error.status == 409
        refused("E_ACCESS", firm.tag, name, "mine", 1)
        refused("E_NOT_FOUND", owner.tag, name, "later", 9)
        for bad in ("3", "a" * 40, "main", ".x", "a" * 129):
            refused("E_FIELD", owner.tag, name, bad, 1)


def test_private_model_is_unknown_to_those_without_a_grant(alliance: AllianceInProcess) -> None:
    name = f"{OWNER}/private"
    version = alliance.push({"a": b"private"}, name)
    with alliance.as_(OWNER) as owner, alliance.as_(FIRM) as firm, alliance.client() as _nobody:
        assert owner.set_visibility(name, "private").visibility == "private"
        for call in (firm.model, lambda n: firm.version(n, 1), lambda n: firm.manifest(n, 1)):
            refused("E_NOT_FOUND", call, name)
        refused("E_NOT_FOUND", firm.pull, version.asset_id)
        assert name not in {model.name for model in firm.models()}
        assert name in {model.name for model in owner.models()}
        alliance.grant_pull(version.asset_id)
        assert firm.model(name).versions == [version]
        assert name in {model.name for model in firm.models()}


def test_personal_token_tightens_a_model_and_cannot_open_it(alliance: AllianceInProcess) -> None:
    name = f"{OWNER}/careful"
    alliance.push({"a": b"careful"}, name)
    with alliance.as_(OWNER) as owner:
        token = owner.create_token("laptop", ["read", "write"]).token
    with alliance.client(token=token) as person:
        assert person.set_visibility(name, "private").visibility == "private"
        refused("E_KEY_ROLE", person.set_visibility, name, "public")
    with alliance.as_(FIRM) as firm:
        refused("E_ACCESS", firm.set_visibility, name, "public")
    with alliance.http(token=token) as http:
        answer = http.put(f"/api/v1/models/{name}/visibility", json={"visibility": "open"})
    assert (answer.status_code, answer.json()["field"]) == (422, "visibility")


def test_public_model_is_there_for_visitors(alliance: AllianceInProcess) -> None:
    name = f"{OWNER}/public"
    alliance.push({"a": b"public"}, name)
    with alliance.as_(OWNER) as owner, alliance.http() as visitor:
        assert visitor.get(f"/api/v1/models/{name}").status_code == 401
        owner.set_visibility(name, "public")
        assert visitor.get(f"/api/v1/models/{name}").json()["visibility"] == "public"


# --- lists ----------------------------------------------------------------------------------------------


def test_search_finds_by_part_of_the_name_over_all_pages(alliance: AllianceInProcess) -> None:
    for number in range(5):
        alliance.push({"a": f"Findme{number}".encode()}, f"{OWNER}/FindMe-{number}")
    with alliance.as_(FIRM) as firm:
        found = [model.name for model in firm.models("findme")]
        assert found == [f"{OWNER}/FindMe-{number}" for number in range(5)]
        assert firm.models("100%") == []
        assert len(firm.models()) >= 5


def test_data_sets_are_listed_with_their_croissant_over_all_pages(alliance: AllianceInProcess) -> None:
    ids = [alliance.describe(lab) for lab in LABS]
    more = [alliance.describe(LABS[0], f"more-{number}") for number in range(2)]
    with alliance.as_(FIRM) as firm:
        listed = firm.datasets()
        assert [one.asset_id for one in listed] == [*ids, *more]
        one = firm.dataset(ids[0])
        assert (one.owner, one.name, one.version) == (LABS[0], f"{LABS[0]}/digits", 1)
        assert one.croissant == '{"name": "lab-a.example"}'
        refused("E_NOT_FOUND", firm.dataset, "0" * 64)


def test_model_with_no_such_version_is_not_found(alliance: AllianceInProcess) -> None:
    alliance.push({"a": b"lone"}, f"{OWNER}/lone")
    with alliance.as_(FIRM) as firm:
        refused("E_NOT_FOUND", firm.version, f"{OWNER}/lone", 2)
        refused("E_NOT_FOUND", firm.model, f"{OWNER}/nothing")
        approvals = firm.approvals(f"{OWNER}/lone", 1)
        assert (approvals.plan, approvals.needed, approvals.approved_by, approvals.release) == (
            None,
            0,
            [],
            None,
        )
        assert firm.releases() == []


def test_owner_reads_its_own(alliance: AllianceInProcess) -> None:
    def names(client: HubClient) -> set[str]:
        return {model.name for model in client.models("own-list")}

    alliance.push({"a": b"x"}, f"{OWNER}/own-list")
    with alliance.as_(OWNER) as owner:
        assert names(owner) == {f"{OWNER}/own-list"}
