"""Means over sites weigh by rows, and a gain is claimed only beyond doubt."""

import pytest

from federation.evaluation import interval, is_gain, mean_metrics


def test_means_weigh_by_examples_and_leave_out_what_a_site_does_not_say() -> None:
    sites = [(30, {"loss": 1.0, "accuracy": 0.9, "auc": 0.8}), (10, {"accuracy": 0.5, "loss": 3.0})]
    assert mean_metrics(sites) == {"loss": 1.5, "accuracy": pytest.approx(0.8)}
    assert mean_metrics([]) == {}


def test_an_interval_stays_within_zero_and_one_and_narrows_with_rows() -> None:
    assert interval(0.0, 10)[0] == 0.0 and interval(1.0, 10)[1] == pytest.approx(1.0)
    assert interval(1.0, 10)[1] <= 1.0 and interval(0.5, 1)[0] >= 0.0
    widths = [high - low for low, high in (interval(0.8, count) for count in (1, 10, 100, 1000))]
    assert widths == sorted(widths, reverse=True)


def test_no_gain_is_claimed_when_intervals_overlap() -> None:
    assert is_gain((0.95, 444), (0.83, 444))
    assert not is_gain((0.95, 40), (0.83, 40))
    assert not is_gain((0.83, 444), (0.95, 444))
