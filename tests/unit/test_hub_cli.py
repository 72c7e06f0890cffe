"""The command line: its table, its exit codes, its errors, and what it must not import."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Annotated

import pytest
import typer

import hub
from federation.lifeline import plain_environment
from hub import cli
from hub.terminal import Command, Terminal, short, table, terminal_of
from storage.errors import Exit, Refused, Rejected, Unchecked


class Console:
    """A terminal whose streams are read by the test."""

    def __init__(self, home: Path | None = None) -> None:
        self.terminal = Terminal(home, out=io.StringIO(), err=io.StringIO())

    def __call__(self, *argv: str) -> Exit:
        return cli.dispatch(list(argv), self.terminal)

    @property
    def out(self) -> str:
        assert isinstance(self.terminal.out, io.StringIO)
        return self.terminal.out.getvalue()

    @property
    def err(self) -> str:
        assert isinstance(self.terminal.err, io.StringIO)
        return self.terminal.err.getvalue()


@pytest.fixture
def console() -> Console:
    return Console()


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Make ``fedhub probe`` call a function of the test."""

    def install(body: Callable[[], object]) -> None:
        module = ModuleType("hub.commands.probe")
        app = typer.Typer(add_completion=False)

        @app.command(cls=Command)
        def probe(ctx: typer.Context, number: Annotated[int, typer.Option(min=1)] = 1) -> object:
            terminal_of(ctx)
            return body()

        module.__dict__["app"] = app
        monkeypatch.setitem(sys.modules, "hub.commands.probe", module)
        monkeypatch.setitem(cli.GROUPS, "probe", ("probe", "for a test"))

    return install


def raising(error: BaseException) -> Callable[[], object]:
    def body() -> object:
        raise error

    return body


@pytest.mark.parametrize(
    ("error", "code", "slug"),
    [
        (Rejected("E_SIGNATURE", "not signed"), Exit.REFUSED, "E_SIGNATURE"),
        (Refused("E_GRANT_MISSING", "no grant", "ask for one"), Exit.REFUSED, "E_GRANT_MISSING"),
        (Unchecked("E_HUB_UNREACHABLE", "away"), Exit.FAILED, "E_HUB_UNREACHABLE"),
        (ZeroDivisionError("boom"), Exit.FAILED, "E_CRASH"),
        (KeyboardInterrupt(), Exit.FAILED, "E_INTERRUPTED"),
        (ModuleNotFoundError("no", name="torch"), Exit.FAILED, "E_EXTRA"),
        (ModuleNotFoundError("no", name="httpx._client"), Exit.FAILED, "E_EXTRA"),
        (ModuleNotFoundError("no", name="hub.gone"), Exit.FAILED, "E_CRASH"),
    ],
)
def test_every_way_to_end_has_its_exit_code_and_its_name(
    console: Console,
    command: Callable[[Callable[[], object]], None],
    error: BaseException,
    code: Exit,
    slug: str,
) -> None:
    command(raising(error))
    assert console("probe") is code
    assert console.out == ""
    assert console.err.startswith(f"fedhub: {slug}: ")
    assert "Traceback" not in console.err


def test_an_error_for_a_program_is_one_json_document_on_stderr(
    console: Console, command: Callable[[Callable[[], object]], None]
) -> None:
    command(raising(Refused("E_X", "no", "do that")))
    assert console("probe", "--json") is Exit.REFUSED
    assert json.loads(console.err) == {"error": {"code": "E_X", "message": "no", "hint": "do that"}}
    assert console.out == ""


def test_a_crash_shows_its_traceback_only_when_asked(
    console: Console, command: Callable[[Callable[[], object]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    command(raising(ZeroDivisionError("boom")))
    monkeypatch.setenv("FEDHUB_DEBUG", "1")
    assert console("probe") is Exit.FAILED
    assert "Traceback" in console.err


@pytest.mark.parametrize("answer", [None, 0, 1, True, False, "done"])
def test_an_answer_that_is_no_exit_code_is_never_taken_for_success(
    console: Console, command: Callable[[Callable[[], object]], None], answer: object
) -> None:
    command(lambda: answer)
    assert console("probe") is Exit.FAILED
    assert "no exit code" in console.err


@pytest.mark.parametrize("code", list(Exit))
def test_an_exit_code_is_passed_on(
    console: Console, command: Callable[[Callable[[], object]], None], code: Exit
) -> None:
    command(lambda: code)
    assert console("probe") is code
    assert cli.main(["probe"]) == int(code)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["nonsense"],
        ["--home"],
        ["probe", "--number", "many"],
        ["probe", "--number", "0"],
        ["probe", "--unknown"],
        ["probe", "surplus"],
        ["model"],
        ["model", "nonsense"],
        ["model", "pull"],
        ["model", "push", "/nowhere", "a.example/m"],
        ["hub", "invite", "a.example", "emperor"],
    ],
)
def test_wrong_usage_is_2_and_says_where_help_is(
    console: Console, command: Callable[[Callable[[], object]], None], argv: list[str]
) -> None:
    command(lambda: Exit.DONE)
    assert console(*argv) is Exit.FAILED
    assert "--help" in console.err or "Usage" in console.err


@pytest.mark.parametrize(
    "argv", [["--help"], ["model", "--help"], ["model", "push", "--help"], ["--version"]]
)
def test_asking_for_help_is_no_error(
    console: Console, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert console(*argv) is Exit.DONE
    assert console.out or capsys.readouterr().out


def test_the_overview_names_every_group(console: Console) -> None:
    assert console("--help") is Exit.DONE
    for group in cli.GROUPS:
        assert f"\n  {group} " in console.out


@pytest.mark.parametrize("group", sorted(cli.GROUPS))
def test_every_group_opens_and_every_command_takes_home_and_json(group: str) -> None:
    from importlib import import_module

    command = typer.main.get_command(import_module(f"hub.commands.{cli.GROUPS[group][0]}").app)
    leaves = getattr(command, "commands", {group: command})
    for leaf in leaves.values():
        options = {text for parameter in leaf.params for text in parameter.opts}
        assert "--json" in options, leaf.name
        assert "--home" in options or group == "verify", leaf.name
        assert leaf.help, leaf.name


@pytest.mark.parametrize(
    "argv", [["--home", "{home}", "whoami"], ["--home={home}", "whoami"], ["whoami", "--home", "{home}"]]
)
def test_home_is_taken_before_and_after_the_command(
    console: Console, tmp_path: Path, argv: list[str]
) -> None:
    assert console(*(word.format(home=tmp_path / "h") for word in argv)) is Exit.FAILED
    assert f"no home at {tmp_path / 'h'}" in console.err


def test_the_environment_names_the_home_when_the_command_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEDHUB_HOME", str(tmp_path / "from-environment"))
    assert cli.main(["whoami"]) == 2
    assert "from-environment" in capsys.readouterr().err


def test_packages_from_two_installations_are_refused(
    console: Console, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import storage

    monkeypatch.setattr(storage, "__file__", str(tmp_path / "storage" / "__init__.py"))
    assert console("--version") is Exit.FAILED
    assert "E_PACKAGES" in console.err


def test_a_foreign_package_without_our_version_is_refused(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(hub, "__version__")
    assert console("whoami") is Exit.FAILED
    assert "E_PACKAGES" in console.err


@pytest.mark.parametrize(("argv", "extra"), [(["run", "list"], "lab"), (["hub", "up"], "hub")])
def test_a_missing_package_names_the_extra_of_its_command(
    console: Console, monkeypatch: pytest.MonkeyPatch, argv: list[str], extra: str
) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    error = ModuleNotFoundError("No module named 'numpy'", name="numpy")
    assert cli._explain_missing(console.terminal, argv, error) is Exit.FAILED
    assert f"fedhub[{extra}]" in console.err


HEAVY = (
    "torch",
    "flwr",
    "fastapi",
    "sqlmodel",
    "sqlalchemy",
    "httpx",
    "pydantic",
    "tuf",
    "minio",
    "numpy",
    "federation.home",
)


@pytest.mark.parametrize(
    "argv", [["--help"], ["verify", "--help"], ["model", "--help"], ["hub", "up", "--help"]]
)
def test_help_imports_nothing_heavy(argv: list[str]) -> None:
    script = (
        "import sys, json; from hub.cli import main; code = main(sys.argv[1:]);"
        "print(json.dumps([code, sorted(sys.modules)]), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, *argv],
        capture_output=True,
        text=True,
        env=plain_environment(),
        check=True,
    )
    code, loaded = json.loads(done.stderr)
    assert code == 0
    assert [name for name in HEAVY if name in loaded] == []


def test_a_closed_pipe_is_no_crash(tmp_path: Path) -> None:
    command = f"{sys.executable} -P -m hub --help | head -c 1"
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, env=plain_environment(), check=True
    )
    assert done.stderr == ""


def test_the_module_runs_as_the_command_does() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "hub", "--version"],
        capture_output=True,
        text=True,
        env=plain_environment(),
        check=True,
    )
    assert done.stdout == f"fedhub {hub.__version__}\n"


def test_a_table_lines_up_and_an_empty_one_says_so() -> None:
    assert table(("a", "bb"), [("1", "2"), ("333", "4")]) == ["a    bb", "1    2", "333  4"]
    assert table(("a",), []) == ["(none)"]
    assert short("a" * 64) == "a" * 12
    assert short(None) == "-"


def test_progress_is_silent_where_nobody_watches() -> None:
    console = Console()
    with console.terminal.progress("pull", 1 << 30) as moved:
        moved(1 << 20)
    assert console.err == "" and console.out == ""
