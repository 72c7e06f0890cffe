"""The page of a long run: a look at it costs no more than one at a short run, and nothing is out of reach."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from sqlalchemy import event, text

from hub.services import events, faults, watching
from hub.services.events import Kind
from hub.tables import RoundRow
from hub.web.run_pages import SHOWN
from tests.alliances import ENGINES, LABS, AllianceInProcess, Journey, Setting, digest, open_alliance
from tests.integration.test_hub_services_lookup import statements

PLANNED = 1000


@pytest.fixture(scope="module", params=ENGINES)
def alliance(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[AllianceInProcess]:
    folder = tmp_path_factory.mktemp("watching")
    with open_alliance(folder, request.param, superlink="external", open_pages=True) as made:
        yield made


@pytest.fixture(scope="module")
def setting(alliance: AllianceInProcess) -> Setting:
    return Setting(alliance)


@pytest.fixture
def journey(setting: Setting) -> Journey:
    return setting.running(rounds=PLANNED)


def close(journey: Journey, first: int, last: int) -> None:
    """Rounds as the hub keeps them once they are closed."""
    with journey.alliance.hub.database.session_scope() as session:
        for number in range(first, last + 1):
            told = {"accuracy": number / PLANNED}
            session.add(
                RoundRow(
                    plan=journey.id,
                    round=number,
                    statement=digest(b"statement %d" % number),
                    input=digest(b"input"),
                    aggregate=digest(b"aggregate %d" % number),
                    size=100,
                    seconds=2.0,
                    receipts=[digest(b"%d of %s" % (number, lab.encode())) for lab in LABS],
                    sites=dict.fromkeys(LABS, told),
                    metrics=told,
                    closed_at=number,
                )
            )


@contextmanager
def loaded_rounds() -> Iterator[list[RoundRow]]:
    """The rounds that are read whole inside the block."""
    found: list[RoundRow] = []

    def note(row: RoundRow, _context: object) -> None:
        found.append(row)

    event.listen(RoundRow, "load", note)
    try:
        yield found
    finally:
        event.remove(RoundRow, "load", note)


def shown(text: str) -> list[int]:
    """Numbers of the rounds in the table, as they stand."""
    return [int(one) for one in re.findall(r'data-label="Round" class="num">(\d+)<', text)]


def look(http: httpx.Client, journey: Journey) -> tuple[str, int]:
    """The part that a run's page asks for, and how many statements it took."""
    http.get(f"/runs/{journey.id}/part")  # connections are made, and the log is read
    with statements(journey.alliance.hub.database.engine) as sent, loaded_rounds() as rounds:
        answer = http.get(f"/runs/{journey.id}/part")
    assert answer.status_code == 200 and len(rounds) <= SHOWN
    return answer.text, len(sent)


def test_a_look_at_a_long_run_costs_no_more_than_one_at_a_short_run(journey: Journey) -> None:
    with journey.alliance.http() as http:
        close(journey, 1, 50)
        early, few = look(http, journey)
        close(journey, 51, 450)
        late, many = look(http, journey)
    assert many == few
    assert shown(early) == list(range(50, 50 - SHOWN, -1)) and shown(late) == list(
        range(450, 450 - SHOWN, -1)
    )
    assert "450 / 1000" in late and "2.00 s" in late and "45.0 kB" in late
    lines = [len(points.split()) for points in re.findall(r'<polyline points="([^"]*)"', late)]
    assert len(lines) == 1 + len(LABS) and all(90 <= each <= watching.DRAWN_ROUNDS + 2 for each in lines)
    assert "One round in 5 is drawn." in late and "is drawn" not in early


def test_rounds_that_are_not_shown_are_a_link_away_back_to_the_first(journey: Journey) -> None:
    close(journey, 1, 2 * SHOWN + 3)
    found, path = list[int](), f"/runs/{journey.id}"
    with journey.alliance.http() as http:
        while path:
            text = http.get(path).text
            found += shown(text)
            (path,) = re.findall(r'<a class="button" href="([^"]+)">Earlier rounds', text) or [""]
        assert found == list(range(2 * SHOWN + 3, 0, -1))
        assert shown(http.get(f"/runs/{journey.id}/rounds?before=1").text) == []
        assert http.get(f"/runs/{journey.id}/rounds?before=x").status_code == 422
        assert http.get(f"/runs/{digest(b'none')}/rounds").status_code == 404


def test_the_newest_events_are_shown_however_many_there_were(journey: Journey) -> None:
    told = [
        (Kind.SITE_REPLIED, {"institution": LABS[0], "round": 1, "seconds": number}) for number in range(5100)
    ]
    with journey.alliance.hub.database.session_scope() as session:
        events.append_all(session, journey.id, told, at=1)
    with journey.alliance.http() as http:
        text, _ = look(http, journey)
    assert text.count("<code>site.replied</code>") == 60
    assert re.search(r">seconds</span>\s*5099<", text)


def test_the_troubles_of_a_run_come_from_an_index_however_much_else_happened(journey: Journey) -> None:
    late = {"institution": LABS[0], "round": 7, "code": "E_LATE"}
    replies = [(Kind.SITE_REPLIED, {"institution": LABS[1], "round": 8}) for _ in range(20_000)]
    database = journey.alliance.hub.database
    with database.session_scope() as session:
        events.append_all(session, journey.id, [(Kind.SITE_LATE, late), *replies], at=1)
    if not database.is_sqlite:
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("ANALYZE event"))
    with database.session_scope(write=False) as session:
        found: list[str] = []

        def explain(
            _connection: Any, cursor: Any, sent: str, values: Any, _context: Any, _many: bool
        ) -> None:
            cursor.execute(f"EXPLAIN {'QUERY PLAN' if database.is_sqlite else ''} {sent}", values)
            found.extend(str(row[-1]) for row in cursor.fetchall())

        event.listen(session.get_bind(), "before_cursor_execute", explain)
        try:
            (trouble,) = faults.of_sites(session, journey.id, [])
        finally:
            event.remove(session.get_bind(), "before_cursor_execute", explain)
    assert (trouble.site, trouble.round, trouble.code) == (LABS[0], 7, "E_LATE")
    ways = [line for line in found if re.search(r"SEARCH|SCAN event|Scan.* on event", line)]
    assert sum("ix_event_plan_kind_id" in line for line in ways) == 3  # one for each kind of trouble
    assert all(
        "ix_event_plan_kind_id" in line or re.search("PRIMARY KEY|using pk_event", line) for line in ways
    )


def test_of_many_sites_the_common_line_is_drawn_and_each_rounds_sites_are_a_link_away(
    journey: Journey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "DRAWN_SITES", len(LABS) - 1)
    close(journey, 1, 3)
    with journey.alliance.http() as http:
        text, _ = look(http, journey)
        assert text.count("<polyline") == 1 and "only the common line is drawn" in text
        link = f"/runs/{journey.id}/rounds?before=3"
        assert f'href="{link}"' in text and "receipts-" not in text
        whole = http.get(link).text
    assert shown(whole) == [2, 1]
    for lab in LABS:
        assert f"<b>{lab}</b>" in whole and digest(b"2 of %s" % lab.encode())[:12] in whole
