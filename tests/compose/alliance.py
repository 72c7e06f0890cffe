"""The members of an alliance around a hub in containers: everything is done by ``fedhub`` commands.

Owner, labs and firm have their homes and agents on this machine, outside the containers, and know nothing but the
published addresses. The operator's commands run in the hub's container, where the operator's home lies.
"""

import json
import shlex
from pathlib import Path
from typing import Any

from federation.home import Home
from hub.cli import dispatch
from hub.demo.alliance import LABS, ROLES, Alliance, Answer, CommandFailed, institution
from storage.errors import Exit
from tests.compose.engine import Engine

OPERATOR_HOME = "/var/lib/fedhub/operator"
MEMBERS = tuple(name for name in ROLES if name != "operator")


class Outside(Alliance):
    """Six institutions, one of them in the hub's container."""

    def __init__(self, folder: Path, engine: Engine, hub: str) -> None:
        super().__init__(folder, dispatch)
        self._engine = engine
        self.hub = hub  # name of the hub's container
        for name in ("homes", "logs", "data"):
            (self.folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)

    def run(self, name: str, *args: str, expect: Exit | None = Exit.DONE, tell: bool = True) -> Answer:
        """One command as one of the six; the operator's runs where the operator's home is."""
        if name != "operator":
            return super().run(name, *args, expect=expect, tell=tell)
        command = ["exec", self.hub, "fedhub", "--home", OPERATOR_HOME, *args, "--json"]
        said = self._engine.docker(*command, check=False)
        try:
            data: dict[str, Any] = json.loads(said)
        except ValueError:
            data = {}
        if not data or "error" in data:
            raise CommandFailed("E_COMPOSE", f"{shlex.join(command)}: {said}")
        return Answer(Exit.DONE, data, {}, said)

    def join(self) -> None:
        """All of them join, pin each other, say what they have revoked; labs describe data and start agents."""
        for name in MEMBERS:
            self.enrol(name)
        pins = {name: Home.open(self.home(name)).ring.pin for name in MEMBERS}
        for name in MEMBERS:
            for other in MEMBERS:
                if other != name:
                    self.run(name, "institution", "trust", institution(other), "--pin", pins[other])
        for name in ROLES:
            if name not in LABS:
                self.run(name, "institution", "status")
        self.describe_data()
        self.start_agents()

    def run_state(self, plan: str) -> dict[str, Any]:
        """The run as the hub shows it to the owner; empty while the hub does not answer."""
        answer = self.run("owner", "run", "show", plan, expect=None)
        return dict(answer.data) if answer.exit is Exit.DONE else {}
