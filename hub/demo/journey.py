"""The journey that ``fedhub demo`` shows: from six strangers to a released model that anybody can verify.

Every step runs the product's own commands on real processes, prints them, and checks what they answer. What
must be refused is refused here too, and kept in the report with the reason that was shown. Reading order:
``STEPS``.
"""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from federation import wire
from federation.home import Home
from hub.commands.runs import report_lines
from hub.demo import accuracy, attacks, digits
from hub.demo.alliance import LABS, ROLES, Alliance, Answer, CommandFailed, institution
from hub.demo.memory import MemoryWatch
from hub.terminal import Terminal, short, table
from storage.errors import Exit
from storage.signing import public_pem

MODEL = "owner.example/digits"
RECIPE = "image-classification"
PARAMETERS: dict[str, Any] = {
    "height": 8,
    "width": 8,
    "channels": 1,
    "pixelMax": 16,
    "classes": 10,
    "filters": 8,
    "hidden": 64,
    "epochs": 3,
    "batch": 32,
    "learningRate": "0.02",
    "momentum": "0.9",
    "proximalMu": "0",
}
BASE_EPOCHS = 60
SEED = 1
ROUNDS = 8
APPROVALS = 2
RUN_LIMIT_S = 120.0


class Journey:
    """One demo in one folder.

    Args:
        folder: where everything is made; what an earlier demo made there is removed.
        terminal: where the story is told.
    """

    def __init__(self, folder: Path, terminal: Terminal) -> None:
        self.folder = folder.resolve()
        self.terminal = terminal
        assert terminal.call is not None  # hub.cli runs this
        self.alliance = Alliance(self.folder, terminal.call, told=self._tell)
        self.refused: list[dict[str, str]] = []
        self.plan = ""
        self.version: dict[str, Any] = {}
        self.run: dict[str, Any] = {}
        self.benefit: dict[str, Any] = {}
        self.compared: accuracy.Comparison | None = None
        self._memory = MemoryWatch()
        self._began = 0.0

    def walk(self) -> dict[str, Any]:
        """All steps; gives the report, which is also in ``report.json``.

        Raises:
            FedhubError: a step did not do what it should.
        """
        self._began = time.monotonic()
        self._memory.start()
        for number, (title, step) in enumerate(STEPS, start=1):
            self.terminal.say(f"\n{number}. {title}  [{time.monotonic() - self._began:.0f} s]")
            step(self)
        report = self._report()
        (self.folder / "report.json").write_text(json.dumps(report, indent=2, sort_keys=True) + "\n")
        for line in self._table(report):
            self.terminal.say(line)
        return report

    # --- the steps ------------------------------------------------------------------------------------------

    def _hub(self) -> None:
        self.alliance.start_hub()
        info = self.alliance.hub_info
        self._say(
            f"the hub {info['origin']} answers at {info['endpoint']}; SuperLink and blob server beside it"
        )
        self._say(
            f"the operator's key ring was made by this first start; its pin is {short(info['operator_pin'])}…"
        )

    def _enrolment(self) -> None:
        for name in ROLES:
            self.alliance.enrol(name)
        self._say("each home pins the others, as after comparing pins by phone; the first of 20:")
        self.alliance.pin_each_other()
        self.alliance.run("owner", "login")
        self._say(
            "people and stock clients get personal tokens, which never sign; everybody says what is revoked:"
        )
        self.alliance.make_tokens()
        self.alliance.publish_status_lists()

    def _data(self) -> None:
        self.alliance.describe_data()
        for lab in LABS:
            counts = _label_counts(self.alliance.data(lab) / "train.csv")
            self._say(f"{lab} holds {sum(counts)} rows for training; by digit 0-9: {counts}")
        self.alliance.start_agents()
        self._say("three agents are online: outbound connections only, no port of theirs is open")

    def _base_model(self) -> None:
        from federation import training

        base = self.folder / "work" / "base"
        base.mkdir(parents=True)
        public = self.alliance.data("public")
        made = training.train_base(RECIPE, PARAMETERS, public, base, SEED, epochs=BASE_EPOCHS)
        self._say(f"trained a small network on {made.examples} public rows: {made.size:,} bytes of weights")
        self.alliance.run(
            "owner", "model", "push", str(base), MODEL, "--tag", "base", "--license", "Apache-2.0"
        )

    def _plan_and_consent(self) -> None:
        self.plan = self._submit("plan", ROUNDS)
        self.alliance.run("owner", "plan", "check", self.plan)
        for lab in LABS:
            self.alliance.run(lab, "site", "approve", self.plan)
        second = self._submit("second-plan", 1)
        self._expect_refusal("a run of a plan that nobody consented to", "owner", "run", "start", second)
        self._say(
            "now the demo plays a hostile hub: it signs orders for that plan with the operator's own key and"
        )
        self._say("sends them through SuperLink, past every check of the hub")
        self._play_hostile(second)

    def _rounds(self) -> None:
        self.alliance.run("owner", "run", "start", self.plan)
        watched = self.alliance.run("owner", "run", "watch", self.plan, "--timeout", str(RUN_LIMIT_S))
        self.run = watched.data["run"]
        for each in self.run["rounds"]:
            metrics = " ".join(f"{name} {value:.3f}" for name, value in each["metrics"].items())
            self._say(
                f"round {each['round']}: {each['seconds']:.2f} s, {len(each['receipts'])} receipts, {metrics}"
            )
        self.benefit = self.alliance.run("owner", "run", "report", self.plan).data
        self.version = self.alliance.run("owner", "run", "finish", self.plan, "--tag", "federated").data
        self._first_audit()

    def _evaluation(self) -> None:
        for lab in LABS:
            self.alliance.run(lab, "evaluate", self._reference)
        work = self.folder / "work"
        finished = work / "finished"
        self.alliance.run("owner", "model", "pull", self._reference, str(finished))
        epochs = ROUNDS * PARAMETERS["epochs"]
        self.compared = accuracy.compare(
            self.folder / "data", work / "compare", work / "base", finished, epochs, SEED
        )

    def _release(self) -> None:
        self.alliance.run("lab-a", "release", "approve", self._reference)
        self._expect_refusal(
            "a release with one approval of two", "owner", "release", "publish", self._reference
        )
        self.alliance.run("lab-b", "release", "approve", self._reference)
        self.alliance.run("owner", "release", "publish", self._reference)

    def _firm(self) -> None:
        target = self.folder / "firm" / "digits"
        pull = ("model", "pull", self._reference, str(target))
        self._expect_refusal("a pull without a grant", "firm", *pull)
        grant = ("grant", "issue", self._reference, "--to", institution("firm"), "--action", "pull")
        self.alliance.run("owner", *grant)
        self.alliance.run("firm", *pull)
        rows = self.folder / "work" / "compare" / "all" / "heldout.csv"
        said = accuracy.predict_some(target, rows, 12)
        right = sum(1 for guess, true in said if guess == true)
        self._say(f"the firm predicts {[guess for guess, _ in said]}: {right} of {len(said)} are right")
        self._flip_a_byte()

    def _auditor(self) -> None:
        audit = self.folder / "audit"
        shutil.copy(audit / "state.json", audit / "state-before.json")
        export = ("audit", "export", self._reference, "--out", str(audit / "pack"))
        self.alliance.run("owner", *export, "--state", str(audit / "state.json"))
        self._write_use()
        self._say(f"$ fedhub verify …  ({attacks.network_note()})")
        verdict = attacks.verify_offline(*self._verify_args(audit / "pack", audit / "state.json"))
        if verdict.exit != 0:
            raise CommandFailed("E_DEMO", f"the pack does not verify: {verdict.error}")
        for step in verdict.data["steps"]:
            note = f" (not checked: {', '.join(step['not_checked'])})" if step["not_checked"] else ""
            self._say(f"{step['step']:<4} {step['outcome']:<12} {step['name']}{note}")
        for what, alter in attacks.ALTERATIONS:
            shutil.copy(audit / "state-before.json", audit / "state-attack.json")
            place = attacks.altered(audit / "pack", self.folder / "work" / "altered", alter)
            verdict = attacks.verify_offline(*self._verify_args(place, audit / "state-attack.json"))
            self._note_refusal(f"a pack in which {what}", verdict.exit == 1, verdict.error)
        (audit / "state-attack.json").unlink()

    # --- parts of steps -------------------------------------------------------------------------------------

    @property
    def _reference(self) -> str:
        return f"{self.version['name']}@{self.version['version']}"

    def _submit(self, draft: str, rounds: int) -> str:
        folder = self.folder / "work" / draft
        args = ["plan", "new", str(folder), "--model", f"{MODEL}:base", "--rounds", str(rounds)]
        for lab in LABS:
            args += ["--participant", f"{institution(lab)}/digits"]
        args += ["--approvals", str(APPROVALS), "--seed", str(SEED), "--deadline", "60"]
        self.alliance.run("owner", *args)
        return str(self.alliance.run("owner", "plan", "submit", str(folder)).data["id"])

    def _play_hostile(self, plan: str) -> None:
        from federation.flower.control import Control
        from hub.demo.hostile import HostileHub, node_ids

        settings, keys = self.alliance.hub_settings()
        owner = Home.open(self.alliance.home("owner"))
        with owner.client() as client, Control(settings.control, keys.control_token) as control:
            shown = client.plan(plan)
            base = client.model(MODEL).versions[0]
            weights = next(file for file in base.files if file.name == "model.safetensors")
            url = next(file.url for file in client.pull(base.asset_id).files if file.name == weights.name)
            location = wire.WeightsLocation(
                sha256=weights.sha256, size=weights.size, url=url, parts=weights.parts
            )
            operator = Home.open(self.alliance.home("operator"))
            hostile = HostileHub(operator, shown, location, node_ids(control, shown))
            run_id = hostile.start(control, keys.coordinator_file)
            try:
                refusals = self._await_refusals(client, plan)
            finally:
                control.stop(run_id)
                hostile.stop()
        for lab, code in sorted(refusals.items()):
            why = self._why(lab.removesuffix(".example"), plan)
            self._note_refusal(f"orders of a hostile hub, at {lab}", True, f"{code}: {why}")

    def _await_refusals(self, client: Any, plan: str) -> dict[str, str]:
        """Institution -> code of its signed refusal, once all three are logged."""
        from federation.deciding import read_signed
        from hub.demo.alliance import wait_until

        owner = Home.open(self.alliance.home("owner"))
        found: dict[str, str] = {}

        def all_refused() -> bool:
            for record in client.all_statements(kind="refusal", plan=plan):
                refusal = read_signed(owner, client, record.bundle, kind="refusal", issuer=record.issuer)
                found[record.issuer] = str(refusal.predicate["code"])
            return len(found) == len(LABS)

        wait_until(all_refused, "a signed refusal of every lab", 60)
        return found

    def _why(self, lab: str, plan: str) -> str:
        entries = self.alliance.run(lab, "site", "ledger", "--plan", plan).data["entries"]
        return str(next(each["why"] for each in entries if each["refused"]))

    def _first_audit(self) -> None:
        """The auditor looks once before the release, so that a second look can show that history grew."""
        audit = self.folder / "audit"
        audit.mkdir()
        trust = json.loads((self.alliance.home("firm") / "trust.json").read_text())
        (audit / "trust.json").write_text(json.dumps(trust, indent=2, sort_keys=True) + "\n")
        first = self.folder / "work" / "first-pack"
        state = str(audit / "state.json")
        self.alliance.run("owner", "audit", "export", self._reference, "--out", str(first), "--state", state)
        verdict = attacks.verify_offline(str(first), "--trust", str(audit / "trust.json"), "--state", state)
        if verdict.exit != 0:
            raise CommandFailed("E_DEMO", f"the first pack does not verify: {verdict.error}")

    def _write_use(self) -> None:
        issued = self.alliance.run("firm", "grant", "list").data["grants"]
        grant = next(each for each in issued if each["grantee"] == institution("firm"))
        use = {
            "grant": grant["id"],
            "grantee": institution("firm"),
            "action": "pull",
            "asset": self.version["asset_id"],
            "name": MODEL,
            "duo": [],
        }
        (self.folder / "audit" / "use.json").write_text(json.dumps(use, sort_keys=True))

    def _verify_args(self, pack: Path, state: Path) -> list[str]:
        audit = self.folder / "audit"
        args = [str(pack), "--trust", str(audit / "trust.json"), "--state", str(state)]
        args += ["--files", str(self.folder / "firm" / "digits"), "--use", (audit / "use.json").read_text()]
        return [*args, "--require", "APPROVED"]

    def _flip_a_byte(self) -> None:
        """One byte of the stored weights changes; the next pull must see it and install nothing."""
        target = self.folder / "firm" / "flipped"
        weights = next(file for file in self.version["files"] if file["name"] == "model.safetensors")
        with self.alliance.flipped(weights["sha256"]):
            pull = ("model", "pull", self._reference, str(target))
            answer = self._expect_refusal("a pull after one byte of the store was flipped", "firm", *pull)
        left = [path.name for path in target.parent.iterdir() if "flipped" in path.name]
        if left or "model.safetensors" not in answer.error["message"]:
            raise CommandFailed("E_DEMO", f"the flipped byte left {left}: {answer.error['message']}")
        self._say("nothing was installed")

    def _expect_refusal(self, what: str, name: str, *args: str) -> Answer:
        answer = self.alliance.run(name, *args, expect=Exit.REFUSED)
        self._note_refusal(what, True, f"{answer.error['code']}: {answer.error['message']}")
        return answer

    def _note_refusal(self, what: str, refused: bool, error: str) -> None:
        if not refused:
            raise CommandFailed("E_DEMO", f"{what} was not refused: {error or 'accepted'}")
        self.refused.append({"what": what, "error": error})
        self._say(f"REFUSED, as it must be: {what}")
        self._say(f"        {error}")

    # --- telling --------------------------------------------------------------------------------------------

    def _tell(self, line: str, answer: Answer) -> None:
        self.terminal.say(f"   $ {_shortened(line, self.folder)}")
        if answer.exit is Exit.DONE and answer.text:
            self.terminal.say(f"     {_shortened(answer.text.splitlines()[0].strip(), self.folder)}")

    def _say(self, line: str) -> None:
        self.terminal.say(f"     {_shortened(line, self.folder)}")

    def _report(self) -> dict[str, Any]:
        assert self.compared is not None
        owner = Home.open(self.alliance.home("owner")).ring.newest
        (key,) = owner.roles["targets"].values()
        (self.folder / "audit" / "owner.pem").write_text(public_pem(key))
        self.alliance.copy_log(self.folder / "log")
        asset_id = self.version["asset_id"]
        return {
            "seconds_per_round": [each["seconds"] for each in self.run["rounds"]],
            "accuracy": asdict(self.compared),
            "benefit": self.benefit,
            "refused": self.refused,
            "model": {
                "name": self.version["name"],
                "version": self.version["version"],
                "asset_id": self.version["asset_id"],
            },
            "pack": "audit/pack",
            "trust": "audit/trust.json",
            "model_dir": "firm/digits",
            "oms_bundle": f"audit/pack/statements/{attacks.oms_of(self.folder / 'audit/pack', asset_id)}",
            "owner_key_pem": "audit/owner.pem",
            "log_base": "log",
            "log_key": self.alliance.hub_info["log_key"],
            "peak_rss_mb": self._memory.stop(),
        }

    def _table(self, report: dict[str, Any]) -> list[str]:
        found = report["accuracy"]
        rows = [(f"{name} alone", f"{share:.3f}") for name, share in found["local"].items()]
        rows += [("majority class", f"{found['majority']:.3f}"), ("federated", f"{found['federated']:.3f}")]
        rows += [("pooled (what no lab would allow)", f"{found['pooled']:.3f}")]
        seconds = report["seconds_per_round"]
        memory = ", ".join(f"{name} {peak:.0f}" for name, peak in report["peak_rss_mb"].items())
        return [
            "",
            *report_lines(wire.BenefitReport.model_validate(_without(self.benefit, "checked")), {}),
            "",
            *table((f"accuracy on the labs' {found['n']} held-out rows", ""), rows),
            "",
            f"{len(seconds)} rounds, {sum(seconds) / len(seconds):.2f} s each; refused as it must be: "
            f"{len(report['refused'])} attempts; peak memory in MB: {memory}",
            f"{self._reference} is released and verified. {time.monotonic() - self._began:.0f} s in all.",
            f"Everything is in {self.folder}; report.json says it for programs.",
        ]


STEPS: tuple[tuple[str, Callable[[Journey], None]], ...] = (
    ("A hub starts", Journey._hub),
    ("Six institutions join", Journey._enrolment),
    ("Three labs describe data that never leave", Journey._data),
    ("The owner pushes a base model", Journey._base_model),
    ("A plan, consents, and a plan without", Journey._plan_and_consent),
    ("Rounds", Journey._rounds),
    ("Evaluation at each lab", Journey._evaluation),
    ("Release by two of three labs", Journey._release),
    ("A firm pulls", Journey._firm),
    ("An auditor verifies, without a network", Journey._auditor),
)


def _without(found: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key != name}


def _label_counts(path: Path) -> list[int]:
    counts = [0] * 10
    for row in digits.read_rows(path):
        counts[row[0]] += 1
    return counts


def _shortened(line: str, folder: Path) -> str:
    """The line without the demo's folder, and with long digests and codes cut, for people to read."""
    words = line.replace(f"{folder}/", "").split(" ")
    return " ".join(f"{word[:12]}…" if len(word) >= 64 and "/" not in word else word for word in words)
