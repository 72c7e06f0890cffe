"""Every attack that the verifier's design names, each refused with its error, beside the honest twins that pass.

First what a holder of a pack can do to it, then what colluding signers can sign and a colluding hub can log, then
section 9 of docs/trust.md row by row where the first two do not cover it.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from storage.checkpoint import parse_checkpoint
from storage.encoding import b64, format_time, sha256_hex, unb64
from storage.report import Report
from storage.signing import key_hint, open_envelope, sign
from storage.trust import Trust
from storage.verify import examine
from tests.simulators import (
    DAY,
    FIRM,
    HUB,
    LABS,
    MODEL,
    NOW,
    OPERATOR,
    OWNER,
    Alliance,
    Story,
    consent_terms,
    grant_terms,
    manifest_of,
    provenance_of,
    release_terms,
    result_of,
    tell_story,
    verdict,
    write_files,
)

ACCEPTED = "ACCEPTED"
LAB_A, LAB_B, LAB_C = LABS


@pytest.fixture(scope="module")
def told() -> Story:
    return tell_story()


@dataclass
class Scene:
    """A pack about to be verified, and what the auditor holds."""

    story: Story
    place: Path
    trust: dict[str, Any]
    options: dict[str, Any] = field(default_factory=lambda: {"now": NOW})

    @property
    def pack(self) -> Path:
        return self.place / "pack"

    def statement(self, statement_id: str) -> Path:
        return self.pack / "statements" / f"{statement_id}.sigstore.json"

    def proof(self, statement_id: str) -> Path:
        return self.pack / "proofs" / f"{statement_id}.tlog-proof"

    def edit(self, statement_id: str, change: Callable[[dict[str, Any]], object]) -> None:
        path = self.statement(statement_id)
        bundle = json.loads(path.read_bytes())
        change(bundle)
        path.write_text(json.dumps(bundle))

    def save_state(self, size: int, root: bytes) -> None:
        path = self.place / "state.json"
        path.write_text(json.dumps({"size": size, "root": root.hex()}))
        self.options["state"] = path

    def files(self) -> Path:
        folder = self.story.write_model(self.place / "files")
        self.options["files"] = folder
        return folder

    def verify(self) -> Report:
        return examine(self.pack, Trust.read(json.dumps(self.trust).encode()), **self.options)


def scene(story: Story, place: Path) -> Scene:
    story.alliance.pack(place / "pack")
    return Scene(story, place, story.alliance.trust_document())


def found(report: Report) -> str:
    return ACCEPTED if report.error is None else report.error.code


def test_the_honest_pack_is_accepted(told: Story, tmp_path: Path) -> None:
    s = scene(told, tmp_path)
    s.files()
    s.options |= {"use": told.use, "require": "APPROVED"}
    report = s.verify()
    assert report.error is None
    assert report.not_checked == ("V4 rollback and split view (no checkpoint saved)",)
    assert [step.number for step in report.steps] == list(range(1, 16))


# --- what a holder of the pack can do ---------------------------------------------------------------------


def deepen(bundle: dict[str, Any]) -> None:
    envelope = bundle["dsseEnvelope"]
    payload = unb64(envelope["payload"]).replace(b'"depth":1', b'"depth":3')
    envelope["payload"] = b64(payload)


def payload_edited(s: Scene) -> None:
    s.edit(s.story.grant, deepen)


def payload_edited_and_renamed(s: Scene) -> None:
    payload_edited(s)
    renamed = open_envelope(s.statement(s.story.grant).read_bytes()).id
    s.statement(s.story.grant).rename(s.statement(renamed))
    s.proof(s.story.grant).rename(s.proof(renamed))


def two_signatures(s: Scene) -> None:
    s.edit(
        s.story.grant, lambda b: b["dsseEnvelope"]["signatures"].append(b["dsseEnvelope"]["signatures"][0])
    )


def loose_base64(s: Scene) -> None:
    def change(bundle: dict[str, Any]) -> None:
        bundle["dsseEnvelope"]["payload"] += "\n"

    s.edit(s.story.grant, change)


def duplicate_json_member(s: Scene) -> None:
    path = s.statement(s.story.grant)
    raw = path.read_bytes()
    twice = raw.replace(b'"mediaType"', b'"mediaType":"x","mediaType"', 1)
    assert twice != raw
    path.write_bytes(twice)


def unknown_bundle_member(s: Scene) -> None:
    s.edit(s.story.grant, lambda b: b.update(note="hello"))


def foreign_file_among_statements(s: Scene) -> None:
    (s.pack / "statements" / "notes.txt").write_text("hello")


def statement_under_another_name(s: Scene) -> None:
    s.statement(s.story.grant).rename(s.pack / "statements" / f"{'0' * 64}.sigstore.json")


def no_proof(s: Scene) -> None:
    s.proof(s.story.grant).unlink()


def proof_of_another_entry(s: Scene) -> None:
    shutil.copy(s.proof(s.story.delegation), s.proof(s.story.grant))


def proof_to_another_checkpoint(s: Scene) -> None:
    longer = s.story.fork()
    longer.alliance.status(OWNER)
    longer.alliance.pack(s.place / "longer")
    shutil.copy(s.place / "longer" / "proofs" / s.proof(s.story.grant).name, s.proof(s.story.grant))


def unpinned_institution(s: Scene) -> None:
    del s.trust["institutions"][FIRM]


def ring_pin_differs(s: Scene) -> None:
    s.trust["institutions"][FIRM] = "0" * 64


def one_ring_under_two_names(s: Scene) -> None:
    shutil.copytree(s.pack / "keyrings" / OWNER, s.pack / "keyrings" / "evil.example")
    s.trust["institutions"]["evil.example"] = s.trust["institutions"][OWNER]


def ring_with_a_gap(s: Scene) -> None:
    folder = s.pack / "keyrings" / FIRM
    shutil.copy(folder / "1.root.json", folder / "3.root.json")


def checkpoint_of_another_hub(s: Scene) -> None:
    s.trust["hub"] = "other.example"


def checkpoint_without_the_logs_signature(s: Scene) -> None:
    lines = (s.pack / "checkpoint").read_bytes().split(b"\n")
    (s.pack / "checkpoint").write_bytes(b"\n".join(lines[:4] + lines[5:]))


def checkpoint_with_another_size(s: Scene) -> None:
    path = s.pack / "checkpoint"
    path.write_bytes(path.read_bytes().replace(b"\n41\n", b"\n42\n", 1))


def checkpoint_missing(s: Scene) -> None:
    (s.pack / "checkpoint").unlink()


def too_few_witnesses(s: Scene) -> None:
    lines = (s.pack / "checkpoint").read_bytes().split(b"\n")
    (s.pack / "checkpoint").write_bytes(b"\n".join(lines[:6]) + b"\n")


def bad_cosignature(s: Scene) -> None:
    lines = (s.pack / "checkpoint").read_bytes().split(b"\n")
    name, text = lines[6].rsplit(b" ", 1)
    raw = bytearray(unb64(text.decode()))
    raw[-1] ^= 1
    lines[6] = name + b" " + b64(bytes(raw)).encode()
    (s.pack / "checkpoint").write_bytes(b"\n".join(lines))


def frozen_checkpoint(s: Scene) -> None:
    s.options["now"] = NOW + DAY + 3600


def frozen_status_of_one_leaned_on(s: Scene) -> None:
    s.trust["maxCheckpointAge"] = 10**9
    s.options |= {"now": NOW + DAY + 3600, "use": s.story.use}


def frozen_status_of_others_only(s: Scene) -> None:
    s.trust["maxCheckpointAge"] = 10**9
    s.options["now"] = NOW + DAY + 3600


def status_withheld(s: Scene) -> None:
    s.statement(s.story.statuses[OWNER]).unlink()


def rollback(s: Scene) -> None:
    s.save_state(10**6, bytes(32))


def split_view(s: Scene) -> None:
    s.save_state(len(s.story.alliance.leaves), bytes(32))


def growth_without_a_proof(s: Scene) -> None:
    s.save_state(5, bytes(32))


def growth_with_a_wrong_proof(s: Scene) -> None:
    write_files(s.pack, {"consistency.json": json.dumps([b64(bytes(32))]).encode()})
    s.save_state(5, bytes(32))


def ring_expired(s: Scene) -> None:
    s.trust["maxCheckpointAge"] = 10**9
    s.options["now"] = NOW + 367 * DAY


def statements_from_the_future(s: Scene) -> None:
    s.options["now"] = NOW - 3600
    s.trust["policy"] = s.trust["policy"].replace("quorum g", "quorum none")


def wrong_grantee(s: Scene) -> None:
    s.options["use"] = {**s.story.use, "grantee": LAB_A}


def action_not_granted(s: Scene) -> None:
    s.options["use"] = {**s.story.use, "action": "train"}


def condition_unmet(s: Scene) -> None:
    s.options["use"] = {**s.story.use, "duo": []}


def grant_expired(s: Scene) -> None:
    s.options |= {"now": NOW + 4000, "use": s.story.use}


def grant_not_yet_valid(s: Scene) -> None:
    s.options["use"] = {**s.story.use, "at": format_time(NOW - 600)}


def grant_for_another_asset(s: Scene) -> None:
    s.options["use"] = {**s.story.use, "asset": s.story.datasets[LAB_A]}


def grant_under_another_name(s: Scene) -> None:
    s.options["use"] = {**s.story.use, "name": f"{OWNER}/other"}


def grant_that_nobody_signed(s: Scene) -> None:
    s.options["use"] = {**s.story.use, "grant": "0" * 64}


def another_kind_taken_for_a_grant(s: Scene) -> None:
    s.options["use"] = {**s.story.use, "grant": s.story.plan}


def extra_model_file(s: Scene) -> None:
    (s.files() / "x").write_text("x")


def model_file_missing(s: Scene) -> None:
    (s.files() / "config.json").unlink()


def model_file_changed(s: Scene) -> None:
    (s.files() / "config.json").write_bytes(b'{"a":2}')


def model_file_renamed(s: Scene) -> None:
    folder = s.files()
    (folder / "config.json").rename(folder / "tokenizer.json")


def model_files_swapped(s: Scene) -> None:
    folder = s.files()
    (folder / "config.json").rename(folder / "x")
    (folder / "model.safetensors").rename(folder / "config.json")
    (folder / "x").rename(folder / "model.safetensors")


def hidden_git_file(s: Scene) -> None:
    (s.files() / ".gitattributes").write_text("x")


def symlink_among_the_files(s: Scene) -> None:
    os.symlink("config.json", s.files() / "x")


def unicode_twin(s: Scene) -> None:
    (s.files() / "cafe\u0301").write_text("x")


def case_twin(s: Scene) -> None:
    (s.files() / "CONFIG.json").write_text("x")


def empty_folder(s: Scene) -> None:
    (s.place / "empty").mkdir()
    s.options["files"] = s.place / "empty"


def parent_grant_withheld(s: Scene) -> None:
    s.statement(s.story.grant).unlink()
    s.statement(s.story.pull).unlink()
    s.options["use"] = delegated_use(s.story, s.story.delegation)


def first_receipt_withheld(s: Scene) -> None:
    s.statement(s.story.receipts[LAB_A, 1]).unlink()


def last_receipt_withheld(s: Scene) -> None:
    s.statement(s.story.receipts[LAB_A, 2]).unlink()


def round_withheld(s: Scene) -> None:
    s.statement(s.story.rounds[0]).unlink()


def last_round_withheld(s: Scene) -> None:
    s.statement(s.story.rounds[1]).unlink()


def plan_withheld(s: Scene) -> None:
    s.statement(s.story.plan).unlink()


def consent_withheld(s: Scene) -> None:
    s.statement(s.story.consents[LAB_B]).unlink()


def asset_statement_withheld(s: Scene) -> None:
    s.statement(s.story.model_statement).unlink()


def earlier_version_withheld(s: Scene) -> None:
    s.statement(s.story.base_statement).unlink()


def model_signature_withheld(s: Scene) -> None:
    bundle = open_envelope(s.statement(s.story.model_statement).read_bytes())
    s.statement(json.loads(bundle.payload)["predicate"]["oms"]).unlink()


def keyring_statement_withheld(s: Scene) -> None:
    first = next(x for x in s.story.alliance.logged.values() if x.member == FIRM)
    s.statement(first.id).unlink()


def approval_withheld(s: Scene) -> None:
    s.statement(s.story.approvals[LAB_A]).unlink()


def provenance_withheld(s: Scene) -> None:
    s.statement(s.story.provenance).unlink()


def provenance_and_release_withheld(s: Scene) -> None:
    s.statement(s.story.provenance).unlink()
    s.statement(s.story.release).unlink()
    s.options["require"] = "TRAINED"


def release_withheld(s: Scene) -> None:
    s.statement(s.story.release).unlink()
    s.options["require"] = "APPROVED"


def manifest_of_other_files(s: Scene) -> None:
    path = s.pack / "assets" / s.story.model.asset_id / "manifest.json"
    path.write_bytes(s.story.base.raw)


def manifest_of_no_asset(s: Scene) -> None:
    raw = s.story.model.raw.replace(b"sub/t.txt", b"sub/u.txt")
    write_files(s.pack, {f"assets/{sha256_hex(raw)}/manifest.json": raw})


def link_in_the_pack(s: Scene) -> None:
    path = s.statement(s.story.grant)
    path.rename(s.place / "elsewhere")
    os.symlink(s.place / "elsewhere", path)


def delegated_use(story: Story, grant: str, grantee: str = LAB_A) -> dict[str, Any]:
    return {**story.use, "grant": grant, "grantee": grantee, "duo": ["DUO:0000042", "DUO:0000046"]}


PACK_ATTACKS: list[tuple[Callable[[Scene], None], str]] = [
    (payload_edited, "E_BUNDLE"),
    (payload_edited_and_renamed, "E_SIGNATURE"),
    (two_signatures, "E_BUNDLE"),
    (loose_base64, "E_BUNDLE"),
    (duplicate_json_member, "E_BUNDLE"),
    (unknown_bundle_member, "E_BUNDLE"),
    (foreign_file_among_statements, "E_BUNDLE"),
    (statement_under_another_name, "E_BUNDLE"),
    (no_proof, "E_NOT_LOGGED"),
    (proof_of_another_entry, "E_NOT_LOGGED"),
    (proof_to_another_checkpoint, "E_PROOF"),
    (unpinned_institution, "E_KEY_UNKNOWN"),
    (ring_pin_differs, "E_KEYRING_PIN"),
    (one_ring_under_two_names, "E_KEYRING_NAME"),
    (ring_with_a_gap, "E_KEYRING"),
    (checkpoint_of_another_hub, "E_ORIGIN"),
    (checkpoint_without_the_logs_signature, "E_CHECKPOINT_SIG"),
    (checkpoint_with_another_size, "E_CHECKPOINT_SIG"),
    (checkpoint_missing, "E_MALFORMED"),
    (too_few_witnesses, "E_QUORUM"),
    (bad_cosignature, "E_CHECKPOINT_SIG"),
    (frozen_checkpoint, "E_CHECKPOINT_STALE"),
    (frozen_status_of_one_leaned_on, "E_STATUS_STALE"),
    (frozen_status_of_others_only, ACCEPTED),
    (status_withheld, "E_STATUS_MISSING"),
    (rollback, "E_ROLLBACK"),
    (split_view, "E_SPLIT_VIEW"),
    (growth_without_a_proof, "E_INCONSISTENT"),
    (growth_with_a_wrong_proof, "E_INCONSISTENT"),
    (ring_expired, "E_KEYRING_EXPIRED"),
    (statements_from_the_future, "E_TIME"),
    (wrong_grantee, "E_GRANT_GRANTEE"),
    (action_not_granted, "E_GRANT_ACTION"),
    (condition_unmet, "E_GRANT_CONDITION"),
    (grant_expired, "E_GRANT_EXPIRED"),
    (grant_not_yet_valid, "E_GRANT_NOT_YET"),
    (grant_for_another_asset, "E_SUBJECT"),
    (grant_under_another_name, "E_GRANT_OWNER"),
    (grant_that_nobody_signed, "E_GRANT_MISSING"),
    (another_kind_taken_for_a_grant, "E_GRANT_MISSING"),
    (extra_model_file, "E_SUBJECT"),
    (model_file_missing, "E_SUBJECT"),
    (model_file_changed, "E_SUBJECT"),
    (model_file_renamed, "E_SUBJECT"),
    (model_files_swapped, "E_SUBJECT"),
    (hidden_git_file, "E_PATH"),
    (symlink_among_the_files, "E_PATH"),
    (unicode_twin, "E_PATH"),
    (case_twin, "E_PATH"),
    (empty_folder, "E_PATH"),
    (parent_grant_withheld, "E_GRANT_PARENT"),
    (first_receipt_withheld, "E_RECEIPT_CHAIN"),
    (last_receipt_withheld, "E_PARTICIPANTS"),
    (round_withheld, "E_ROUND_CHAIN"),
    (last_round_withheld, "E_LINK"),
    (plan_withheld, "E_PLAN"),
    (consent_withheld, "E_RECEIPT_GRANT"),
    (asset_statement_withheld, "E_SUBJECT"),
    (earlier_version_withheld, "E_VERSION_CHAIN"),
    (model_signature_withheld, "E_OMS"),
    (keyring_statement_withheld, "E_KEYRING_UNLOGGED"),
    (approval_withheld, "E_APPROVALS"),
    (provenance_withheld, "E_LINK"),
    (provenance_and_release_withheld, "E_LEVEL"),
    (release_withheld, "E_LEVEL"),
    (manifest_of_other_files, "E_SUBJECT"),
    (manifest_of_no_asset, "E_SUBJECT"),
    (link_in_the_pack, "E_MALFORMED"),
]


@pytest.mark.parametrize(("attack", "error"), PACK_ATTACKS, ids=[a.__name__ for a, _ in PACK_ATTACKS])
def test_a_pack_that_was_tampered_with_is_refused(
    told: Story, tmp_path: Path, attack: Callable[[Scene], None], error: str
) -> None:
    s = scene(told, tmp_path)
    attack(s)
    assert found(s.verify()) == error


def test_a_log_that_grew_is_accepted_with_its_consistency_proof(told: Story, tmp_path: Path) -> None:
    story = told.fork()
    old = parse_checkpoint(story.alliance.checkpoint.note)
    story.alliance.status(OWNER)
    s = scene(story, tmp_path)
    story.alliance.pack(tmp_path / "pack", old=old.size)
    s.save_state(old.size, old.root)
    assert found(s.verify()) == ACCEPTED


# --- what colluding signers can sign, and a colluding hub can log -----------------------------------------

Signed = Callable[[Story], dict[str, Any] | None]


def pull(story: Story, grant: str, who: str = FIRM, **changes: Any) -> dict[str, Any]:
    return {**story.use, "grant": grant, "grantee": who, **changes}


def delegate(story: Story, who: str = FIRM, **changes: Any) -> dict[str, Any]:
    terms = {"conditions": {"duo": ["DUO:0000042"]}, "parent": story.grant, **changes}
    grant = story.alliance.say(who, "grant", story.about_model, grant_terms(LAB_A, **terms))
    return delegated_use(story, grant)


def honest_delegation(s: Story) -> dict[str, Any]:
    return delegated_use(s, s.delegation)


def delegation_widens_actions(s: Story) -> dict[str, Any]:
    terms = {"duo": ["DUO:0000042"], "code": s.code, "maxRounds": 1, "minParticipants": 1}
    return delegate(s, actions=["pull", "train"], conditions=terms)


def delegation_drops_a_condition(s: Story) -> dict[str, Any]:
    return delegate(s, conditions={})


def delegation_outlives_its_parent(s: Story) -> dict[str, Any]:
    return delegate(s, expires=format_time(NOW + 3601))


def delegation_starts_before_its_parent(s: Story) -> dict[str, Any]:
    return delegate(s, notBefore=format_time(NOW - 61))


def delegation_as_deep_as_its_parent(s: Story) -> dict[str, Any]:
    return delegate(s, depth=1)


def delegation_of_another_asset(s: Story) -> dict[str, Any]:
    terms = grant_terms(LAB_A, conditions={"duo": ["DUO:0000042"]}, parent=s.grant)
    grant = s.alliance.say(FIRM, "grant", [("manifest.json", s.base.asset_id)], terms)
    return {**delegated_use(s, grant), "asset": s.base.asset_id}


def delegation_by_a_stranger(s: Story) -> dict[str, Any]:
    return delegate(s, who=LAB_B)


def delegation_logged_before_its_parent(s: Story) -> dict[str, Any]:
    later = s.alliance.sign(
        OWNER, "grant", s.about_model, grant_terms(depth=1, conditions={"duo": ["DUO:0000042"]})
    )
    use = delegate(s, parent=open_envelope(later).id)
    s.alliance.log(later)
    return use


def grant_by_a_non_owner(s: Story) -> dict[str, Any]:
    return pull(s, s.alliance.say(LAB_A, "grant", s.about_model, grant_terms()))


def unknown_condition(s: Story) -> None:
    s.alliance.say(OWNER, "grant", s.about_model, grant_terms(conditions={"onTuesdays": True}))


def unknown_member(s: Story) -> None:
    s.alliance.say(OWNER, "grant", s.about_model, grant_terms(note="x"))


def window_of_more_than_a_year(s: Story) -> None:
    s.alliance.say(OWNER, "grant", s.about_model, grant_terms(expires=format_time(NOW + 367 * DAY)))


def grant_signed_by_a_site_key(s: Story) -> None:
    s.alliance.say(OWNER, "grant", s.about_model, grant_terms(), role="snapshot")


def grant_signed_by_the_status_key(s: Story) -> None:
    s.alliance.say(OWNER, "grant", s.about_model, grant_terms(), role="timestamp")


def grant_signed_by_a_root_key(s: Story) -> None:
    s.alliance.say(OWNER, "grant", s.about_model, grant_terms(), role="root")


def receipt_signed_by_the_stewards_key(s: Story) -> None:
    s.alliance.say(OPERATOR, "receipt", s.about_model, {"action": "pull", "grant": s.grant}, role="targets")


def issuer_is_another_institution(s: Story) -> None:
    s.alliance.say(LAB_A, "grant", s.about_model, grant_terms(), issuer=OWNER)


def statement_for_another_hub(s: Story) -> None:
    s.alliance.say(OWNER, "grant", s.about_model, grant_terms(), hub="other.example")


def nonce_used_twice(s: Story) -> None:
    for depth in (0, 1):
        s.alliance.say(OWNER, "grant", s.about_model, grant_terms(depth=depth), nonce="ab" * 16)


def nonce_used_by_two_institutions(s: Story) -> None:
    for name in (OWNER, FIRM):
        s.alliance.say(name, "refusal", [("w", "0" * 64)], refusal(s), nonce="ab" * 16)


def refusal(s: Story) -> dict[str, Any]:
    return {"order": "0" * 64, "plan": s.plan, "round": 1, "code": "E_CONSENT"}


def unknown_kind(s: Story) -> None:
    s.alliance.say(OWNER, "https://fedhub.dev/gift/v1", s.about_model, {})


def order_in_the_log(s: Story) -> None:
    says = {
        "plan": s.plan,
        "site": s.datasets[LAB_A],
        "action": "train",
        "round": 1,
        "input": "0" * 64,
        "deadline": format_time(NOW + 60),
    }
    s.alliance.say(OPERATOR, "order", [("weights", "0" * 64)], says)


def payload_not_canonical(s: Story) -> None:
    payload = s.alliance.payload(OWNER, "grant", s.about_model, grant_terms())
    loose = json.dumps(json.loads(payload)).encode()
    s.alliance.log(sign(s.alliance.members[OWNER].keys["targets"][-1], loose))


def epsilon_as_a_float(s: Story) -> None:
    terms = grant_terms(actions=["train"], conditions={"epsilon": "4", "delta": "0.1"})
    payload = s.alliance.payload(OWNER, "grant", s.about_model, terms).replace(b'"4"', b"4.0")
    s.alliance.log(sign(s.alliance.members[OWNER].keys["targets"][-1], payload))


def receipt_as_a_grant(s: Story) -> dict[str, Any]:
    return pull(s, s.pull)


# --- training ---


def train_again(
    s: Story,
    *,
    labs: tuple[str, ...] = (LAB_A, LAB_B),
    receipt: dict[str, Any] | None = None,
    consent: dict[str, Any] | None = None,
    statement: dict[str, Any] | None = None,
    by: str = OPERATOR,
    odd: str = LAB_A,
) -> None:
    """A third round under fresh consents; ``receipt`` changes the receipt of one lab, ``odd``."""
    listed = []
    for lab in labs:
        terms = consent_terms(s.plan, s.code, **{"maxRounds": 3, **(consent or {})})
        s.consents[lab] = s.alliance.say(lab, "grant", [("manifest.json", s.datasets[lab])], terms)
    for lab in labs:
        changes = receipt if receipt and lab == odd else {}
        says = s.receipt(lab, 3, **changes)
        update = sha256_hex(f"third update of {lab}".encode())
        listed.append(s.alliance.say(changes.get("by", lab), "receipt", [("update", update)], says))
    says = {
        "plan": s.plan,
        "round": 3,
        "input": s.aggregates[-1],
        "receipts": listed,
        "previous": s.rounds[-1],
        **(statement or {}),
    }
    s.rounds.append(s.alliance.say(by, "round", [("aggregate", sha256_hex(b"weights 3"))], says))


def retold(s: Story) -> None:
    """Provenance again, release and approvals of the version left out: a longer run needs other provenance."""
    for known in (s.provenance, s.release):
        s.alliance.logged.pop(known)


def honest_third_round(s: Story) -> None:
    train_again(s)
    retold(s)


def third_round_left_out_of_provenance(s: Story) -> None:
    train_again(s)


def round_beyond_the_consent(s: Story) -> None:
    train_again(s, consent={"maxRounds": 2})


def round_beyond_the_plan(s: Story) -> None:
    train_again(s, receipt={"round": 4}, consent={"maxRounds": 9})


def epsilon_overspent(s: Story) -> None:
    train_again(s, receipt={"epsilon": "4.1"})


def epsilon_beyond_the_plans(s: Story) -> None:
    train_again(s, receipt={"epsilon": "8.1"}, consent={"epsilon": "9"})


def delta_overspent(s: Story) -> None:
    train_again(s, receipt={"delta": "0.0001"})


def epsilon_not_stated(s: Story) -> None:
    train_again(s, receipt={"epsilon": None, "delta": None})


def epsilon_falls(s: Story) -> None:
    train_again(s, receipt={"epsilon": "2.4"})


def chain_starts_again(s: Story) -> None:
    train_again(s, receipt={"previous": None})


def chain_skips_a_receipt(s: Story) -> None:
    train_again(s, receipt={"previous": s.receipts[LAB_A, 1]})


def chain_of_another_lab(s: Story) -> None:
    train_again(s, receipt={"previous": s.receipts[LAB_B, 2]})


def chain_names_nothing(s: Story) -> None:
    train_again(s, receipt={"previous": "0" * 64})


def round_number_repeated(s: Story) -> None:
    train_again(s, receipt={"round": 2})


def receipt_without_consent(s: Story) -> None:
    train_again(s, receipt={"grant": s.consents[LAB_B]})


def receipt_under_a_plain_grant(s: Story) -> None:
    terms = {"code": s.code, "maxRounds": 9, "minParticipants": 1}
    grant = s.alliance.say(
        LAB_A,
        "grant",
        [("manifest.json", s.datasets[LAB_A])],
        {**consent_terms(s.plan, s.code), "conditions": terms},
    )
    train_again(s, receipt={"grant": grant})


def receipt_under_anothers_grant(s: Story) -> None:
    train_again(s, receipt={"grant": s.grant})


def consent_to_another_code(s: Story) -> None:
    train_again(s, consent={"code": "0" * 64})


def consent_to_another_plan(s: Story) -> None:
    train_again(s, consent={"plan": s.grant})


def consent_asks_for_more_participants(s: Story) -> None:
    train_again(s, consent={"minParticipants": 3})


def consent_expired_at_the_round(s: Story) -> None:
    late = NOW + 30 * DAY
    train_again(s, receipt={"issuedAt": format_time(late)})


def too_few_participants(s: Story) -> None:
    train_again(s, labs=(LAB_A,))


def receipt_listed_twice(s: Story) -> None:
    train_again(s, statement={"receipts": [s.receipts[LAB_A, 2], s.receipts[LAB_A, 2]]})


def receipt_of_an_earlier_round_listed(s: Story) -> None:
    train_again(s, statement={"receipts": [s.receipts[LAB_A, 2], s.receipts[LAB_B, 2]]})


def receipt_of_other_input_listed(s: Story) -> None:
    train_again(s, receipt={"input": "0" * 64})


def round_from_other_weights(s: Story) -> None:
    train_again(s, statement={"input": "0" * 64})


def round_skipped(s: Story) -> None:
    train_again(s, statement={"round": 4})


def round_forked(s: Story) -> None:
    train_again(s, statement={"previous": s.rounds[0]})


def round_by_a_participant(s: Story) -> None:
    train_again(s, by=LAB_A)


def round_after_the_plan_was_withdrawn(s: Story) -> None:
    s.alliance.revoke(OWNER, s.plan)
    train_again(s)


def receipt_after_the_consent_was_withdrawn(s: Story) -> None:
    for lab in (LAB_A, LAB_B):
        terms = consent_terms(s.plan, s.code, maxRounds=3)
        s.consents[lab] = s.alliance.say(lab, "grant", [("manifest.json", s.datasets[lab])], terms)
    s.alliance.revoke(LAB_A, s.consents[LAB_A])
    listed = [
        s.alliance.say(lab, "receipt", [("update", sha256_hex(lab.encode()))], s.receipt(lab, 3))
        for lab in (LAB_A, LAB_B)
    ]
    says = {
        "plan": s.plan,
        "round": 3,
        "input": s.aggregates[-1],
        "receipts": listed,
        "previous": s.rounds[-1],
    }
    s.alliance.say(OPERATOR, "round", [("aggregate", sha256_hex(b"weights 3"))], says)


def honest_consent_withdrawn_after_its_rounds(s: Story) -> None:
    s.alliance.revoke(LAB_A, s.consents[LAB_A])


def honest_plan_withdrawn_after_its_rounds(s: Story) -> None:
    s.alliance.revoke(OWNER, s.plan)


def consent_void_from_before(s: Story) -> None:
    s.alliance.revoke(LAB_A, s.consents[LAB_A], "error", fromIndex=0)


def honest_lone_receipt_is_not_counted(s: Story) -> None:
    update = [("update", sha256_hex(b"spoil"))]
    s.alliance.say(LAB_C, "receipt", update, s.receipt(LAB_C, 3, epsilon="99", previous=None))


def evaluation_without_consent(s: Story) -> None:
    says = s.receipt(LAB_A, 2, action="evaluate", grant=s.grant, previous=None)
    s.alliance.say(LAB_A, "receipt", s.about_model, says)


def honest_evaluation(s: Story) -> None:
    for number in (1, 2):
        says = s.receipt(LAB_A, number, action="evaluate", previous=s.receipts.get((LAB_A, -1)))
        about = [("manifest.json", s.datasets[LAB_A])]
        s.receipts[LAB_A, -1] = s.alliance.say(LAB_A, "receipt", about, says)


def pull_receipt_by_the_puller(s: Story) -> None:
    s.alliance.say(FIRM, "receipt", s.about_model, {"action": "pull", "grant": s.grant})


def pull_receipt_of_another_asset(s: Story) -> None:
    about = [("manifest.json", s.base.asset_id)]
    s.alliance.say(OPERATOR, "receipt", about, {"action": "pull", "grant": s.grant})


def pull_receipt_without_a_grant(s: Story) -> None:
    s.alliance.say(OPERATOR, "receipt", s.about_model, {"action": "pull", "grant": s.plan})


def pull_receipt_under_a_grant_to_train(s: Story) -> None:
    says = {"action": "pull", "grant": s.consents[LAB_A]}
    s.alliance.say(OPERATOR, "receipt", [("manifest.json", s.datasets[LAB_A])], says)


def pull_after_the_grant_was_revoked(s: Story) -> None:
    s.alliance.revoke(OWNER, s.grant)
    s.alliance.say(OPERATOR, "receipt", s.about_model, {"action": "pull", "grant": s.grant})


# --- assets ---


def version_fork(s: Story) -> None:
    s.alliance.model(MODEL, 2, {"x": b"other"}, previous=s.base_statement)


def first_version_twice(s: Story) -> None:
    s.alliance.model(MODEL, 1, {"x": b"other"})


def version_gap(s: Story) -> None:
    s.alliance.model(MODEL, 4, {"x": b"other"}, previous=s.model_statement)


def version_follows_another_asset(s: Story) -> None:
    _, other = s.alliance.model(f"{OWNER}/other", 1, {"x": b"other"})
    s.alliance.model(MODEL, 3, {"x": b"more"}, previous=other)


def dataset_follows_a_model(s: Story) -> None:
    says = {"type": "dataset", "name": MODEL, "version": 3, "previous": s.model_statement}
    s.alliance.say(OWNER, "asset", [("manifest.json", "1" * 64), ("croissant.json", "2" * 64)], says)


def asset_in_anothers_namespace(s: Story) -> None:
    says = {"type": "dataset", "name": f"{OWNER}/more", "version": 1}
    s.alliance.say(FIRM, "asset", [("manifest.json", "1" * 64), ("croissant.json", "2" * 64)], says)


def asset_id_claimed_by_a_second_institution(s: Story) -> None:
    says = {"type": "dataset", "name": f"{FIRM}/stolen", "version": 1}
    s.alliance.say(FIRM, "asset", [*s.about_model, ("croissant.json", "2" * 64)], says)


def asset_claimed_with_the_owners_statement_withheld(s: Story) -> dict[str, Any]:
    asset_id_claimed_by_a_second_institution(s)
    grant = s.alliance.say(FIRM, "grant", s.about_model, grant_terms(FIRM))
    kept_out = {s.model_statement, s.grant, s.delegation, s.pull, s.provenance, s.release}
    kept_out |= {*s.results.values(), *s.approvals.values()}
    for statement in kept_out:
        del s.alliance.logged[statement]
    del s.alliance.manifests[s.model.asset_id]
    return pull(s, grant)


def model_signature_over_other_files(s: Story) -> None:
    other = s.alliance.evidence().by_kind("oms")[0]
    manifest = manifest_of(MODEL, {"x": b"other"})
    s.alliance.manifests[manifest.asset_id] = manifest.raw
    says = {"type": "model", "name": MODEL, "version": 3, "previous": s.model_statement, "oms": other.id}
    s.alliance.say(OWNER, "asset", [("manifest.json", manifest.asset_id)], says)


def asset_revoked(s: Story) -> None:
    s.alliance.revoke(OWNER, s.model_statement)


# --- revocations, status lists, keys ---


def grant_revoked(s: Story) -> dict[str, Any]:
    s.alliance.revoke(OWNER, s.grant)
    return s.use


def delegation_revoked_from_above(s: Story) -> dict[str, Any]:
    s.alliance.revoke(OWNER, s.delegation)
    return delegated_use(s, s.delegation)


def parent_of_a_delegation_revoked(s: Story) -> dict[str, Any]:
    s.alliance.revoke(OWNER, s.grant)
    return delegated_use(s, s.delegation)


def honest_revocation_by_strangers(s: Story) -> dict[str, Any]:
    for target in (s.model_statement, s.grant, s.plan, s.release):
        s.alliance.revoke(LAB_C, target)
    return s.use


def honest_grantee_cannot_revoke_its_grant(s: Story) -> dict[str, Any]:
    s.alliance.revoke(FIRM, s.grant)
    return s.use


def revocation_withheld_but_on_the_status_list(s: Story) -> dict[str, Any]:
    revocation = s.alliance.revoke(OWNER, s.grant)
    s.alliance.status(OWNER, revoked=[s.grant])
    del s.alliance.logged[revocation]
    return s.use


def honest_status_list_voids_no_consent(s: Story) -> dict[str, Any]:
    s.alliance.status(
        LAB_A, revoked=[s.consents[LAB_A]], keys={s.alliance.members[LAB_A].hint("snapshot"): 0}
    )
    return s.use


def status_sequence_repeats(s: Story) -> None:
    s.alliance.status(OWNER, sequence=1)


def status_lives_too_long(s: Story) -> None:
    s.alliance.status(OWNER, nextUpdate=format_time(NOW + DAY + 1))


def status_signed_by_the_hubs_operator(s: Story) -> None:
    s.alliance.say(
        OPERATOR,
        "status",
        [("1.root.json", sha256_hex(s.alliance.members[OWNER].roots[-1]))],
        {"sequence": 9, "nextUpdate": format_time(NOW + DAY), "revoked": [], "keys": []},
        issuer=OWNER,
    )


def key_revoked_from_its_start(s: Story) -> None:
    first = next(x.index for x in s.alliance.logged.values() if x.member == LAB_A)
    s.alliance.revoke_key(LAB_A, s.alliance.members[LAB_A].hint("snapshot"), fromIndex=first + 1)


def key_revoked_from_before_its_start(s: Story) -> None:
    s.alliance.revoke_key(LAB_B, s.alliance.members[LAB_B].hint("snapshot"), fromIndex=0)


def key_withdrawn_from_before(s: Story) -> None:
    s.alliance.revoke_key(LAB_A, s.alliance.members[LAB_A].hint("snapshot"), "withdrawn", fromIndex=20)


def stolen_key_signs_after_its_revocation(s: Story) -> None:
    s.alliance.rotate(OWNER)
    s.alliance.revoke_key(OWNER, key_before(s, OWNER))
    s.alliance.members[OWNER].keys["targets"].reverse()
    s.alliance.say(OWNER, "grant", s.about_model, grant_terms())


def key_before(s: Story, name: str) -> str:
    return key_hint(s.alliance.members[name].keys["targets"][-2].public_key())


def honest_key_revoked_later(s: Story) -> dict[str, Any]:
    s.alliance.rotate(OWNER)
    s.alliance.revoke_key(OWNER, key_before(s, OWNER))
    s.alliance.status(OWNER)
    return s.use


def honest_strangers_key_revocation(s: Story) -> dict[str, Any]:
    s.alliance.revoke_key(LAB_C, s.alliance.members[OWNER].hint("targets"), fromIndex=0)
    return s.use


def honest_rotation(s: Story) -> dict[str, Any]:
    s.alliance.rotate(OWNER)
    s.alliance.status(OWNER)
    return pull(s, s.alliance.say(OWNER, "grant", s.about_model, grant_terms()))


def removed_key_signs_later(s: Story) -> None:
    s.alliance.rotate(OWNER)
    s.alliance.status(OWNER)
    s.alliance.members[OWNER].keys["targets"].reverse()
    s.alliance.say(OWNER, "grant", s.about_model, grant_terms())


def new_key_signs_before_its_ring_is_logged(s: Story) -> None:
    member = s.alliance.members[OWNER]
    s.alliance.rotate(OWNER, log=False)
    s.alliance.say(OWNER, "grant", s.about_model, grant_terms())
    subject = [("2.root.json", sha256_hex(member.roots[-1]))]
    s.alliance.say(OWNER, "keyring", subject, {"version": 2})
    s.alliance.status(OWNER)


def newer_ring_withheld(s: Story) -> None:
    statement = s.alliance.rotate(OWNER)
    s.alliance.status(OWNER)
    del s.alliance.logged[statement]
    s.alliance.members[OWNER].roots.pop()


def newer_rings_statement_withheld(s: Story) -> None:
    statement = s.alliance.rotate(OWNER)
    s.alliance.status(OWNER)
    del s.alliance.logged[statement]


def ring_logged_out_of_order(s: Story) -> None:
    roots = s.alliance.members[OWNER].roots
    s.alliance.say(OWNER, "keyring", [("1.root.json", sha256_hex(roots[0]))], {"version": 1})


def ring_statement_names_another_file(s: Story) -> None:
    s.alliance.rotate(OWNER, log=False)
    s.alliance.say(OWNER, "keyring", [("2.root.json", "0" * 64)], {"version": 2})


def one_key_in_two_rings(s: Story) -> None:
    firm, owner = s.alliance.members[FIRM], s.alliance.members[OWNER]
    firm.keys["targets"] = [*owner.keys["targets"]]
    s.alliance._log_ring(firm)
    s.alliance.status(FIRM)


# --- links ---


def provenance_by_a_stranger(s: Story) -> None:
    listed = [*s.receipts.values(), *s.rounds, s.base.asset_id, s.code, s.config]
    s.alliance.say(LAB_A, "provenance", s.about_model, provenance_of(s.plan, listed))


def provenance_leaves_out_a_receipt(s: Story) -> None:
    listed = [*list(s.receipts.values())[1:], *s.rounds, s.base.asset_id, s.code]
    s.alliance.say(OWNER, "provenance", s.about_model, provenance_of(s.plan, listed))


def provenance_leaves_out_a_round(s: Story) -> None:
    listed = [*s.receipts.values(), s.rounds[0], s.base.asset_id, s.code]
    s.alliance.say(OWNER, "provenance", s.about_model, provenance_of(s.plan, listed))


def provenance_leaves_out_the_base(s: Story) -> None:
    listed = [*s.receipts.values(), *s.rounds, s.code]
    s.alliance.say(OWNER, "provenance", s.about_model, provenance_of(s.plan, listed))


def provenance_lists_something_else(s: Story) -> None:
    listed = [*s.receipts.values(), *s.rounds, s.base.asset_id, s.code, s.grant]
    s.alliance.say(OWNER, "provenance", s.about_model, provenance_of(s.plan, listed))


def provenance_of_a_version_that_names_no_plan(s: Story) -> None:
    listed = [*s.receipts.values(), *s.rounds, s.base.asset_id, s.code]
    about = [("manifest.json", s.base.asset_id)]
    s.alliance.say(OWNER, "provenance", about, provenance_of(s.plan, listed))


def version_without_the_last_aggregate(s: Story) -> None:
    retold(s)
    files = {**s.files, "model.safetensors": b"other weights"}
    manifest, _ = s.alliance.model(MODEL, 3, files, previous=s.model_statement, plan=s.plan)
    listed = [*s.receipts.values(), *s.rounds, s.base.asset_id, s.code]
    about = [("manifest.json", manifest.asset_id)]
    s.alliance.say(OWNER, "provenance", about, provenance_of(s.plan, listed))


def result_of_an_unknown_asset(s: Story) -> None:
    says = result_of(s.datasets[LAB_A], s.consents[LAB_A])
    s.alliance.say(LAB_A, "test-result", [("manifest.json", "0" * 64)], says)


def result_under_anothers_consent(s: Story) -> None:
    says = result_of(s.datasets[LAB_A], s.consents[LAB_B])
    s.alliance.say(LAB_A, "test-result", s.about_model, says)


def result_by_a_stranger(s: Story) -> None:
    says = result_of(s.datasets[LAB_A], s.consents[LAB_A])
    s.alliance.say(FIRM, "test-result", s.about_model, {**says, "result": "FAILED"})


def result_of_another_plans_version(s: Story) -> None:
    other, _ = s.alliance.model(f"{OWNER}/other", 1, {"x": b"other"})
    says = result_of(s.datasets[LAB_A], s.consents[LAB_A])
    s.alliance.say(LAB_A, "test-result", [("manifest.json", other.asset_id)], says)


def verdict_of_an_unknown_asset(s: Story) -> None:
    s.alliance.say(LAB_A, "verdict", [("manifest.json", "0" * 64)], verdict(LAB_A, s.plan))


def verdict_under_another_name(s: Story) -> None:
    s.alliance.say(LAB_A, "verdict", s.about_model, verdict(LAB_A, s.plan, f"{OWNER}/other"))


def release_by_a_stranger(s: Story) -> None:
    raw = sign(
        s.alliance.members[FIRM].keys["targets"][-1],
        s.alliance.payload(FIRM, "release", s.about_model, {**release_terms(), "note": "x"}),
    )
    s.alliance.log(raw)


def release_of_another_version(s: Story) -> None:
    s.alliance.say(OWNER, "release", s.about_model, release_terms(version=1))


def release_at_another_hub(s: Story) -> None:
    s.alliance.say(OWNER, "release", s.about_model, release_terms(hub="other.example"))


def with_approvals(s: Story, *approvals: tuple[str, dict[str, Any]]) -> None:
    """The release anew, after these verdicts instead of the labs' own."""
    for known in (s.release, *s.approvals.values()):
        del s.alliance.logged[known]
    for lab, says in approvals:
        s.alliance.say(lab, "verdict", s.about_model, says)
    s.alliance.say(OWNER, "release", s.about_model, {**release_terms(), "note": "again"})


def honest_two_approvals(s: Story) -> None:
    with_approvals(s, (LAB_B, verdict(LAB_B, s.plan)), (LAB_C, verdict(LAB_C, s.plan)))


def one_approval(s: Story) -> None:
    with_approvals(s, (LAB_C, verdict(LAB_C, s.plan)))


def two_approvals_of_one_participant(s: Story) -> None:
    again = verdict(LAB_C, s.plan, timeVerified=format_time(NOW + 1))
    with_approvals(s, (LAB_C, verdict(LAB_C, s.plan)), (LAB_C, again))


def approval_by_a_stranger(s: Story) -> None:
    with_approvals(s, (LAB_C, verdict(LAB_C, s.plan)), (FIRM, verdict(FIRM, s.plan)))


def approval_of_another_plan(s: Story) -> None:
    with_approvals(s, (LAB_B, verdict(LAB_B, "0" * 64)), (LAB_C, verdict(LAB_C, s.plan)))


def approval_for_another_purpose(s: Story) -> None:
    trained = verdict(LAB_B, s.plan, verifiedLevels=["FEDHUB_TRAINED"])
    with_approvals(s, (LAB_B, trained), (LAB_C, verdict(LAB_C, s.plan)))


def approval_that_failed(s: Story) -> None:
    failed = verdict(LAB_B, s.plan, verificationResult="FAILED")
    with_approvals(s, (LAB_B, failed), (LAB_C, verdict(LAB_C, s.plan)))


def approval_taken_back_before_the_release(s: Story) -> None:
    del s.alliance.logged[s.release]
    s.alliance.revoke(LAB_A, s.approvals[LAB_A])
    s.alliance.say(OWNER, "release", s.about_model, {**release_terms(), "note": "again"})


def honest_approval_taken_back_after_the_release(s: Story) -> None:
    s.alliance.revoke(LAB_A, s.approvals[LAB_A])


def approval_after_the_release(s: Story) -> None:
    with_approvals(s, (LAB_C, verdict(LAB_C, s.plan)))
    s.alliance.say(LAB_B, "verdict", s.about_model, verdict(LAB_B, s.plan))


SIGNED_ATTACKS: list[tuple[Signed, str]] = [
    (honest_delegation, ACCEPTED),
    (delegation_widens_actions, "E_GRANT_WIDENED"),
    (delegation_drops_a_condition, "E_GRANT_WIDENED"),
    (delegation_outlives_its_parent, "E_GRANT_WIDENED"),
    (delegation_starts_before_its_parent, "E_GRANT_WIDENED"),
    (delegation_as_deep_as_its_parent, "E_GRANT_WIDENED"),
    (delegation_of_another_asset, "E_GRANT_WIDENED"),
    (delegation_by_a_stranger, "E_GRANT_PARENT"),
    (delegation_logged_before_its_parent, "E_GRANT_PARENT"),
    (grant_by_a_non_owner, "E_GRANT_OWNER"),
    (unknown_condition, "E_GRANT_CONDITION"),
    (unknown_member, "E_STATEMENT"),
    (window_of_more_than_a_year, "E_STATEMENT"),
    (grant_signed_by_a_site_key, "E_KEY_ROLE"),
    (grant_signed_by_the_status_key, "E_KEY_ROLE"),
    (grant_signed_by_a_root_key, "E_KEY_ROLE"),
    (receipt_signed_by_the_stewards_key, "E_KEY_ROLE"),
    (issuer_is_another_institution, "E_ISSUER"),
    (statement_for_another_hub, "E_HUB"),
    (nonce_used_twice, "E_REPLAY"),
    (nonce_used_by_two_institutions, ACCEPTED),
    (unknown_kind, "E_KIND"),
    (order_in_the_log, "E_KIND"),
    (payload_not_canonical, "E_STATEMENT"),
    (epsilon_as_a_float, "E_STATEMENT"),
    (receipt_as_a_grant, "E_GRANT_MISSING"),
    (honest_third_round, ACCEPTED),
    (third_round_left_out_of_provenance, "E_LINK"),
    (round_beyond_the_consent, "E_BUDGET"),
    (round_beyond_the_plan, "E_BUDGET"),
    (epsilon_overspent, "E_BUDGET"),
    (epsilon_beyond_the_plans, "E_BUDGET"),
    (delta_overspent, "E_BUDGET"),
    (epsilon_not_stated, "E_BUDGET"),
    (epsilon_falls, "E_BUDGET"),
    (chain_starts_again, "E_RECEIPT_CHAIN"),
    (chain_skips_a_receipt, "E_RECEIPT_CHAIN"),
    (chain_of_another_lab, "E_RECEIPT_CHAIN"),
    (chain_names_nothing, "E_RECEIPT_CHAIN"),
    (round_number_repeated, "E_RECEIPT_CHAIN"),
    (receipt_without_consent, "E_CONSENT"),
    (receipt_under_a_plain_grant, "E_CONSENT"),
    (receipt_under_anothers_grant, "E_RECEIPT_GRANT"),
    (consent_to_another_code, "E_PLAN"),
    (consent_to_another_plan, "E_CONSENT"),
    (consent_asks_for_more_participants, "E_PLAN"),
    (consent_expired_at_the_round, "E_TIME"),
    (too_few_participants, "E_PARTICIPANTS"),
    (receipt_listed_twice, "E_PARTICIPANTS"),
    (receipt_of_an_earlier_round_listed, "E_PARTICIPANTS"),
    (receipt_of_other_input_listed, "E_PARTICIPANTS"),
    (round_from_other_weights, "E_ROUND_CHAIN"),
    (round_skipped, "E_ROUND_CHAIN"),
    (round_forked, "E_ROUND_CHAIN"),
    (round_by_a_participant, "E_ISSUER"),
    (round_after_the_plan_was_withdrawn, "E_REVOKED"),
    (receipt_after_the_consent_was_withdrawn, "E_REVOKED"),
    (honest_consent_withdrawn_after_its_rounds, ACCEPTED),
    (honest_plan_withdrawn_after_its_rounds, ACCEPTED),
    (consent_void_from_before, "E_STATEMENT"),
    (honest_lone_receipt_is_not_counted, ACCEPTED),
    (evaluation_without_consent, "E_CONSENT"),
    (honest_evaluation, ACCEPTED),
    (pull_receipt_by_the_puller, "E_RECEIPT_ISSUER"),
    (pull_receipt_of_another_asset, "E_RECEIPT_GRANT"),
    (pull_receipt_without_a_grant, "E_RECEIPT_GRANT"),
    (pull_receipt_under_a_grant_to_train, "E_RECEIPT_GRANT"),
    (pull_after_the_grant_was_revoked, "E_REVOKED"),
    (version_fork, "E_VERSION_CHAIN"),
    (first_version_twice, "E_VERSION_CHAIN"),
    (version_gap, "E_VERSION_CHAIN"),
    (version_follows_another_asset, "E_VERSION_CHAIN"),
    (dataset_follows_a_model, "E_VERSION_CHAIN"),
    (asset_in_anothers_namespace, "E_ISSUER"),
    (asset_id_claimed_by_a_second_institution, "E_ASSET_CLAIMED"),
    (asset_claimed_with_the_owners_statement_withheld, "E_GRANT_OWNER"),
    (model_signature_over_other_files, "E_OMS"),
    (asset_revoked, ACCEPTED),  # without --files and --require nobody leans on it; its level says revoked
    (grant_revoked, "E_REVOKED"),
    (delegation_revoked_from_above, "E_REVOKED"),
    (parent_of_a_delegation_revoked, "E_REVOKED"),
    (honest_revocation_by_strangers, ACCEPTED),
    (honest_grantee_cannot_revoke_its_grant, ACCEPTED),
    (revocation_withheld_but_on_the_status_list, "E_REVOKED"),
    (honest_status_list_voids_no_consent, ACCEPTED),
    (status_sequence_repeats, "E_STATUS_ROLLBACK"),
    (status_lives_too_long, "E_STATEMENT"),
    (status_signed_by_the_hubs_operator, "E_ISSUER"),
    (key_revoked_from_its_start, "E_KEY_REVOKED"),
    (key_revoked_from_before_its_start, "E_STATEMENT"),
    (key_withdrawn_from_before, "E_STATEMENT"),
    (stolen_key_signs_after_its_revocation, "E_KEY_NOT_IN_FORCE"),
    (honest_key_revoked_later, ACCEPTED),
    (honest_strangers_key_revocation, ACCEPTED),
    (honest_rotation, ACCEPTED),
    (removed_key_signs_later, "E_KEY_NOT_IN_FORCE"),
    (new_key_signs_before_its_ring_is_logged, "E_KEY_NOT_IN_FORCE"),
    (newer_ring_withheld, "E_KEYRING_STALE"),
    (newer_rings_statement_withheld, "E_KEYRING_UNLOGGED"),
    (ring_logged_out_of_order, "E_KEYRING_UNLOGGED"),
    (ring_statement_names_another_file, "E_KEYRING_UNLOGGED"),
    (one_key_in_two_rings, "E_KEYRING_SHARED"),
    (provenance_by_a_stranger, "E_LINK"),
    (provenance_leaves_out_a_receipt, "E_LINK"),
    (provenance_leaves_out_a_round, "E_LINK"),
    (provenance_leaves_out_the_base, "E_LINK"),
    (provenance_lists_something_else, "E_LINK"),
    (provenance_of_a_version_that_names_no_plan, "E_LINK"),
    (version_without_the_last_aggregate, "E_LINK"),
    (result_of_an_unknown_asset, "E_LINK"),
    (result_under_anothers_consent, "E_LINK"),
    (result_by_a_stranger, "E_LINK"),
    (result_of_another_plans_version, "E_LINK"),
    (verdict_of_an_unknown_asset, "E_LINK"),
    (verdict_under_another_name, "E_LINK"),
    (release_by_a_stranger, "E_LINK"),
    (release_of_another_version, "E_LINK"),
    (release_at_another_hub, "E_LINK"),
    (honest_two_approvals, ACCEPTED),
    (one_approval, "E_APPROVALS"),
    (two_approvals_of_one_participant, "E_APPROVALS"),
    (approval_by_a_stranger, "E_APPROVALS"),
    (approval_of_another_plan, "E_APPROVALS"),
    (approval_for_another_purpose, "E_APPROVALS"),
    (approval_that_failed, "E_APPROVALS"),
    (approval_taken_back_before_the_release, "E_APPROVALS"),
    (honest_approval_taken_back_after_the_release, ACCEPTED),
    (approval_after_the_release, "E_APPROVALS"),
]


@pytest.mark.parametrize(("attack", "error"), SIGNED_ATTACKS, ids=[a.__name__ for a, _ in SIGNED_ATTACKS])
def test_what_colluding_signers_had_logged_is_refused(
    told: Story, tmp_path: Path, attack: Signed, error: str
) -> None:
    story = told.fork()
    use = attack(story)
    s = scene(story, tmp_path)
    s.options["use"] = use
    report = s.verify()
    assert found(report) == error, report.lines()[-1]


# --- the rest of section 9 --------------------------------------------------------------------------------


def test_a_revoked_version_reaches_no_level_and_its_files_are_refused(told: Story, tmp_path: Path) -> None:
    story = told.fork()
    asset_revoked(story)
    s = scene(story, tmp_path)
    revoked = [asset for asset in s.verify().assets if asset.revoked]
    assert [(asset.name, asset.version, asset.levels) for asset in revoked] == [(MODEL, 2, ())]
    s.options["require"] = "SIGNED"
    assert found(s.verify()) == "E_LEVEL"
    del s.options["require"]
    s.files()
    assert found(s.verify()) == "E_REVOKED"


def test_a_history_for_each_auditor_is_caught_by_the_next_checkpoint(told: Story, tmp_path: Path) -> None:
    one, other = told.fork(), told.fork()
    one.alliance.revoke(OWNER, one.grant)
    other.alliance.status(OWNER)
    seen = one.alliance.checkpoint
    other.alliance.status(FIRM)
    s = scene(other, tmp_path)
    other.alliance.pack(s.pack, old=seen.size)
    s.save_state(seen.size, seen.root)
    assert found(s.verify()) == "E_INCONSISTENT"


def test_a_receipt_is_listed_as_not_counted_when_no_round_names_it(told: Story, tmp_path: Path) -> None:
    story = told.fork()
    honest_lone_receipt_is_not_counted(story)
    report = scene(story, tmp_path).verify()
    assert "not counted" in report.steps[13].what


def test_an_asset_without_a_plan_never_reaches_trained(told: Story, tmp_path: Path) -> None:
    report = scene(told, tmp_path).verify()
    levels = {(asset.name, asset.version): asset.levels for asset in report.assets}
    assert levels[MODEL, 1] == ("SIGNED",)
    assert levels[MODEL, 2] == ("SIGNED", "TRAINED", "APPROVED")


def test_an_unknown_operator_cannot_vouch_for_rounds(told: Story, tmp_path: Path) -> None:
    s = scene(told, tmp_path)
    s.trust["operator"] = OWNER
    assert found(s.verify()) == "E_ISSUER"


def test_a_pack_of_another_alliance_with_the_same_names_is_refused(told: Story, tmp_path: Path) -> None:
    s = scene(told, tmp_path)
    s.trust = Alliance((OPERATOR, OWNER, *LABS, FIRM)).trust_document()
    assert found(s.verify()) == "E_CHECKPOINT_SIG"


def test_a_hub_name_is_part_of_every_own_statement(told: Story) -> None:
    assert {entry.says["hub"] for entry in told.alliance.evidence().by_kind("grant")} == {HUB}
