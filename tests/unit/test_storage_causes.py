"""The table of causes: whole, in plain words, and with commands that exist."""

import re
from pathlib import Path

from hub.web.words import catalogue
from storage.causes import OWNERS, cause_of, find_cause, log_line, split_code, table

ROOT = Path(__file__).resolve().parents[2]
# Codes that stop neither: a programmer's mistake (Misuse), or of commands that a person runs and whose answer is there.
NEITHER = {
    "our own mistake": "NO_UPLOAD STATE WRITE",
    "offline verification of a pack": "APPROVALS ASSET_CLAIMED CHECKPOINT CHECKPOINT_SIG CHECKPOINT_STALE "
    "INCONSISTENT LEVEL LINK LOG_TILE MALFORMED NOT_LOGGED OMS ORIGIN PROOF QUORUM REPLAY ROLLBACK "
    "SPLIT_VIEW SUBJECT VERSION_CHAIN WITNESS_SIZE",
    "the store's own doors": "BLOB_EXISTS HTTP NO_BLOB ORDER_EXPIRED ORDER_SIGNATURE PARTS RANGE STORE_URL "
    "URL_EXPIRED URL_SIGNATURE",
    "a command that is wrongly called, or has said all itself": "AGGREGATE_DIFFERS DRAFT FIELD INTERRUPTED LICENSE "
    "NAME PATH REVISION SCOPE TAG TARGET TOKEN UNSAFE_FORMAT UPDATES_NOT_KEPT USAGE",
    "care of a hub that stands still": "BACKUP NO_HUB RUNNING",
    "the demo and the sandbox": "DEMO NODE SANDBOX SANDBOX_RUNNING",
    "a request that no client of ours sends": "FIELD_UNKNOWN JSON MEDIA_TYPE METHOD TOLD_ONCE",
    "stock clients, in their own words": "ENTRY GATED HISTORY LFS PULL_REQUEST REF REPOSITORY REPOSITORY_EXISTS "
    "STALE VERSIONS XET",
}


def codes_in_the_source() -> dict[str, set[str]]:
    """Every code that stands in our code, and the files that it stands in; but for those of ``Misuse`` alone."""
    found: dict[str, set[str]] = {}
    for package in ("storage", "federation", "hub"):
        for path in (ROOT / package).rglob("*.py"):
            text = re.sub(r'Misuse\(\s*"E_', "", path.read_text())
            for code in re.findall(r'"(E_[A-Z0-9_]+)[":]', text):
                found.setdefault(code, set()).add(str(path.relative_to(ROOT)))
    return found


def test_every_code_of_ours_has_a_cause_or_a_reason_to_have_none() -> None:
    neither = {f"E_{name}" for names in NEITHER.values() for name in names.split()}
    found = codes_in_the_source()
    lacking = {code: where for code, where in found.items() if code not in table() and code not in neither}
    assert not lacking
    assert not neither & set(table())
    assert not neither - set(found)


def test_every_cause_is_one_sentence_with_an_owner_and_an_imperative_step() -> None:
    for code, each in table().items():
        assert code == each.code and each.owner in OWNERS
        assert each.cause[0].isupper() and each.cause.endswith(".") and each.cause.count(". ") == 0, code
        assert each.step[0].isupper() and len(each.step) < 140 and len(each.cause) < 140, code
    assert list(table()) == sorted(table())


def test_every_cause_is_said_in_chinese_too() -> None:
    chinese = catalogue("zh-Hans")
    texts = {text for each in table().values() for text in (each.cause, each.owner, each.step)}
    assert not texts - set(chinese)
    assert not [text for text in texts if chinese[text].isascii()]


def test_a_code_of_another_release_still_gets_an_owner_and_a_step() -> None:
    assert find_cause("E_OF_TOMORROW") is None
    assert cause_of("E_OF_TOMORROW").owner == "hub operator"


def test_a_log_line_is_one_line_with_all_that_people_need() -> None:
    line = log_line("E_DNS", "hub.example:\nName or service not known")
    assert "\n" not in line
    each = cause_of("E_DNS")
    assert all(text in line for text in ("E_DNS: hub.example: Name", each.cause, each.owner, each.step))


def test_a_code_is_found_only_where_a_text_begins_with_it() -> None:
    assert split_code("E_DNS: no\nmore") == ("E_DNS", "no\nmore")
    assert split_code("see E_DNS: no") == ("", "see E_DNS: no")
