"""The table of causes: whole, in plain words, and with commands that exist."""

import re
from pathlib import Path

from hub.web.words import catalogue
from storage.causes import OWNERS, cause_of, find_cause, log_line, split_code, table

ROOT = Path(__file__).resolve().parents[2]
# Where a code can come from that stops a run or a site: the agent, its supervisor and all they use; the coordinator;
# and of the hub what starts, watches and ends runs and lets sites in.
HUB = (
    "supervisor",
    "services/rounds",
    "services/runs",
    "services/plans",
    "services/identity",
    "services/statements",
)
# Codes that stop neither: a programmer's mistake (Misuse), or of commands that a person runs and whose answer is there.
NEITHER = {
    "our own mistake": "CLOSED FLOWER_LOUD MISUSE NO_UPLOAD BLOB_KEY RUN_CONFIG STATE WRITE",
    "offline verification of a pack": "APPROVALS ASSET_CLAIMED CHECKPOINT CHECKPOINT_SIG CHECKPOINT_STALE "
    "INCONSISTENT INPUT LEVEL LINK LOG_ROWS LOG_TILE MALFORMED NOT_LOGGED OMS ORIGIN PROOF QUORUM REPLAY ROLLBACK "
    "SPLIT_VIEW SUBJECT VERSION_CHAIN WITNESS_SIZE",
    "the store's own doors": "BLOB_EXISTS HTTP NO_BLOB ORDER_EXPIRED ORDER_SIGNATURE PARTS RANGE STORE_URL "
    "URL_EXPIRED URL_SIGNATURE",
    "a command that is wrongly called": "DRAFT LICENSE NO_UPDATES PATH REVISION TARGET UPDATES_NOT_KEPT USAGE "
    "FIELD SCOPE TOKEN",
}


def codes_in_the_source() -> dict[str, Path]:
    """Every code that can stop a run or a site, and a file that raises it."""
    paths = [*(ROOT / "federation").rglob("*.py"), *(ROOT / "storage").glob("*.py")]
    paths += [ROOT / "hub" / f"{name}.py" for name in HUB]
    return {code: path for path in paths for code in re.findall(r'"(E_[A-Z0-9_]+)[":]', path.read_text())}


def test_every_code_that_can_stop_a_run_or_a_site_has_a_cause() -> None:
    neither = {f"E_{name}" for names in NEITHER.values() for name in names.split()}
    found = codes_in_the_source()
    lacking = {code: path.name for code, path in found.items() if code not in table() and code not in neither}
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
