"""A whole alliance for faults: the real hub behind its API, real agents with real rows, a real coordinator.

Only Flower is played: orders go from the coordinator to the agents by a call. ``Stage.everywhere`` looks at the four
places where a stop is told: the API, the command line, the run's page, and the site's own log and status.
"""

import html
import io
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from federation import training
from federation.agent import Agent
from federation.coordination import Coordinator
from federation.delivery import Delivery
from federation.home import Home
from federation.ledger import SiteLedger
from federation.messages import OrderMessage, read_message
from federation.plan import build_recipe, make_config
from hub.cli import dispatch
from hub.terminal import Terminal
from storage.causes import cause_of, log_line
from storage.encoding import sha256_hex
from storage.errors import Exit
from storage.manifests import build_manifest, new_salt
from tests.alliances import LABS, OWNER, RECIPE, AllianceInProcess, Journey, open_alliance
from tests.round_hub import PARAMETERS

TWO = LABS[:2]
TROUBLED = TWO[1]


def write_rows(folder: Path, seed: int, rows: int = 12) -> Path:
    """A dataset of 4 x 4 pictures of three kinds."""
    numbers = random.Random(seed)
    folder.mkdir(parents=True)
    lines = ["label," + ",".join(f"p{number:02d}" for number in range(16))]
    lines += [
        ",".join(map(str, [number % 3, *(numbers.randrange(17) for _ in range(16))]))
        for number in range(rows)
    ]
    for name in ("train.csv", "heldout.csv"):
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


@dataclass
class Site:
    """One lab at work."""

    home: Home
    agent: Agent
    ledger: SiteLedger
    node: str
    data: Path
    dataset: str
    silent: bool = False


@dataclass
class Calls:
    """Flower's part: a message is a call."""

    sites: Mapping[str, Site]
    answers: dict[str, Delivery] = field(default_factory=dict)

    def send(self, texts: Mapping[str, str]) -> dict[str, str]:
        names = {}
        for node, text in texts.items():
            name = names[node] = f"{node}-{len(self.answers)}"
            if not self.sites[node].silent:
                reply = self.sites[node].agent.perform(read_message(text, OrderMessage))
                self.answers[name] = Delivery(name, reply.model_dump_json())
        return names

    def collect(self, messages: Sequence[str], *, wait_s: float) -> list[Delivery]:
        return [self.answers.pop(name) for name in messages if name in self.answers]

    def connected(self) -> dict[str, str]:
        return dict.fromkeys(self.sites, "2026-01-01")


class Stage:
    """Two labs with agents, and plans over them."""

    def __init__(self, alliance: AllianceInProcess, patch: Callable[[Any, str, Any], None]) -> None:
        from federation.recipes.image_classification import build
        from federation.recipes.loop import repeatable

        self.alliance = alliance
        self.folder = alliance.folder
        self.undo = ExitStack()  # what puts right again what a fault has done to the machine
        patch(Home, "client", lambda home, role="targets": alliance.client(home, role))
        base = self.folder / "base.safetensors"
        with repeatable(5):
            training.save_weights(build(PARAMETERS), base)
        self.weights = base.read_bytes()
        self.base = alliance.push({"model.safetensors": self.weights})
        self.sites = {name: self._site(name, number) for number, name in enumerate(TWO)}

    @property
    def troubled(self) -> Site:
        """The lab that faults are put into."""
        return self.sites[TROUBLED]

    def _site(self, name: str, seed: int) -> Site:
        home = self.alliance.homes[name]
        home.pin(OWNER, self.alliance.homes[OWNER].ring.pin)
        data = write_rows(self.folder / "rows" / name, seed)
        manifest = build_manifest(data, f"{name}/rows", salt=new_salt())
        home.add_dataset(manifest.name, data, manifest.raw, b"{}")
        subjects = [("manifest.json", manifest.asset_id), ("croissant.json", sha256_hex(b"{}"))]
        bundle = home.sign("asset", subjects, {"type": "dataset", "name": manifest.name, "version": 1})
        with self.alliance.as_(name) as client:
            client.post_statement(bundle, {"croissant.json": b"{}"})
        ledger = SiteLedger(home.site / "ledger.db")
        agent = Agent(home, self.alliance.as_(name, "snapshot"), ledger)
        return Site(home, agent, ledger, self.alliance.register_site(name), data, manifest.asset_id)

    def close(self) -> None:
        for site in self.sites.values():
            site.ledger.close()

    def plan(
        self,
        *,
        deadline_s: int = 60,
        kept: bool = True,
        parameters: Mapping[str, Any] = PARAMETERS,
        **members: Any,
    ) -> Journey:
        """A plan of one round to which both labs consent at the hub, and, when ``kept``, at home."""
        recipe = build_recipe(RECIPE)
        config = make_config(RECIPE, parameters, quorum=2, round_deadline_s=deadline_s)
        subjects = [("recipe.json", sha256_hex(recipe)), ("manifest.json", self.base.asset_id)]
        plan = self.alliance.submit(
            self.base,
            {name: site.dataset for name, site in self.sites.items()},
            rounds=1,
            config=config,
            subjects=[*subjects, ("config.json", sha256_hex(config))],
            members=members,
        )
        journey = Journey(self.alliance, plan)
        for name, site in self.sites.items():
            journey.consents[name] = self.alliance.consent(name, plan)
            if kept or name != TROUBLED:
                with self.alliance.as_(name) as client:
                    site.home.keep(client.statement(journey.consents[name]).bundle.encode())
        with self.alliance.as_(OWNER) as owner:
            owner.start_run(plan.id)
        journey.supervise().release()
        return journey

    def run(self, journey: Journey) -> None:
        """One attempt."""
        work = self.folder / "work"
        work.mkdir(exist_ok=True)
        with self.alliance.coordinator() as client:
            nodes = {site.node: site for site in self.sites.values()}
            Coordinator(client, Calls(nodes), journey.id, journey.run().attempt, work).run()  # type: ignore[arg-type]

    # --- where it is told ---------------------------------------------------------------------------------

    def command(self, name: str, *words: str, as_json: bool = False) -> tuple[Exit, str, Any]:
        """Exit code, text and answer of a command at a member's home."""
        home = self.alliance.homes[name].path
        terminal = Terminal(home, json=as_json, out=io.StringIO(), err=io.StringIO())
        code = dispatch(list(words), terminal)
        return code, terminal.out.getvalue() + terminal.err.getvalue(), terminal.answer or terminal.problem

    def everywhere(self, journey: Journey, code: str, *, whole_run: bool = False) -> None:
        """API, command line and page say the same of ``code``: of the run, or of the lab that is in trouble."""
        found = cause_of(code)
        words = (found.cause, found.owner, found.step)
        with self.alliance.http(token=self.alliance.hub.keys.coordinator_token) as http:
            assert http.get("/healthz").status_code == 200
        run = journey.run()
        told = [run.error] if whole_run else [each for each in run.faults if each.site == TROUBLED]
        said = {each.code: (each.cause, each.owner, each.step) for each in told if each is not None}
        assert said.get(code) == words, (code, run.error, run.faults, run.reason)
        assert str(self.folder) not in str(run), "where a site's files lie is nobody else's to know"
        for name in (OWNER, TROUBLED):
            text = self.command(name, "run", "show", journey.id)[1]
            assert f"{code}: {found.cause}" in text, text
            assert f"next step ({found.owner}): {found.step}" in text, text
        with self.alliance.http() as browser:
            page = html.unescape(browser.get(f"/runs/{journey.id}?lang=en").text)
            for text in (code, *words):
                assert text in page, (text, page)

    def at_the_site(self, code: str, log: str) -> None:
        """The site's own log and status say it too."""
        found = cause_of(code)
        tail = log_line(code, "").split(" | ", 1)[1]
        assert any(line.startswith(f"{code}: ") and line.endswith(tail) for line in log.splitlines()), log
        answer = self.command(TROUBLED, "site", "status", as_json=True)[2]
        told = [*answer["refusals"], *([answer["trouble"]] if answer["trouble"] else [])]
        assert {"cause": found.cause, "owner": found.owner, "step": found.step}.items() <= next(
            one for one in told if one["code"] == code
        ).items(), json.dumps(answer)


@contextmanager
def open_stage(folder: Path, patch: Callable[[Any, str, Any], None]) -> Iterator[Stage]:
    """A stage, closed at the end; ``patch`` is monkeypatch's ``setattr``."""
    with open_alliance(folder, superlink="external", open_pages=True, members=(OWNER, *TWO)) as alliance:
        stage = Stage(alliance, patch)
        try:
            yield stage
        finally:
            stage.close()
