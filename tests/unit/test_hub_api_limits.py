"""Rates and depth, without a hub."""

from typing import Any

import pytest

from hub.api.limits import Rate, _depth


def test_a_rate_lets_a_burst_through_and_then_refills_evenly() -> None:
    rate = Rate(60)
    assert [rate.take("a", now=0.0) for _ in range(60)] == [0.0] * 60
    wait_s = rate.take("a", now=0.0)
    assert wait_s == pytest.approx(1.0)
    assert rate.take("a", now=1.0) == 0.0
    assert rate.take("a", now=1.0) > 0


def test_names_do_not_pay_for_each_other() -> None:
    rate = Rate(1)
    assert rate.take("a", now=0.0) == rate.take("b", now=0.0) == 0.0
    assert rate.take("a", now=0.0) > 0


def test_no_limit_means_none() -> None:
    rate = Rate(0)
    assert all(rate.take("a", now=0.0) == 0.0 for _ in range(1000))


def test_names_that_are_made_up_do_not_fill_the_memory() -> None:
    rate = Rate(10)
    for number in range(3 * Rate.NAMES):
        rate.take(str(number), now=number / 1000)
    assert len(rate._levels) <= Rate.NAMES + 1


@pytest.mark.parametrize(
    ("value", "depth"),
    [(1, 0), ("x", 0), ([], 1), ({}, 1), ([[]], 2), ({"a": {"b": [1]}}, 3), ([1, [2, [3]]], 3)],
)
def test_depth_counts_levels(value: Any, depth: int) -> None:
    assert _depth(value, 16) == depth


def test_depth_is_counted_no_further_than_the_limit() -> None:
    value: Any = []
    for _ in range(500):
        value = [value]
    assert _depth(value, 4) == 5
