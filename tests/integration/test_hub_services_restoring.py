"""A backup put back goes on with the log that the world has seen, or does not go on at all."""

import io
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import col, select

from federation.publishing import push_version
from federation.signing_drafts import share_draft
from hub.cli import dispatch
from hub.services.restoring import Restored
from hub.tables import InstitutionRow, LogSequenceRow, StatementRow, StatementSubjectRow, VersionRow
from hub.terminal import Terminal
from storage.errors import Exit, FedhubError, Rejected
from tests.alliances import ENGINES, FIRM, MODEL, OWNER, AllianceInProcess, open_alliance, weights
from tests.hubs import HubInProcess, running_hub
from tests.servers import free_port
from tests.stock_http import Stock

ROOT = Path(__file__).parents[2]


class Hospital:
    """An alliance that can be left, copied and come back to."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind
        self.environment: dict[str, str] = {}

    def settings_of(self, alliance: AllianceInProcess) -> None:
        """The environment in which commands find this alliance's hub."""
        said = alliance.settings
        given: dict[str, Any] = {
            "ORIGIN": said.origin,
            "OPERATOR": said.operator,
            "DATA_DIR": said.data_dir,
            "OPERATOR_HOME": said.operator_home,
            "SUPERLINK": "off",
            "DATABASE_URL": said.database,
            "PORT": free_port(),
            "STORE_URL": said.store,
            "STORE_PUBLIC_URL": said.store_public,
            "STORE_ACCESS_KEY": said.store_access_key and said.store_access_key.get_secret_value(),
            "STORE_SECRET_KEY": said.store_secret_key and said.store_secret_key.get_secret_value(),
        }
        self.environment = {
            f"FEDHUB_{name}": str(value) for name, value in given.items() if value is not None
        }

    def run(self, *arguments: str) -> Terminal:
        terminal = Terminal(None, json=True, out=io.StringIO(), err=io.StringIO())
        code = dispatch(["hub", *arguments], terminal)
        assert code is Exit.DONE, terminal.problem
        return terminal

    def problem(self, *arguments: str) -> dict[str, str]:
        terminal = Terminal(None, json=True, out=io.StringIO(), err=io.StringIO())
        assert dispatch(["hub", *arguments], terminal) is not Exit.DONE
        return terminal.problem


@pytest.fixture(params=ENGINES)
def hospital(request: pytest.FixtureRequest, tmp_path: Path) -> Hospital:
    return Hospital(tmp_path, request.param)


@pytest.fixture
def alliance(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> Iterator[AllianceInProcess]:
    with open_alliance(hospital.folder, hospital.kind, superlink="off") as opened:
        hospital.settings_of(opened)
        for name, value in hospital.environment.items():
            monkeypatch.setenv(name, value)
        yield opened


def log_of(alliance: HubInProcess) -> list[tuple[Any, ...]]:
    """Every statement with all that the hub's answers about it depend on."""
    with alliance.hub.database.session_scope(write=False) as session:
        rows = session.exec(select(StatementRow).order_by(StatementRow.log_index)).all()  # type: ignore[arg-type]
        found = []
        for row in rows:
            subjects = session.exec(
                select(StatementSubjectRow.digest).where(StatementSubjectRow.statement == row.id)
            ).all()
            found.append(
                (
                    row.id,
                    row.kind,
                    row.issuer,
                    row.hint,
                    row.plan,
                    row.audience,
                    row.bundle,
                    row.leaf,
                    set(subjects),
                )
            )
    return found


def test_database_from_an_old_backup_goes_on_without_a_fork(
    hospital: Hospital, alliance: AllianceInProcess
) -> None:
    alliance.push({"model.safetensors": weights(1)})
    alliance.hub.ledger.publish()
    note = hospital.run("backup", str(hospital.folder / "backup")).answer
    assert note["entries"] == len(log_of(alliance))
    second = alliance.push({"model.safetensors": weights(2), "README.md": b"# new"})
    alliance.grant_pull(second.asset_id)
    alliance.enrol("late.example", "firm")
    head = alliance.hub.ledger.publish()
    before, entries = log_of(alliance), head.size if head else 0

    alliance.hub.database.close()
    restored = hospital.run("restore", str(hospital.folder / "backup"), "--replace").answer
    assert (restored["rows"], restored["statements"]) == (note["entries"], entries - note["entries"])
    assert restored["members"] == ["late.example"]
    assert restored["versions"] == [f"{MODEL}@2"] and restored["missing"] == []

    with reopened(alliance) as again:
        assert log_of(again) == before
        with again.client(alliance.homes[OWNER]) as owner:
            folder = hospital.folder / "third"
            folder.mkdir()
            (folder / "model.safetensors").write_bytes(weights(3))
            assert push_version(alliance.homes[OWNER], owner, folder, MODEL).version == 3
        after = again.hub.ledger.publish()
        assert after is not None and after.size > entries
        with again.client(alliance.homes[FIRM]) as firm:
            assert {file.name for file in firm.version(MODEL, 2).files} == {"model.safetensors", "README.md"}
            assert firm.pull(second.asset_id).grant


def test_what_no_statement_says_is_set_again_and_what_is_lost_is_named(
    hospital: Hospital, alliance: AllianceInProcess
) -> None:
    version = alliance.push({"model.safetensors": weights(1)}, tags=["kept"])
    stock = Stock.of(alliance, OWNER)
    with alliance.as_(OWNER) as owner:
        owner.set_visibility(MODEL, "public")
        leaked = owner.create_token("leaked", ["read"], valid_days=1)
        alliance.hub.ledger.publish()
        hospital.run("backup", str(hospital.folder / "backup"))
        owner.set_visibility(MODEL, "private")  # closed since: a restored hub must not open it again
        owner.revoke_token(leaked.id)
        owner.tag(MODEL, "stable", version.version)
        fresh = owner.create_token("fresh", ["read"], valid_days=1)
    stock.create(f"{OWNER}/sketches")
    stock.commit(f"{OWNER}/sketches", {"notes.txt": b"a draft"})
    shared = _share(alliance, stock, f"{OWNER}/rows")
    with alliance.as_(OWNER) as owner:
        owner.set_dataset_visibility(f"{OWNER}/rows", "private")
        croissant = owner.dataset(shared).croissant
    alliance.hub.ledger.publish()

    alliance.hub.database.close()
    restored = hospital.run("restore", str(hospital.folder / "backup"), "--replace").answer
    assert restored["tags"] == [f"{MODEL}:stable"] and restored["versions"] == [f"{OWNER}/rows@1"]
    assert sorted(restored["visibility"]) == [f"{MODEL} is private", f"{OWNER}/rows is private"]
    assert restored["revoked"] == [f"{OWNER}: leaked"]
    assert restored["lost_tokens"] == [f"{OWNER}: fresh"]
    assert restored["lost_drafts"] == [f"{OWNER}/sketches"]
    assert hospital.run("restore").answer["tags"] == []  # a second time there is nothing to do
    with reopened(alliance) as again:
        with again.client(alliance.homes[OWNER]) as owner:
            assert owner.version(MODEL, 1).tags == ["kept", "stable"]
            assert owner.dataset(shared).croissant == croissant and owner.dataset(shared).kept == "hub"
        with again.client(alliance.homes[FIRM]) as firm, pytest.raises(FedhubError, match="E_NOT_FOUND"):
            firm.model(MODEL)
        with again.client(alliance.homes[FIRM]) as firm, pytest.raises(FedhubError, match="E_NOT_FOUND"):
            firm.dataset(shared)
        for token in (leaked.token, fresh.token):
            assert again.http(token=token).get("/api/whoami-v2").status_code == 401


def test_a_repository_that_was_removed_is_not_named_as_lost(
    hospital: Hospital, alliance: AllianceInProcess
) -> None:
    alliance.hub.ledger.publish()
    hospital.run("backup", str(hospital.folder / "backup"))
    stock = Stock.of(alliance, OWNER)
    stock.create(f"{OWNER}/gone")
    body = {"name": "gone", "organization": OWNER, "type": "model"}
    assert stock.http.request("DELETE", "/api/repos/delete", json=body).status_code == 200
    alliance.hub.database.close()
    restored = hospital.run("restore", str(hospital.folder / "backup"), "--replace").answer
    assert restored["lost_drafts"] == []


def _share(alliance: AllianceInProcess, stock: Stock, name: str) -> str:
    """A shared data set of the owner's; its asset id."""
    stock.create(name, "dataset")
    stock.commit(name, {"a.csv": b"a\n1\n"}, kind="dataset")
    folder = alliance.folder / "rows"
    folder.mkdir()
    (folder / "a.csv").write_bytes(b"a\n1\n")
    with alliance.as_(OWNER) as owner:
        made = share_draft(
            alliance.homes[OWNER],
            owner,
            name,
            "main",
            files=folder,
            description="Rows.",
            license_id="CC0-1.0",
        )
    return str(made.asset_id)


@contextmanager
def reopened(alliance: AllianceInProcess) -> Iterator[HubInProcess]:
    """The same hub opened anew over the same folders and servers."""
    said = alliance.settings
    names = ("store_url", "store_public_url", "store_access_key", "store_secret_key", "database_url")
    given = {name: getattr(said, name) for name in names if getattr(said, name) is not None}
    with running_hub(alliance.folder, **given) as again:
        yield again


def test_restoring_what_is_whole_changes_nothing(hospital: Hospital, alliance: AllianceInProcess) -> None:
    alliance.push({"model.safetensors": weights(1)})
    alliance.hub.ledger.publish()
    before = log_of(alliance)
    restored = hospital.run("restore").answer
    assert (restored["rows"], restored["statements"]) == (len(before), 0)
    assert log_of(alliance) == before


def test_database_that_went_on_without_its_store_is_a_fork(
    hospital: Hospital, alliance: AllianceInProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Restored from a backup and then used: its entries are not those that the world has seen."""
    alliance.hub.ledger.publish()
    hospital.run("backup", str(hospital.folder / "backup"))
    alliance.enrol("seen.example", "firm")
    alliance.hub.ledger.publish()
    alliance.hub.database.close()
    monkeypatch.setattr("hub.services.restoring.restore_log", lambda _hub: Restored())
    hospital.run("restore", str(hospital.folder / "backup"), "--replace")
    monkeypatch.undo()
    for name, value in hospital.environment.items():
        monkeypatch.setenv(name, value)
    alliance.homes.pop(FIRM)
    with (
        alliance.hub.database.session_scope() as session
    ):  # another statement takes the place of what was seen
        row = session.exec(select(StatementRow).order_by(col(StatementRow.log_index).desc())).first()
        assert row is not None
        session.expunge(row)
        session.add(
            StatementRow(
                **{**row.model_dump(), "id": "f" * 64, "log_index": row.log_index + 1, "leaf": b"other"}
            )
        )
        session.exec(select(LogSequenceRow)).one().next_index = row.log_index + 2
    assert hospital.problem("restore")["code"] == "E_LOG_FORK"
    with pytest.raises(Rejected, match="E_LOG_FORK"), reopened(alliance):
        pass


def test_versions_whose_bytes_are_gone_are_named_and_the_log_is_whole(
    hospital: Hospital, alliance: AllianceInProcess
) -> None:
    alliance.hub.ledger.publish()
    hospital.run("backup", str(hospital.folder / "backup"))
    alliance.push({"model.safetensors": weights(9)})
    alliance.hub.ledger.publish()
    before = log_of(alliance)
    for key in list(alliance.store.list("blobs/")):
        alliance.store.delete(key)
    alliance.hub.database.close()
    restored = hospital.run("restore", str(hospital.folder / "backup"), "--replace").answer
    assert restored["missing"] == [f"{MODEL}@1"] and restored["versions"] == []
    assert log_of(alliance) == before
    with alliance.hub.database.session_scope(write=False) as session:
        assert session.exec(select(VersionRow)).all() == []


def test_changed_statement_in_the_store_stops_the_restoration(
    hospital: Hospital, alliance: AllianceInProcess
) -> None:
    alliance.hub.ledger.publish()
    hospital.run("backup", str(hospital.folder / "backup"))
    alliance.enrol("late.example", "firm")
    alliance.hub.ledger.publish()
    last, first = log_of(alliance)[-1], log_of(alliance)[0]
    alliance.store.put(f"statements/{last[0][:2]}/{last[0]}.sigstore.json", first[6])
    alliance.hub.database.close()
    problem = hospital.problem("restore", str(hospital.folder / "backup"), "--replace")
    assert problem["code"] == "E_LOG_FORK"


def test_backup_is_private_and_holds_the_operator_only_when_asked(
    hospital: Hospital, alliance: AllianceInProcess
) -> None:
    hospital.run("backup", str(hospital.folder / "plain"))
    hospital.run("backup", str(hospital.folder / "full"), "--operator-home")
    assert not (hospital.folder / "plain" / "operator").exists()
    assert (hospital.folder / "full" / "operator" / "keys" / "root.pem").exists()
    for path in (hospital.folder / "full").rglob("*"):
        if path.is_file() and ("keys" in path.parts or path.name == "fedhub.db"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert hospital.problem("backup", str(hospital.folder / "plain"))["code"] == "E_TARGET"


def test_restoring_needs_another_word_where_a_database_is(
    hospital: Hospital, alliance: AllianceInProcess
) -> None:
    hospital.run("backup", str(hospital.folder / "backup"))
    assert hospital.problem("restore", str(hospital.folder / "backup"))["code"] == "E_TARGET"
    assert hospital.problem("restore", str(hospital.folder / "nothing"))["code"] == "E_BACKUP"


def test_everything_but_the_store_can_be_lost(hospital: Hospital, alliance: AllianceInProcess) -> None:
    if hospital.kind != "sqlite":
        pytest.skip("the server's database is not lost with the folder")
    alliance.push({"model.safetensors": weights(4)})
    alliance.hub.ledger.publish()
    hospital.run("backup", str(hospital.folder / "full"), "--operator-home")
    before = log_of(alliance)
    alliance.hub.database.close()
    shutil.rmtree(hospital.folder / "hub" / "keys")
    shutil.rmtree(hospital.folder / "homes" / "operator")
    for path in hospital.folder.glob("fedhub.db*"):
        path.unlink()
    hospital.run("restore", str(hospital.folder / "full"))
    with reopened(alliance) as again:
        assert log_of(again) == before


KILLED = """
import importlib, os, signal, sys
module, calls = importlib.import_module("{module}"), []
original = module.{name}
def killed(*arguments, **options):
    calls.append(1)
    if len(calls) == {after}:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **options)
module.{name} = killed
from hub.cli import main
sys.exit(main(sys.argv[1:]))
"""


def killed_in(module: str, name: str, after: int, *arguments: str) -> None:
    """Run a command that is killed as it calls a function for the nth time."""
    code = KILLED.format(module=module, name=name, after=after)
    done = subprocess.run(
        [sys.executable, "-c", code, "hub", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


@pytest.mark.fault
def test_killed_backup_leaves_no_backup_and_killed_restoration_is_finished_by_the_next(
    hospital: Hospital, alliance: AllianceInProcess
) -> None:
    alliance.hub.ledger.publish()
    backup = hospital.folder / "backup"
    killed_in("hub.services.backups", "_sync", 1, "backup", str(backup))
    assert not backup.exists()
    hospital.run("backup", str(backup))
    alliance.push({"model.safetensors": weights(6)})
    for name in ("one.example", "two.example"):
        alliance.enrol(name, "firm")
    alliance.hub.ledger.publish()
    before = log_of(alliance)
    alliance.hub.database.close()
    killed_in("hub.services.statements", "readmit", 2, "restore", str(backup), "--replace")
    short = log_of(alliance)
    assert short == before[: len(short)] and len(short) < len(before)
    alliance.hub.database.close()
    hospital.run("restore")
    assert log_of(alliance) == before
    with alliance.hub.database.session_scope(write=False) as session:
        assert session.get(InstitutionRow, "two.example") is not None
    with reopened(alliance) as again:
        assert log_of(again) == before
