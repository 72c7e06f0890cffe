"""Idempotency keys: the first answer again, in the transaction that made it, per caller and for a while."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlmodel import Session, select

from federation.wire import Upload
from hub.api.once import Once
from hub.tables import AnswerRow
from storage.errors import Refused
from tests.databases import DATABASES, database_url
from tests.hubs import HubInProcess


@pytest.fixture(params=DATABASES)
def hub(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[HubInProcess]:
    with database_url(request.param, tmp_path) as url:
        made = HubInProcess(tmp_path, database_url=url)
        yield made
        made.close()


class Maker:
    """Counts what it makes."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> Upload:
        self.made += 1
        return Upload(id=str(self.made), state="open")


def answer(hub: HubInProcess, once: Once, make: Maker, *, secret: bool = False) -> Upload:
    def work(session: Session) -> Upload:
        return once.answer(hub.hub, session, Upload, make, secret=secret)

    with hub.hub.database.session_scope() as session:
        return work(session)


def test_a_repeated_request_gets_the_first_answer(hub: HubInProcess) -> None:
    make, once = Maker(), Once("lab-a.example", "a" * 64, "1" * 64)
    assert answer(hub, once, make) == answer(hub, once, make)
    assert make.made == 1


def test_keys_belong_to_their_caller_and_their_request(hub: HubInProcess) -> None:
    make = Maker()
    answer(hub, Once("lab-a.example", "a" * 64, "1" * 64), make)
    answer(hub, Once("lab-b.example", "a" * 64, "1" * 64), make)
    answer(hub, Once("lab-a.example", "b" * 64, "1" * 64), make)
    assert make.made == 3
    with pytest.raises(Refused) as caught:
        answer(hub, Once("lab-a.example", "a" * 64, "2" * 64), make)
    assert caught.value.field == "Idempotency-Key"


def test_without_a_key_nothing_is_kept(hub: HubInProcess) -> None:
    make = Maker()
    for _ in range(2):
        answer(hub, Once("lab-a.example", None, "1" * 64), make)
    assert make.made == 2
    with hub.hub.database.session_scope(write=False) as session:
        assert session.exec(select(AnswerRow)).all() == []


def test_a_request_that_failed_is_made_when_it_comes_again(hub: HubInProcess) -> None:
    once = Once("lab-a.example", "a" * 64, "1" * 64)

    class Broken(Maker):
        def __call__(self) -> Upload:
            raise Refused("E_ACCESS", "no")

    with pytest.raises(Refused):
        answer(hub, once, Broken())
    assert answer(hub, once, Maker()).id == "1"


def test_an_answer_with_a_secret_is_not_kept_and_not_repeated(hub: HubInProcess) -> None:
    make, once = Maker(), Once("lab-a.example", "a" * 64, "1" * 64)
    answer(hub, once, make, secret=True)
    with pytest.raises(Refused) as caught:
        answer(hub, once, make, secret=True)
    assert (caught.value.code, caught.value.status, make.made) == ("E_TOLD_ONCE", 409, 1)
    with hub.hub.database.session_scope(write=False) as session:
        assert session.exec(select(AnswerRow.body)).one() is None


def test_answers_are_forgotten_after_the_hours_that_the_settings_say(
    hub: HubInProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, once = Maker(), Once("lab-a.example", "a" * 64, "1" * 64)
    answer(hub, once, make)
    now = hub.hub.ledger.now()
    monkeypatch.setattr(hub.hub.ledger, "_clock", lambda: now + 24 * 3600 + 1)
    assert answer(hub, once, make).id == "2"
