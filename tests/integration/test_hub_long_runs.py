"""A long run by API and command line: an answer holds a page of rounds at most, and none is out of reach."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from federation.home import Home
from hub.cli import dispatch
from hub.commands import runs as commands
from hub.terminal import Terminal
from storage.errors import Exit, Refused
from tests.alliances import ENGINES, OWNER, AllianceInProcess, Journey, Setting, open_alliance
from tests.integration.test_hub_web_watching import PLANNED, close, loaded_rounds

PAGE = 100
CLOSED = 2 * PAGE + 50


@pytest.fixture(scope="module", params=ENGINES)
def alliance(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[AllianceInProcess]:
    folder = tmp_path_factory.mktemp("long")
    with open_alliance(folder, request.param, superlink="external", page_size=PAGE) as made:
        yield made


@pytest.fixture(scope="module")
def journey(alliance: AllianceInProcess) -> Journey:
    made = Setting(alliance).running(rounds=PLANNED)
    close(made, 1, CLOSED)
    return made


def test_an_answer_has_the_newest_rounds_and_earlier_ones_are_asked_for(journey: Journey) -> None:
    with journey.alliance.as_(OWNER) as client:
        with loaded_rounds() as read:
            run = client.run(journey.id)
        assert len(read) == PAGE and run.rounds_closed == CLOSED
        assert [each.round for each in run.rounds] == list(range(CLOSED - PAGE + 1, CLOSED + 1))
        assert [each.round for each in client.run(journey.id, newest=2, before=9).rounds] == [7, 8]
        assert client.run(journey.id, newest=1000).rounds == run.rounds
        with loaded_rounds() as read:
            state = client.run(journey.id, newest=0)
        assert (state.rounds, state.rounds_closed, read) == ([], CLOSED, [])
        with loaded_rounds() as read:
            (listed,) = [each for each in client.runs() if each.plan == journey.id]
        assert (len(listed.rounds), listed.rounds_closed) == (1, CLOSED) and len(read) <= len(client.runs())
        for odd in ({"newest": -1}, {"before": 0}):
            with pytest.raises(Refused, match="E_FIELD"):
                client.run(journey.id, **odd)


def test_the_whole_run_is_put_together_from_its_pages(journey: Journey) -> None:
    with journey.alliance.as_(OWNER) as client:
        assert [each.round for each in client.whole_run(journey.id).rounds] == list(range(1, CLOSED + 1))


def test_commands_show_every_round_and_watch_without_reading_them_again(
    journey: Journey, monkeypatch: pytest.MonkeyPatch
) -> None:
    alliance = journey.alliance
    monkeypatch.setattr(Home, "client", lambda home, role="targets": alliance.client(home, role))
    home = str(alliance.homes[OWNER].path)

    def told(*words: str, code: Exit = Exit.DONE) -> str:
        out = io.StringIO()
        assert dispatch(["--home", home, *words], Terminal(Path(home), out=out)) == code
        return out.getvalue()

    shown = told("run", "show", journey.id)
    assert f"running, {CLOSED} of {PLANNED} rounds" in shown
    table = [line.split()[0] for line in shown.splitlines() if line.strip()[:1].isdigit()]
    assert table == [str(number) for number in range(1, CLOSED + 1)]
    assert f"{CLOSED} of {PLANNED}" in told("run", "list")
    monkeypatch.setattr(commands, "_LOOK_S", 0.0)
    with loaded_rounds() as read:
        told("run", "watch", journey.id, "--timeout", "1", code=Exit.FAILED)
    assert read == []
    with alliance.as_(OWNER) as client:
        client.cancel_run(journey.id)
    watched = told("run", "watch", journey.id, code=Exit.REFUSED)
    assert f"cancelled, {CLOSED} of {PLANNED} rounds" in watched and all(
        f"\n{number} " in watched for number in (1, CLOSED)
    )
