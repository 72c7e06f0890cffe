"""The hub joins what labs tell of their columns and lays their reports side by side; labs are scripted, their keys
and receipts real.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from federation import wire
from federation.benefit import check_report, check_with_statements
from federation.deciding import read_checked_plan
from federation.figures import Column, ColumnFigures, ReportFigures, write_columns, write_report
from federation.harmonising import read_statistics
from federation.joint_statistics import check_statistics
from federation.plan import build_recipe, make_config
from storage.encoding import sha256_hex
from storage.errors import FedhubError, Refused, Rejected
from storage.signing import open_envelope
from storage.statements import read_statement
from tests.alliances import (
    BASE,
    FIRM,
    LABS,
    OWNER,
    AllianceInProcess,
    Journey,
    Setting,
    digest,
    open_alliance,
)
from tests.clinics import PARAMETERS

RECIPE = "tabular-classification"
COLUMNS = ("radius", "texture")
COHORT = 10


@dataclass
class Told:
    """A run whose labs tell figures."""

    alliance: AllianceInProcess
    journey: Journey
    receipts: dict[tuple[str, str], str] = field(default_factory=dict)

    def tell(self, lab: str, action: str, figures: bytes, *, number: int = 1, source: str, rows: int) -> str:
        """A lab's receipt with its figures; its id."""
        dataset = self.dataset(lab)
        home = self.alliance.homes[lab]
        members = {
            "action": action,
            "grant": self.journey.consents[lab],
            "plan": self.journey.id,
            "round": number,
            "input": source,
            "examples": rows,
        }
        subjects = [("manifest.json", dataset), ("figures.json", sha256_hex(figures))]
        with self.alliance.as_(lab, "snapshot") as client:
            record = client.post_statement(home.sign("receipt", subjects, members), {"figures.json": figures})
        self.receipts[lab, action] = record.id
        return record.id

    def dataset(self, lab: str) -> str:
        return next(one.dataset for one in self.journey.plan.participants if one.institution == lab)

    def columns(self, lab: str, **changes: Any) -> str:
        """A lab's column statistics."""
        count = 100 + LABS.index(lab)
        known = {name: Column(name, count, 0, 2.0 * count, 50.0) for name in COLUMNS}
        figures = ColumnFigures(
            **{"plan": self.journey.id, "dataset": self.dataset(lab), "cohort": COHORT}
            | {"columns": known, "labels": None}
            | changes
        )
        return self.tell(lab, "statistics", write_columns(figures), source=digest(BASE), rows=count)

    def join(self, receipts: list[str]) -> wire.JointStatistics:
        with self.alliance.coordinator() as coordinator:
            told = wire.StatisticsReport(attempt=self.journey.attempt, receipts=receipts)
            return coordinator.join_statistics(self.journey.id, told)

    def harmonised(self) -> wire.JointStatistics:
        return self.join([self.columns(lab) for lab in LABS])

    def close_round(self, number: int, source: str) -> str:
        """A round in which all labs train, scaled as the hub says; its aggregate."""
        scaled = [("statistics.json", self.statistics)]
        self.journey.orders(number, source)
        told = self.journey.reports(number, source, scaled=scaled)
        self.journey.report(told)
        return told.aggregate

    @property
    def statistics(self) -> str:
        with self.alliance.as_(OWNER) as owner:
            return owner.statistics(self.journey.id).sha256

    def measured(self, lab: str, source: str, rows: int, **shares: str) -> str:
        """A lab's word on what the run brought it."""
        figures = ReportFigures(
            plan=self.journey.id,
            dataset=self.dataset(lab),
            cohort=COHORT,
            round=1,
            input=source,
            rows=rows,
            measured=shares,
            statistics=self.statistics,
        )
        return self.tell(lab, "evaluate", write_report(figures), source=source, rows=rows)


def told(alliance: AllianceInProcess, name: str, **options: Any) -> Told:
    setting = Setting(alliance, f"{OWNER}/{name}")
    recipe = build_recipe(RECIPE)
    asked = {"harmonise": COLUMNS, "report": True, "smallest_cohort": COHORT, **options}
    config = make_config(RECIPE, PARAMETERS, quorum=2, round_deadline_s=60, **asked)
    subjects = [
        ("recipe.json", sha256_hex(recipe)),
        ("manifest.json", setting.base.asset_id),
        ("config.json", sha256_hex(config)),
    ]
    journey = setting.running(rounds=1, recipe=recipe, config=config, subjects=subjects)
    return Told(alliance, journey)


@pytest.fixture(scope="module")
def alliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AllianceInProcess]:
    with open_alliance(tmp_path_factory.mktemp("figures"), superlink="external") as made:
        for name, home in made.homes.items():
            for other, its in made.homes.items():
                if name != other:
                    home.pin(other, its.ring.pin)
        yield made


def orders(one: Told, action: str, source: str) -> wire.Orders:
    return one.journey.orders(1, source, action=action)


def test_the_hub_joins_what_labs_told_once_and_orders_and_rounds_name_it(alliance: AllianceInProcess) -> None:
    one = told(alliance, "joined")
    with pytest.raises(Refused, match="E_STATISTICS"):
        orders(one, "train", digest(BASE))
    assert len(orders(one, "statistics", digest(BASE)).orders) == len(LABS)
    made = one.harmonised()
    found = read_statistics(made.document.encode())
    assert [column.center for column in found.columns] == ["2", "2"] and found.columns[0].rows == 303
    assert one.join([one.receipts[LABS[0], "statistics"]]) == made, "a repeat gets the first answer"
    bundle = next(iter(orders(one, "train", digest(BASE)).orders.values()))
    assert read_statement(open_envelope(bundle.encode())).subjects[1].digest == made.sha256
    one.close_round(1, digest(BASE))
    with alliance.as_(OWNER) as owner:
        record = owner.statement(owner.run(one.journey.id).rounds[0].statement)
        assert read_statement(open_envelope(record.bundle.encode())).subjects[1].digest == made.sha256
        plan, _ = read_checked_plan(alliance.homes[OWNER], owner, one.journey.id)
        checked = check_statistics(alliance.homes[OWNER], owner, plan, made.sha256)
        assert checked.institutions == LABS
        with pytest.raises(Rejected, match="E_STATISTICS"):
            check_statistics(alliance.homes[OWNER], owner, plan, "0" * 64)
    assert "run.harmonised" in one.journey.kinds()


def test_a_round_whose_receipts_scaled_otherwise_is_not_closed(alliance: AllianceInProcess) -> None:
    one = told(alliance, "otherwise")
    one.harmonised()
    one.journey.orders(1, digest(BASE))
    with pytest.raises(FedhubError, match="E_PARTICIPANTS"):
        one.journey.report(one.journey.reports(1, digest(BASE)))


def test_what_each_lab_told_is_for_owner_and_auditors_only(alliance: AllianceInProcess) -> None:
    one = told(alliance, "private")
    one.harmonised()
    with alliance.as_(OWNER) as owner, alliance.as_(LABS[0]) as lab, alliance.as_(FIRM) as firm:
        assert len(owner.statistics(one.journey.id).figures) == len(LABS)
        assert lab.statistics(one.journey.id).figures == []
        with pytest.raises(FedhubError, match="E_NOT_FOUND"):
            firm.statistics(one.journey.id)
        with pytest.raises(FedhubError, match="E_NOT_FOUND"):
            firm.report(one.journey.id)
        with pytest.raises(FedhubError, match="E_NOT_FOUND"):
            owner.report(one.journey.id)  # before the last round


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"plan": "1" * 64}, "E_FIGURES"),
        ({"dataset": "1" * 64}, "E_FIGURES"),
        ({"cohort": COHORT - 1}, "E_FIGURES"),
        ({"columns": {"radius": None}}, "E_FIGURES"),
        ({"labels": (50, 50)}, "E_FIGURES"),
    ],
)
def test_figures_that_the_plan_does_not_ask_for_are_not_joined(
    alliance: AllianceInProcess, changes: dict[str, Any], code: str
) -> None:
    one = told(alliance, f"strange-{abs(hash(str(changes))) % 10**8}")
    receipts = [one.columns(lab, **(changes if lab == LABS[1] else {})) for lab in LABS]
    with pytest.raises(FedhubError, match=code):
        one.join(receipts)
    with pytest.raises(FedhubError, match="E_FIELD"):
        one.join(receipts[::-1])
    with pytest.raises(FedhubError, match="E_STATISTICS"):
        one.join(receipts[:1])


def test_the_report_says_gain_loss_and_neither_and_is_made_again_from_receipts(
    alliance: AllianceInProcess,
) -> None:
    one = told(alliance, "report")
    one.harmonised()
    last = one.close_round(1, digest(BASE))
    one.measured(LABS[0], last, 400, federated="0.9500", local="0.8000", majority="0.5000")
    one.measured(LABS[1], last, 40, federated="0.9500", local="0.9000", majority="0.5000")
    with alliance.as_(OWNER) as owner:
        home = alliance.homes[OWNER]
        found = owner.report(one.journey.id)
        assert [row.verdict for row in found.sites] == ["gain", "no clear difference", "nothing told"]
        one.measured(LABS[2], last, 0)
        found = owner.report(one.journey.id)
        assert [row.verdict for row in found.sites] == ["gain", "no clear difference", "too few rows"]
        assert found.sites[2].federated is None and found.sites[2].rows == 0
        plan, _ = read_checked_plan(home, owner, one.journey.id)
        assert set(check_report(home, owner, plan, found).values()) == {"checked"}
        records = [*owner.all_statements(plan=one.journey.id), owner.statement(one.journey.id)]
        papers = {each.id: read_statement(open_envelope(each.bundle.encode())) for each in records}
        assert check_with_statements(papers, found) == len(LABS)
        withheld = {name: paper for name, paper in papers.items() if name != found.sites[0].receipt}
        with pytest.raises(Rejected, match="E_REPORT"):
            check_with_statements(withheld, found)
        for change in (
            {"verdict": "loss"},
            {"rows": 401},
            {"receipt": found.sites[1].receipt},
            {"figures": found.sites[1].figures},
            {"receipt": None, "figures": None},
            {"federated": found.sites[1].local},
        ):
            lie = found.model_copy(
                update={"sites": [found.sites[0].model_copy(update=change), *found.sites[1:]]}
            )
            with pytest.raises(Rejected, match=r"E_REPORT|E_ISSUER"):
                check_report(home, owner, plan, lie)
            with pytest.raises(Rejected, match="E_REPORT"):
                check_with_statements(papers, lie)
        with pytest.raises(Rejected, match="E_REPORT"):
            check_report(home, owner, plan, found.model_copy(update={"aggregate": "1" * 64}))


@pytest.mark.parametrize(
    ("language", "texts"),
    [
        ("en", ["What it brought each site", "no clear difference", "Joint scaling of columns"]),
        ("zh", ["给各站点带来了什么", "无明显差异", "各列的联合缩放"]),
    ],
)
def test_the_runs_page_shows_the_report_in_both_languages(
    alliance: AllianceInProcess, language: str, texts: list[str]
) -> None:
    one = told(alliance, f"page-{language}")
    one.harmonised()
    last = one.close_round(1, digest(BASE))
    one.measured(LABS[0], last, 40, federated="0.9500", local="0.9000", majority="0.5000")
    home = alliance.homes[OWNER]
    with alliance.http() as browser, alliance.client(home) as member:
        browser.headers["accept"] = "text/html"
        token = member.create_token("browser", ["read"], valid_days=1).token
        browser.post("/sign-in", data={"token": token, "to": "/runs"})
        page = browser.get(f"/runs/{one.journey.id}?lang={language}").text
    for text in [*texts, "0.950", 'id="benefit"', one.receipts[LABS[0], "evaluate"][:12]]:
        assert text in page


def test_a_run_without_its_report_is_asked_once_more_and_then_done(alliance: AllianceInProcess) -> None:
    from hub.services import run_ends

    one = told(alliance, "attempts")
    one.harmonised()
    one.close_round(1, digest(BASE))

    def done() -> bool:
        with alliance.hub.database.session_scope(write=False) as session:
            return run_ends.is_done(alliance.hub, session, one.journey.id)

    assert not done()
    event = wire.EventReport(attempt=1, kind="round.evaluated", data={"round": 1, "sites": 0})
    with alliance.coordinator() as coordinator:
        coordinator.report_events(one.journey.id, event)
    assert done()
