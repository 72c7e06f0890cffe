"""Delegation only narrows: conditions as an order, and uses as an auditor writes them."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import Exit, Unchecked
from storage.grants import Use, at_least_as_tight
from tests.simulators import FIRM, MODEL

DIGESTS = st.sampled_from(["0" * 64, "1" * 64])
DECIMALS = st.decimals(0, 99, places=3).map(lambda value: format(value.normalize(), "f"))
CONDITIONS = st.fixed_dictionaries(
    {},
    optional={
        "duo": st.sets(st.sampled_from(["DUO:0000001", "DUO:0000002", "DUO:0000003"]), min_size=1).map(
            sorted
        ),
        "code": DIGESTS,
        "plan": DIGESTS,
        "maxRounds": st.integers(1, 5),
        "minParticipants": st.integers(1, 5),
        "epsilon": DECIMALS,
        "delta": DECIMALS,
    },
)


def allows(conditions: dict[str, Any], use: dict[str, Any]) -> bool:
    """What conditions mean, written anew: does this use meet them?"""
    return (
        set(conditions.get("duo", [])) <= set(use["duo"])
        and conditions.get("code", use["code"]) == use["code"]
        and conditions.get("plan", use["plan"]) == use["plan"]
        and use["round"] <= conditions.get("maxRounds", 10**6)
        and use["participants"] >= conditions.get("minParticipants", 0)
        and Decimal(use["epsilon"]) <= Decimal(conditions.get("epsilon", "1000"))
        and Decimal(use["delta"]) <= Decimal(conditions.get("delta", "1000"))
    )


USES = st.fixed_dictionaries(
    {
        "duo": st.sets(st.sampled_from(["DUO:0000001", "DUO:0000002", "DUO:0000003"])),
        "code": DIGESTS,
        "plan": DIGESTS,
        "round": st.integers(1, 6),
        "participants": st.integers(0, 6),
        "epsilon": DECIMALS,
        "delta": DECIMALS,
    }
)


@given(child=CONDITIONS, parent=CONDITIONS, use=USES)
def test_tighter_conditions_allow_nothing_that_the_parent_forbids(
    child: dict[str, Any], parent: dict[str, Any], use: dict[str, Any]
) -> None:
    if at_least_as_tight(child, parent) and allows(child, use):
        assert allows(parent, use)


@given(conditions=CONDITIONS, more=CONDITIONS)
def test_conditions_are_as_tight_as_themselves_and_as_nothing(
    conditions: dict[str, Any], more: dict[str, Any]
) -> None:
    assert at_least_as_tight(conditions, conditions)
    assert at_least_as_tight({**more, **conditions}, conditions)
    assert at_least_as_tight(conditions, {})


@given(a=CONDITIONS, b=CONDITIONS, c=CONDITIONS)
def test_tightness_carries_along_a_chain(a: dict[str, Any], b: dict[str, Any], c: dict[str, Any]) -> None:
    if at_least_as_tight(a, b) and at_least_as_tight(b, c):
        assert at_least_as_tight(a, c)


def test_a_condition_that_nobody_knows_is_never_as_tight() -> None:
    assert not at_least_as_tight({"onTuesdays": True}, {"onTuesdays": True})


GOOD = {"grant": "0" * 64, "grantee": FIRM, "action": "pull", "asset": "1" * 64, "name": MODEL}


def test_a_use_is_read_with_and_without_its_options() -> None:
    assert Use.parse(GOOD) == Use("0" * 64, FIRM, "pull", "1" * 64, MODEL)
    at = Use.parse({**GOOD, "duo": ["DUO:0000042"], "at": "2026-11-18T11:06:40Z"})
    assert (at.duo, at.at) == (("DUO:0000042",), 1_795_000_000)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "x",
        {},
        {**GOOD, "more": 1},
        {name: value for name, value in GOOD.items() if name != "name"},
        {**GOOD, "grant": "x"},
        {**GOOD, "asset": None},
        {**GOOD, "grantee": "FIRM"},
        {**GOOD, "action": "read"},
        {**GOOD, "action": ["pull"]},
        {**GOOD, "name": "no-slash"},
        {**GOOD, "duo": "DUO:0000042"},
        {**GOOD, "duo": ["anything"]},
        {**GOOD, "duo": [7]},
        {**GOOD, "duo": {"DUO:0000042": 1}},
        {**GOOD, "at": 7},
        {**GOOD, "at": "tomorrow"},
    ],
)
def test_a_use_with_a_fault_is_its_writers_own(value: object) -> None:
    with pytest.raises(Unchecked) as caught:
        Use.parse(value)
    assert (caught.value.code, caught.value.exit) == ("E_INPUT", Exit.FAILED)
