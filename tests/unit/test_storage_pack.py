"""Which statements a pack holds: all that the asset stands on, nothing of others, nothing void."""

from pathlib import Path

import pytest

from storage.encoding import sha256_hex
from storage.errors import Unchecked
from storage.pack import select, write_pack
from storage.verify import examine
from tests.simulators import (
    FIRM,
    LABS,
    MODEL,
    NOW,
    OPERATOR,
    OWNER,
    Story,
    consent_terms,
    grant_terms,
    provenance_of,
    tell_story,
    verdict,
    write_files,
)

LAB_A = LABS[0]


@pytest.fixture(scope="module")
def told() -> Story:
    return tell_story()


def chosen(story: Story, asset: str, size: int | None = None) -> set[str]:
    evidence = story.alliance.evidence()
    return {entry.id for entry in select(evidence, asset, size=evidence.size if size is None else size)}


def test_the_pack_of_a_trained_version_holds_its_whole_story(told: Story) -> None:
    assert chosen(told, told.model.asset_id) == set(told.alliance.logged)


def test_the_pack_of_a_base_version_holds_nothing_of_what_was_made_from_it(told: Story) -> None:
    kinds = {entry.kind for entry in select(told.alliance.evidence(), told.base.asset_id, size=10**6)}
    assert kinds == {"asset", "keyring", "oms", "status"}


def test_the_pack_of_a_dataset_names_no_plan_that_uses_it(told: Story) -> None:
    found = chosen(told, told.datasets[LAB_A])
    assert not found & {told.plan, *told.consents.values(), *told.rounds, *told.receipts.values()}


def test_grants_plans_and_results_of_others_are_left_out(told: Story) -> None:
    story = told.fork()
    a = story.alliance
    before = chosen(story, story.model.asset_id)
    other, _ = a.model(f"{OWNER}/other", 1, {"x": b"1"})
    about = [("manifest.json", other.asset_id)]
    others = {
        a.say(OWNER, "grant", about, grant_terms()),
        a.say(LAB_A, "verdict", about, verdict(LAB_A, "0" * 64, f"{OWNER}/other")),
        a.say(OWNER, "grant", [("manifest.json", story.base.asset_id)], grant_terms()),
        a.revoke(OWNER, "0" * 64),
    }
    after = chosen(story, story.model.asset_id)
    assert not after & others
    assert before - after == set()


def test_revocations_of_what_is_here_come_along_and_only_the_newest_status_list(told: Story) -> None:
    story = told.fork()
    revocation = story.alliance.revoke(OWNER, story.delegation)
    key = story.alliance.revoke_key(FIRM, story.alliance.members[FIRM].hint("snapshot"))
    status = story.alliance.status(OWNER)
    found = chosen(story, story.model.asset_id)
    assert {revocation, key, status} <= found
    assert story.statuses[OWNER] not in found


def test_what_is_logged_after_the_checkpoint_is_left_out(told: Story) -> None:
    size = told.alliance.logged[told.release].index
    found = chosen(told, told.model.asset_id, size)
    assert told.provenance in found
    assert not found & {told.release, told.grant, told.pull, *told.statuses.values()}


def test_an_asset_that_is_not_published_yet_has_no_pack(told: Story) -> None:
    evidence = told.alliance.evidence()
    with pytest.raises(Unchecked, match="E_NOT_FOUND"):
        select(evidence, told.model.asset_id, size=told.alliance.logged[told.model_statement].index)
    with pytest.raises(Unchecked, match="E_NOT_FOUND"):
        select(evidence, "0" * 64, size=evidence.size)


def test_entries_of_a_revoked_key_are_left_out_so_that_the_rest_still_verifies(
    told: Story, tmp_path: Path
) -> None:
    story = told.fork()
    a = story.alliance
    start, stolen = len(a.leaves), a.members[OWNER].hint("targets")
    forged = a.say(OWNER, "grant", story.about_model, grant_terms(LABS[2]))
    a.rotate(OWNER)
    a.revoke_key(OWNER, stolen, fromIndex=start)
    a.status(OWNER)
    assert forged not in chosen(story, story.model.asset_id)
    pack = write_files(tmp_path / "pack", a.export(story.model.asset_id))
    report = examine(pack, a.trust(), now=NOW, use=story.use, require="APPROVED")
    assert report.error is None


def test_the_lineage_goes_down_to_the_version_that_no_plan_made(told: Story, tmp_path: Path) -> None:
    """A third version, trained from the second: the pack holds both runs, and each version its level."""
    story = told.fork()
    a = story.alliance
    subjects = [
        ("recipe.json", story.code),
        ("manifest.json", story.model.asset_id),
        ("config.json", story.config),
    ]
    evidence = a.evidence()
    first = evidence.get(story.plan)
    assert first is not None
    header = ("issuer", "hub", "issuedAt", "nonce")
    terms = {name: value for name, value in first.says.items() if name not in header}
    plan = a.say(OWNER, "plan", subjects, {**terms, "rounds": 1})
    weights = next(f.sha256 for f in story.model.files if f.name == "model.safetensors")
    receipts = []
    for lab in LABS:
        about = [("manifest.json", story.datasets[lab])]
        consent = a.say(lab, "grant", about, consent_terms(plan, story.code, maxRounds=1))
        says = story.receipt(lab, 1, grant=consent, plan=plan, input=weights)
        receipts.append(a.say(lab, "receipt", [("u", "3" * 64)], says))
    files = {**story.files, "model.safetensors": b"weights of a second run"}
    last = [("a", sha256_hex(files["model.safetensors"]))]
    closed = a.say(
        OPERATOR, "round", last, {"plan": plan, "round": 1, "input": weights, "receipts": receipts}
    )
    made, _ = a.model(MODEL, 3, files, previous=story.model_statement, plan=plan)
    listed = [*receipts, closed, story.model.asset_id, story.code]
    a.say(OWNER, "provenance", [("manifest.json", made.asset_id)], provenance_of(plan, listed))
    pack = write_files(tmp_path / "pack", a.export(made.asset_id))
    report = examine(pack, a.trust(), now=NOW, require="TRAINED")
    assert report.error is None
    levels = {asset.version: asset.levels for asset in report.assets if asset.name == MODEL}
    assert levels == {1: ("SIGNED",), 2: ("SIGNED", "TRAINED", "APPROVED"), 3: ("SIGNED", "TRAINED")}


def test_a_pack_is_written_whole_into_a_new_folder_or_not_at_all(told: Story, tmp_path: Path) -> None:
    files = told.alliance.export(told.model.asset_id)
    write_pack(tmp_path / "deep" / "pack", files)
    found = {p.relative_to(tmp_path / "deep" / "pack").as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert found == set(files)
    with pytest.raises(Unchecked, match="E_TARGET"):
        write_pack(tmp_path / "deep" / "pack", files)
    (tmp_path / "file").write_text("x")
    with pytest.raises(Unchecked, match="E_TARGET"):
        write_pack(tmp_path / "file" / "pack", files)
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["pack"]
