"""Members who sign nonsense: every statement of an honest log, bent at random, ends in an answer and never a crash.

Signatures and log proofs are valid, so what is tried here is everything behind them: reading, rules, links.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.admission import check_admission
from storage.encoding import canonical
from storage.errors import Rejected
from storage.signing import open_envelope, sign
from storage.statements import KINDS, read_statement
from storage.verify import examine
from tests.simulators import FIRM, LABS, MODEL, NOW, Story, tell_story

LEAF = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**53), 2**53),
    st.text(max_size=8),
    st.sampled_from(
        [
            "0" * 64,
            FIRM,
            LABS[0],
            MODEL,
            "2026-11-18T11:06:40Z",
            "0.5",
            "train",
            "pull",
            "model",
            "DUO:0000042",
        ]
    ),
)
VALUE = st.recursive(
    LEAF,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def told() -> Story:
    return tell_story(labs=LABS[:2], rounds=1)


def paths_of(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value, the outermost first."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(path for name, child in inner for path in paths_of(child, (*here, name)))]


def bend(data: st.DataObject, document: Any, ids: list[str]) -> Any:
    """One member replaced, taken away, doubled, or pointed at another statement."""
    path = data.draw(st.sampled_from(paths_of(document)[1:]))
    parent = document
    for name in path[:-1]:
        parent = parent[name]
    how = data.draw(st.sampled_from(["replace", "remove", "point", "add"]))
    if how == "replace":
        parent[path[-1]] = data.draw(VALUE)
    elif how == "point":
        parent[path[-1]] = data.draw(st.sampled_from(ids))
    elif how == "remove":
        del parent[path[-1]]
    elif isinstance(parent, dict):
        parent[data.draw(st.sampled_from(["plan", "parent", "previous", "epsilon", "round", "x"]))] = (
            data.draw(VALUE)
        )
    else:
        parent.append(data.draw(VALUE))
    return document


def bent_bundle(data: st.DataObject, story: Story) -> tuple[str, bytes] | None:
    """The id of an honest statement, and a bent one signed by the same key; None when nothing changed."""
    a = story.alliance
    victim = a.logged[data.draw(st.sampled_from(sorted(a.logged, key=lambda known: a.logged[known].index)))]
    envelope = open_envelope(victim.raw)
    document = bend(data, json.loads(envelope.payload), sorted(a.logged))
    try:
        payload = canonical(document)
    except Rejected:
        return None
    role = KINDS[read_statement(envelope).kind].role
    raw = sign(a.members[victim.member].keys[role][-1], payload)
    return None if open_envelope(raw).id in a.logged else (victim.id, raw)


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(data=st.data(), instead=st.booleans())
def test_a_bent_statement_in_a_pack_ends_in_a_report(
    told: Story, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, instead: bool
) -> None:
    story = told.fork()
    bent = bent_bundle(data, story)
    if bent is None:
        return
    victim, raw = bent
    if instead:
        del story.alliance.logged[victim]
    story.alliance.log(raw)
    place: Path = tmp_path_factory.mktemp("bent")
    pack = story.alliance.pack(place / "pack")
    report = examine(pack, story.alliance.trust(), now=NOW, use=story.use)
    assert report.ok or report.error is not None
    assert report.ok or report.steps[-1].code == report.error.code  # type: ignore[union-attr]


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_bent_statement_that_is_posted_is_admitted_or_refused(told: Story, data: st.DataObject) -> None:
    bent = bent_bundle(data, told)
    if bent is None:
        return
    try:
        entry = check_admission(told.alliance.evidence(), bent[1], now=NOW)
    except Rejected:
        return
    assert entry.index <= len(told.alliance.leaves)
