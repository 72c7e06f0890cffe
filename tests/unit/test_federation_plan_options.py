"""What a plan may ask of its sites besides rounds: written out, checked by name, and absent from plans without it."""

from typing import Any

import pytest

from federation.harmonising import DEFAULT_COHORT, Harmonise
from federation.plan import make_config, read_config
from storage.encoding import canonical, read_json
from storage.errors import Rejected
from tests.clinics import COLUMNS, PARAMETERS
from tests.unit.test_federation_plan import IMAGE

RECIPE = "tabular-classification"


def config(**options: Any) -> bytes:
    return make_config(RECIPE, PARAMETERS, quorum=2, **options)


def test_a_plan_without_options_has_none_of_their_members() -> None:
    value = read_json(config())
    assert not {"harmonise", "report", "smallestCohort"} & set(value)
    read = read_config(config())
    assert (read.harmonise, read.report, read.smallest_cohort) == (None, False, 1)


def test_options_are_written_out_with_the_smallest_cohort() -> None:
    read = read_config(config(harmonise=True, count_labels=True, report=True))
    assert read.harmonise == Harmonise(COLUMNS, True)
    assert (read.report, read.smallest_cohort) == (True, DEFAULT_COHORT)
    read = read_config(config(harmonise=["area"], smallest_cohort=25))
    assert (read.harmonise, read.smallest_cohort) == (Harmonise(("area",), False), 25)
    assert read_config(config(smallest_cohort=3)).smallest_cohort == 3


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"harmonise": {"columns": ["age"], "labels": False}}, "harmonise.columns: age is no column"),
        ({"harmonise": {"columns": [], "labels": False}}, "harmonise.columns"),
        ({"harmonise": {"columns": ["area", "area"], "labels": False}}, "harmonise.columns"),
        ({"harmonise": {"columns": ["area"]}}, "harmonise.labels: missing"),
        ({"harmonise": {"columns": ["area"], "labels": False, "rows": 1}}, "harmonise.rows: unknown"),
        ({"harmonise": ["area"]}, "harmonise: expected an object"),
        ({"harmonise": None}, "harmonise: expected an object"),
        ({"report": "yes"}, "report: expected true or false"),
        ({"smallestCohort": 0}, "smallestCohort: expected an integer"),
        ({"smallestCohort": "10"}, "smallestCohort: expected an integer"),
        ({"smallestCohort": None}, "smallestCohort"),
        ({"report": True}, "smallestCohort: missing"),
        ({"harmonize": {}}, "harmonize: unknown field"),
    ],
    ids=str,
)
def test_options_that_break_a_rule_are_named(change: dict[str, Any], field: str) -> None:
    value = read_json(config(harmonise=True)) if "report" not in change else read_json(config())
    with pytest.raises(Rejected, match="E_CONFIG") as caught:
        read_config(canonical({**value, **change}))
    assert field in caught.value.message


def test_a_recipe_whose_columns_are_not_scaled_has_no_joint_scaling() -> None:
    with pytest.raises(Rejected, match="image-classification has no columns that are scaled"):
        make_config("image-classification", IMAGE, quorum=2, harmonise=True)
