"""An alliance of real processes whose parts are killed with kill -9 while runs go on.

A *blow* kills one part at a random moment: after a round has closed and a random while has passed, so that all
stages of a round are met. What an operator or the system would start again is started again here at once: the hub,
a site's supervisor, database and object store. Everything else is its own supervisor's business.
"""

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from federation import training, wire
from federation.home import Home
from federation.ledger import SiteLedger
from hub.cli import dispatch
from hub.demo import attacks
from hub.demo.alliance import LABS, Alliance, institution
from hub.demo.journey import PARAMETERS, RECIPE
from storage.errors import Unchecked
from storage.signing import open_envelope
from storage.statements import read_statement
from tests import servers

MODEL = "owner.example/digits"
SEED = 7
ROUND_DEADLINE_S = 240
RUN_LIMIT_S = 600.0
PARTS = ("hub", "superlink", "coordinator", "agent", "site", "blob server")
ENGINES = ("database", "object store")
# Part -> what stands on the command line of its process.
MODULES = {
    "superlink": "federation.flower.superlink",
    "coordinator": "federation.flower.executor",
    "agent": "federation.flower.node",
    "blob server": "storage.blob_server",
}


@dataclass(frozen=True)
class Terms:
    """What all plans of one kind have in common; plans of one kind end with the same weights."""

    name: str
    rounds: int
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Blow:
    """One kill.

    Attributes:
        part: which process. lab: whose, of agents and sites.
        delay: how long after a round has closed, in usual rounds.
    """

    part: str
    lab: str
    delay: float

    def __str__(self) -> str:
        whose = f" of {self.lab}" if self.part in ("agent", "site") else ""
        return f"{self.part}{whose} after {self.delay:.2f} rounds"


def draw_blows(seed: int, count: int, parts: Sequence[str]) -> list[Blow]:
    """``count`` blows, each part about equally often, in an order and at moments that ``seed`` decides."""
    chance = random.Random(seed)
    deck: list[str] = []
    while len(deck) < count:
        hand = list(parts)
        chance.shuffle(hand)
        deck += hand
    return [Blow(part, chance.choice(LABS), chance.uniform(0.0, 1.6)) for part in deck[:count]]


@dataclass
class Engine:
    """A server of somebody else's that is killed and started again as it was."""

    process: int
    again: "subprocess.Popen[bytes] | None" = None

    def strike(self) -> None:
        here = Path(f"/proc/{self.process}")
        command = [os.fsdecode(word) for word in (here / "cmdline").read_bytes().split(b"\0")[:-1]]
        known = [pair.partition(b"=") for pair in (here / "environ").read_bytes().split(b"\0") if pair]
        environment = {os.fsdecode(name): os.fsdecode(value) for name, _, value in known}
        folder, owner = os.readlink(here / "cwd"), here.stat()
        children = _children(self.process)
        os.kill(self.process, signal.SIGKILL)
        if self.again is not None:
            self.again.wait()
        else:  # buried, or PostgreSQL would take the process named in its lock file for alive
            os.waitpid(self.process, 0)
        _wait(lambda: not any(_command(child) for child in children), "the end of a server's own children")
        self.again = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=owner.st_uid,
            group=owner.st_gid,
            extra_groups=[],
        )
        self.process = self.again.pid

    def stop(self) -> None:
        if self.again is not None:
            self.again.send_signal(signal.SIGINT)
            try:
                self.again.wait(20)
            except subprocess.TimeoutExpired:
                self.again.kill()
                self.again.wait()


@dataclass
class Siege:
    """The alliance, and what was done to it."""

    alliance: Alliance
    engines: Mapping[str, Engine] = field(default_factory=dict)
    struck: Counter[str] = field(default_factory=Counter)
    recovered: dict[str, list[float]] = field(default_factory=dict)
    drafts: int = 0

    # --- plans ------------------------------------------------------------------------------------------------

    def push_base(self) -> None:
        """A base model, trained a little on the public part."""
        base = self.alliance.folder / "work" / "base"
        base.mkdir(parents=True)
        training.train_base(RECIPE, PARAMETERS, self.alliance.data("public"), base, SEED, epochs=2)
        self.alliance.run("owner", "model", "push", str(base), MODEL, "--tag", "base")

    def submit(self, terms: Terms) -> str:
        """A new plan to which every lab consents; its id."""
        self.drafts += 1
        folder = self.alliance.folder / "work" / f"draft-{self.drafts}"
        args = ["plan", "new", str(folder), "--model", f"{MODEL}:base", "--rounds", str(terms.rounds)]
        for lab in LABS:
            args += ["--participant", f"{institution(lab)}/digits"]
        args += ["--approvals", "1", "--seed", str(SEED), "--deadline", str(ROUND_DEADLINE_S)]
        self.alliance.run("owner", *args, *terms.options)
        plan = str(self.alliance.run("owner", "plan", "submit", str(folder)).data["id"])
        for lab in LABS:
            self.alliance.run(lab, "site", "approve", plan)
        return plan

    def start(self, plan: str) -> None:
        self.alliance.run("owner", "run", "start", plan)

    def run_of(self, plan: str) -> wire.Run:
        """The run as its owner sees it."""
        with Home.open(self.alliance.home("owner")).client() as client:
            return client.run(plan)

    def wait_run(self, plan: str, done: Callable[[wire.Run], bool], what: str, limit_s: float) -> wire.Run:
        """Look at a run until ``done``; a hub that is away for a while is waited for."""
        end = time.monotonic() + limit_s
        found: wire.Run | None = None
        with Home.open(self.alliance.home("owner")).client() as client:
            while time.monotonic() < end:
                try:
                    found = client.run(plan)
                except Unchecked as error:
                    if error.code not in ("E_HUB_UNREACHABLE", "E_DATABASE", "E_BUSY"):
                        raise
                else:
                    if done(found):
                        return found
                time.sleep(0.15)
        raise AssertionError(f"{what} did not happen within {limit_s:g} s: {found}\n{self.history(plan)}")

    def history(self, plan: str) -> str:
        """The run's last events, for a failure that has to be understood."""
        with Home.open(self.alliance.home("owner")).client() as client:
            events = client.events(plan)
        return "\n".join(f"{event.at} {event.kind} {event.data}" for event in events[-30:])

    # --- blows ------------------------------------------------------------------------------------------------

    def run_under(self, plan: str, blows: list[Blow], usual_s: float) -> wire.Run:
        """Start a run and strike until ``blows`` is empty or the run is over; what was struck is taken off it."""
        self.start(plan)
        closed, last, struck_at = 0, "", 0.0
        while True:
            run = self.wait_run(
                plan,
                lambda run, closed=closed: run.state in ("finished", "stopped") or len(run.rounds) > closed,  # type: ignore[misc]
                f"a round after round {closed} (last blow: {last or 'none'})",
                RUN_LIMIT_S,
            )
            if last:
                seconds = time.monotonic() - struck_at
                self.recovered.setdefault(last, []).append(seconds)
                print(f"  {last}: a round closed {seconds:.1f} s later", flush=True)
                last = ""
            closed = len(run.rounds)
            if run.state in ("finished", "stopped"):
                return run
            if blows and closed < run.rounds_planned:
                blow = blows[0]
                time.sleep(blow.delay * usual_s)
                if (before := self.strike(blow, plan)) is not None:
                    closed = before
                    print(f"  round {closed} + {blow.delay:.2f}: kill -9 {blow.part} {blow.lab}", flush=True)
                    last, struck_at = blow.part, time.monotonic()
                    self.struck[blow.part] += 1
                    blows.pop(0)
                    self.heal(blow)

    def strike(self, blow: Blow, plan: str) -> int | None:
        """Kill; how many rounds were closed, or None when the run has ended in the meantime."""
        end = time.monotonic() + 60.0
        while True:
            run = self.run_of(plan)
            if run.state in ("finished", "stopped"):
                return None
            if blow.part in self.engines:
                self.engines[blow.part].strike()
                return len(run.rounds)
            if found := self.find(blow):
                for process in found:
                    os.kill(process, signal.SIGKILL)
                return len(run.rounds)
            assert time.monotonic() < end, f"no process of the {blow.part} came"
            time.sleep(0.05)

    def find(self, blow: Blow) -> list[int]:
        """The process ids of a part."""
        if blow.part in ("hub", "site"):
            name = "hub" if blow.part == "hub" else blow.lab
            return [next(one.popen.pid for one in self.alliance.processes if one.name == name)]
        home = str(self.alliance.home(blow.lab)) if blow.part == "agent" else ""
        found = []
        for root in self.alliance.processes:
            for process in _descendants(root.popen.pid):
                words = _command(process)
                if MODULES[blow.part] in words and (not home or home in words):
                    found.append(process)
        return found

    def heal(self, blow: Blow) -> None:
        """Start again what nobody else would; a port may be held for a moment by a child that is ending."""
        if blow.part == "site":
            self.alliance.restart(blow.lab, wait=False)
        elif blow.part == "hub":
            self.alliance.restart("hub")

    # --- what must be true afterwards -------------------------------------------------------------------------

    def check(self, plan: str, run: wire.Run, weights: str) -> None:
        """The run ended as if nothing had happened, and an auditor finds nothing."""
        assert run.state == "finished", f"{run.reason}\n{self.history(plan)}"
        assert [each.round for each in run.rounds] == list(range(1, run.rounds_planned + 1))
        assert run.rounds[-1].aggregate == weights, "the final weights are not those of the undisturbed run"
        self._check_log(plan, run)
        self._check_ledgers(plan, run)
        self.check_pack(plan)

    def _check_log(self, plan: str, run: wire.Run) -> None:
        with Home.open(self.alliance.home("owner")).client() as client:
            rounds = [record.id for record in client.all_statements(kind="round", plan=plan)]
            logged = list(client.all_statements(kind="receipt", plan=plan))
        papers = {each.id: read_statement(open_envelope(each.bundle.encode())).predicate for each in logged}
        receipts = [each for each in logged if papers[each.id]["action"] == "train"]
        told = Counter(each.issuer for each in logged if papers[each.id]["action"] == "evaluate")
        assert rounds == [each.statement for each in run.rounds], "one round statement for each round"
        counted = [receipt for each in run.rounds for receipt in each.receipts]
        assert sorted(counted) == sorted(record.id for record in receipts), "every receipt counts once"
        per_site = Counter(record.issuer for record in receipts)
        assert per_site == {institution(lab): run.rounds_planned for lab in LABS}
        assert all(count == 1 for count in told.values()), "the benefit report is told once, if at all"

    def _check_ledgers(self, plan: str, run: wire.Run) -> None:
        for lab in LABS:
            with SiteLedger(Home.open(self.alliance.home(lab)).site / "ledger.db") as ledger:
                answers = [each for each in ledger.answers(plan=plan) if each.action == "train"]
                (spent,) = [each for each in ledger.spent() if each.plan == plan]
            assert [answer.round for answer in answers] == list(range(1, run.rounds_planned + 1)), lab
            assert all(answer.logged for answer in answers), lab
            assert (spent.rounds, spent.examples) == (len(answers), sum(each.examples for each in answers))

    def check_pack(self, plan: str) -> None:
        folder = self.alliance.folder / "work"
        made = self.alliance.run("owner", "run", "finish", plan).data
        pack = folder / f"pack-{plan[:12]}"
        self.alliance.run("owner", "audit", "export", f"{made['name']}@{made['version']}", "--out", str(pack))
        trust = self.alliance.home("firm") / "trust.json"
        verdict = attacks.verify_offline(str(pack), "--trust", str(trust), "--require", "TRAINED")
        assert verdict.exit == 0, verdict.error

    def report(self) -> str:
        """How often each part was struck and how long it took until the next round closed."""
        lines = [f"{sum(self.struck.values())} kill points: {dict(sorted(self.struck.items()))}"]
        for part, seconds in sorted(self.recovered.items()):
            middle = sorted(seconds)[len(seconds) // 2]
            lines.append(
                f"  {part:<12} next round after {middle:.1f} s (median), {max(seconds):.1f} s (most)"
            )
        return "\n".join(lines)


@contextmanager
def besieged(folder: Path, *, engines: bool = False) -> Iterator[Siege]:
    """An alliance with a base model; with ``engines`` on PostgreSQL and an S3 server instead of files."""
    with ExitStack() as stack:
        found: dict[str, Engine] = {}
        before = dict(os.environ)
        stack.callback(_put_back, before)
        if engines:
            found = _start_engines(stack)
        alliance = Alliance(folder, lambda argv, terminal: dispatch(argv, terminal))
        stack.callback(alliance.down)
        alliance.up()
        siege = Siege(alliance, found)
        siege.push_base()
        yield siege


def _start_engines(stack: ExitStack) -> dict[str, Engine]:
    """PostgreSQL and the S3 server; told to the hub by the settings that it reads."""
    mine = set(_children(os.getpid()))
    url = stack.enter_context(servers.postgres())
    database = Engine(next(iter(set(_children(os.getpid())) - mine)))
    stack.callback(database.stop)
    mine = set(_children(os.getpid()))
    s3 = stack.enter_context(servers.s3_server())
    store = Engine(next(iter(set(_children(os.getpid())) - mine)))
    stack.callback(store.stop)
    os.environ["FEDHUB_DATABASE_URL"] = url
    os.environ["FEDHUB_STORE_URL"] = f"s3+{s3.url}/fedhub"
    os.environ["FEDHUB_STORE_ACCESS_KEY"], os.environ["FEDHUB_STORE_SECRET_KEY"] = s3.access, s3.secret
    return {"database": database, "object store": store}


def _put_back(before: Mapping[str, str]) -> None:
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)


# --- processes ------------------------------------------------------------------------------------------------


def _wait(done: Callable[[], bool], what: str, limit_s: float = 30.0) -> None:
    end = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < end, f"{what} did not come"
        time.sleep(0.02)


def _children(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, _, rest = path.read_text(errors="replace").rpartition(") ")
        except OSError:
            continue  # it has ended
        if int(rest.split()[1]) == parent:
            found.append(int(path.parent.name))
    return found


def _descendants(root: int) -> list[int]:
    found = _children(root)
    return found + [each for child in found for each in _descendants(child)]


def _command(process: int) -> list[str]:
    """The words of a process's command line; none when it has ended."""
    try:
        return [os.fsdecode(word) for word in Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")]
    except OSError:
        return []
