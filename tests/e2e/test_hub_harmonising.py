"""The joint scaling and the benefit report by the product's own commands, on real processes and real rows: from the
plan to a version that takes columns as they come, which an auditor verifies offline.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federation import training
from federation.plan import make_model_config
from federation.recipes.rows import read_rows
from hub.cli import dispatch
from hub.demo.alliance import LABS, ROLES, Alliance, institution
from storage.errors import Exit
from tests.clinics import COLUMNS, PARAMETERS, RECIPE, write_clinics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
MODEL = "owner.example/tumours"


@pytest.fixture(scope="module")
def alliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alliance]:
    made = Alliance(tmp_path_factory.mktemp("alliance"), dispatch)
    try:
        made.start_hub()
        for name in ROLES:
            made.enrol(name)
        made.pin_each_other()
        clinics = write_clinics(made.folder / "data", LABS)
        for lab in LABS:
            made.run(lab, "data", "describe", str(clinics[lab]), f"{institution(lab)}/tumours")
        made.start_agents()
        made.publish_status_lists()
        yield made
    finally:
        made.down()


def push_base(alliance: Alliance) -> None:
    from federation.recipes.loop import repeatable
    from federation.recipes.tabular_classification import build

    base = alliance.folder / "base"
    base.mkdir()
    with repeatable(3):
        training.save_weights(build(PARAMETERS), base / "model.safetensors")
    (base / "config.json").write_bytes(make_model_config(RECIPE, PARAMETERS))
    alliance.run("owner", "model", "push", str(base), MODEL, "--license", "Apache-2.0")


def finished_plan(alliance: Alliance) -> str:
    """The id of a plan whose run is over."""
    draft = alliance.folder / "draft"
    asked = ["--harmonise", "--smallest-cohort", "20", "--keep-updates", "--deadline", "60", "--rounds", "5"]
    for lab in LABS:
        asked += ["--participant", f"{institution(lab)}/tumours"]
    alliance.run("owner", "plan", "new", str(draft), "--model", f"{MODEL}@1", "--approvals", "1", *asked)
    said = alliance.run("owner", "plan", "check", str(draft)).text
    assert "joint scaling: before round 1 each site tells" in said and "fewer than 20 rows" in said
    plan = str(alliance.run("owner", "plan", "submit", str(draft)).data["id"])
    for lab in LABS:
        alliance.run(lab, "site", "approve", plan)
    alliance.run("lab-c", "site", "policy", "--smallest-cohort", "60")  # it holds out 57 rows
    alliance.run("owner", "run", "start", plan)
    alliance.run("owner", "run", "watch", plan, "--timeout", "120")
    return plan


def test_from_a_plan_to_a_verified_version_that_takes_columns_as_they_come(
    alliance: Alliance, tmp_path: Path
) -> None:
    push_base(alliance)
    plan = finished_plan(alliance)
    report = check_report(alliance, plan, tmp_path)
    out = tmp_path / "version"
    alliance.run("owner", "run", "finish", plan, "--out", str(out))
    check_version(alliance, out)
    recomputed = alliance.run("owner", "audit", "recompute", plan)
    assert "are the sum of what 3 sites signed" in recomputed.text
    told = alliance.run("lab-a", "evaluate", f"{MODEL}@2").data["evaluations"][0]
    share = report["sites"][0]["federated"]["share"]
    assert told["accuracy"] == pytest.approx(share, abs=1e-4), "scaled as the rounds were"
    refused = alliance.run("lab-c", "evaluate", f"{MODEL}@2", expect=Exit.REFUSED)
    assert refused.error["code"] == "E_COHORT"
    verify(alliance, out, tmp_path)


def check_report(alliance: Alliance, plan: str, folder: Path) -> dict[str, Any]:
    """Labs see it too; a saved one is checked against receipts, and a changed one refused."""
    report = alliance.run("owner", "run", "report", plan).data
    assert [row["verdict"] != "too few rows" for row in report["sites"]] == [True, True, False]
    assert report["sites"][2]["rows"] == 0 and report["sites"][2]["federated"] is None
    assert set(report["checked"].values()) == {"checked"}
    saved = folder / "report.json"
    saved.write_text(json.dumps(report))
    alliance.run("lab-b", "run", "report", plan, "--check", str(saved))
    report_changed = json.loads(saved.read_text())
    report_changed["sites"][0]["verdict"] = "gain" if report["sites"][0]["verdict"] != "gain" else "loss"
    (folder / "changed.json").write_text(json.dumps(report_changed))
    changed = ("run", "report", plan, "--check", str(folder / "changed.json"))
    assert alliance.run("lab-b", *changed, expect=Exit.REFUSED).error["code"] == "E_REPORT"
    (folder / "none.json").write_text("[]")
    none = ("run", "report", plan, "--check", str(folder / "none.json"))
    assert alliance.run("owner", *none, expect=Exit.FAILED).error["code"] == "E_INPUT"
    return dict(report)


def check_version(alliance: Alliance, folder: Path) -> None:
    """Anybody who holds the version applies it to raw columns: the joint scaling is in it."""
    assert (folder / "statistics.json").exists()
    rows = [read_rows(alliance.folder / "data" / lab / "heldout.csv", COLUMNS, 2) for lab in LABS]
    said = training.predict(folder, np.concatenate([one.features for one in rows])).labels
    assert (said == np.concatenate([one.labels for one in rows])).mean() > 0.88


def verify(alliance: Alliance, version: Path, folder: Path) -> None:
    """Offline, with the report; a changed report is refused."""
    pack, trust = folder / "pack", folder / "trust.json"
    alliance.run(
        "owner", "audit", "export", f"{MODEL}@2", "--out", str(pack), "--state", str(folder / "state")
    )
    trust.write_bytes((alliance.home("firm") / "trust.json").read_bytes())
    args = ("verify", str(pack), "--trust", str(trust), "--files", str(version), "--require", "TRAINED")
    alliance.run("owner", *args)
    check = ("audit", "report", str(folder / "report.json"), str(pack), "--trust", str(trust))
    assert alliance.run("owner", *check).data["rows"] == len(LABS)
    check = ("audit", "report", str(folder / "changed.json"), str(pack), "--trust", str(trust))
    changed = alliance.run("owner", *check, expect=Exit.REFUSED)
    assert changed.error["code"] == "E_REPORT"
