"""A lab's own code in place of a recipe: fetched by digest, checked, asked, and its answer checked.

What the app answers is whole weights; here they become an update like any recipe's: same tensors, finite
numbers, the difference to what was received, in the form that the plan says. Used by ``agent``.
"""

import math
import os
import re
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from federation import fetching
from federation.app_bundle import AppBundle, check_named, read_bundle_file
from federation.app_process import AppPolicy, AppProcess, sweep
from federation.app_terms import AppTerms
from federation.compression import Changed, Feedback, write_update
from federation.home import Home
from federation.plan import TrainingPlan
from federation.tensors import Array, Layout, TensorFile, TensorSpec
from federation.training import TrainResult
from storage.errors import FedhubError, Misuse, Rejected

if TYPE_CHECKING:
    from federation.client import HubClient

INPUT, OUTPUT = "input.safetensors", "output.safetensors"
KEPT_BUNDLES = 4
MOST_EXAMPLES = (1 << 53) - 1
_METRIC = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class AppRunner:
    """The apps of one site: one warm child at a time, the last one used.

    Args:
        folder: the name of a folder below the site's, which no other runner uses at the same time.
    """

    def __init__(self, home: Home, client: "HubClient", folder: str = "apps") -> None:
        self._home = home
        self._client = client
        self._folder = home.site / folder
        self._policy: AppPolicy | None = None
        self._checked: tuple[AppTerms, AppBundle] | None = None
        self._child: AppProcess | None = None

    def prepare(self, plan: TrainingPlan) -> None:
        """Return only when the plan's app is here, is what plan and consent name, and may run here.

        Called before data are looked at; the caller has compared the plan's code with the consent's.

        Raises:
            Rejected: ``E_APP``, ``E_DIGEST``, ``E_SIZE``. Unchecked: ``E_APP_PROTECTION``; the hub is away.
        """
        terms = _terms(plan)
        if self._policy is None:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            sweep(self._folder)
            self._policy = AppPolicy.of_surroundings()
        self._policy.check()
        if self._checked is None or self._checked[0] != terms:
            self._checked = (terms, self._read(terms))

    def train(
        self,
        plan: TrainingPlan,
        weights: Path,
        data: Path,
        out: Path,
        round_number: int,
        *,
        seconds: float,
        feedback: Feedback,
    ) -> TrainResult:
        """One round's part, as ``training.train`` does it for a recipe.

        Args:
            seconds: that the order leaves.
        Raises:
            Rejected: ``E_APP_TIME``, ``E_APP_MEMORY``, ``E_APP_DISK``, ``E_APP_FAILED``, ``E_APP_REPLY``;
                ``E_NOT_FINITE``: of the weights it answered with.
        """
        child = self._ask_ready(plan, data)
        answer = self._ask(child, weights, "train", round_number, seconds)
        examples, metrics = _told(answer)
        raw = out.with_name(out.name + ".app")
        try:
            _take(child.work / OUTPUT, raw)
            with TensorFile(weights) as before, _reply(raw, before.layout) as after:
                written = write_update(out, _moves(before, after), before.layout, feedback)
        finally:
            _free(raw)
        return TrainResult(examples, metrics, written.sha256, written.size)

    def evaluate(
        self, plan: TrainingPlan, weights: Path, data: Path, round_number: int, *, seconds: float
    ) -> dict[str, float | int]:
        """What the app measures, with ``examples``.

        Raises:
            As ``train``.
        """
        child = self._ask_ready(plan, data)
        examples, metrics = _told(self._ask(child, weights, "evaluate", round_number, seconds))
        return {**metrics, "examples": examples}

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def _read(self, terms: AppTerms) -> AppBundle:
        """The bundle, from the hub when it is not here, its whole digest checked either way."""
        path = self._folder / f"{terms.sha256}.fab"
        if not path.exists():
            found = self._client.app(terms.sha256)
            if found.size != terms.size:
                raise Rejected(
                    "E_APP", f"app bundle: the plan says {terms.size} bytes, the hub has {found.size}"
                )
            fetching.fetch(found.url, path, terms.sha256, terms.size)
            _keep_newest(self._folder)
        try:
            _, bundle = read_bundle_file(path)
            check_named(bundle, terms)
        except FedhubError:
            path.unlink(missing_ok=True)  # asked for again next time, should the disk have been at fault
            raise
        return bundle

    def _ask_ready(self, plan: TrainingPlan, data: Path) -> AppProcess:
        """The warm child of this app and dataset, or a new one."""
        terms = _terms(plan)
        if self._policy is None or self._checked is None or self._checked[0] != terms:
            raise Misuse("E_APP", "prepare comes first")
        child = self._child
        if child is not None and child.key == (terms, data) and child.usable:
            return child
        self.close()
        self._child = AppProcess(self._folder, self._home.path, self._read(terms), terms, data, self._policy)
        return self._child

    def _ask(
        self, child: AppProcess, weights: Path, action: str, round_number: int, seconds: float
    ) -> dict[str, Any]:
        with TensorFile(weights) as file:
            if any(spec.dtype == "BF16" for spec in file.layout.tensors):
                raise Rejected(
                    "E_LAYOUT", "the weights have bfloat16 tensors, which Flower's arrays cannot hold"
                )
        order = {"action": action, "round": round_number, "input": INPUT, "output": OUTPUT}
        try:
            _free(child.work / OUTPUT)
            _copy(weights, _free(child.work / INPUT))
            return child.ask(order, seconds)
        finally:
            _free(child.work / INPUT)


def _moves(before: TensorFile, after: TensorFile) -> Changed:
    """What float tensors moved by between two files, and other tensors' values."""

    def changed(spec: TensorSpec, start: int, stop: int) -> Array:
        values = after.read(spec.name, start, stop)
        if not spec.is_float:
            return values
        if not np.isfinite(values).all():
            raise Rejected(
                "E_NOT_FINITE",
                f"the app's reply: tensor {spec.name} holds values that are no finite numbers",
                "lower the learning rate in a new plan",
            )
        with np.errstate(over="ignore"):
            moved: Array = values - before.read(spec.name, start, stop)
        if not np.isfinite(moved).all():
            raise Rejected("E_NOT_FINITE", f"the app's reply: tensor {spec.name} moved too far")
        return moved

    return changed


def _terms(plan: TrainingPlan) -> AppTerms:
    if plan.config.app is None:
        raise Misuse("E_APP", f"plan {plan.id} has a recipe")
    return plan.config.app


def _take(path: Path, to: Path) -> None:
    """Bring a child's file where the child cannot reach it; never through a link of its making."""
    try:
        os.replace(path, to)
    except OSError as error:
        raise Rejected("E_APP_REPLY", "the app's reply: it has no weights") from error
    status = os.lstat(to)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise Rejected("E_APP_REPLY", "the app's reply: its weights are no file of its own")


def _reply(path: Path, layout: Layout) -> TensorFile:
    """The weights that an app answered with, open; they have the tensors of those it was sent."""
    try:
        file = TensorFile(path)
    except Rejected as error:
        raise Rejected("E_APP_REPLY", f"the app's reply: {error.message}", error.hint) from error
    if differences := layout.differences(file.layout):
        file.close()
        raise Rejected(
            "E_APP_REPLY",
            "the app's reply: " + "; ".join(differences),
            "its tensors must be those that it was sent",
        )
    return file


def _copy(path: Path, to: Path) -> None:
    """Write a copy to a new file in a child's folder; never through a link of its making."""
    opened = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with path.open("rb") as source, os.fdopen(opened, "wb") as copy:
        shutil.copyfileobj(source, copy, 1 << 20)


def _free(path: Path) -> Path:
    """A place in a child's folder that holds nothing, not even a link or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    return path


def _told(answer: dict[str, Any]) -> tuple[int, dict[str, float | int]]:
    """Examples and metrics of an answer: the child's word, within bounds.

    Raises:
        Rejected: ``E_APP_REPLY``.
    """
    examples, metrics = answer.get("examples"), answer.get("metrics")
    if type(examples) is not int or not 1 <= examples <= MOST_EXAMPLES:
        raise Rejected("E_APP_REPLY", "the app's reply: num-examples should be a whole number from 1")
    if not isinstance(metrics, dict) or len(metrics) > 32 or not all(map(_METRIC.fullmatch, metrics)):
        raise Rejected("E_APP_REPLY", "the app's reply: at most 32 metrics with plain names")
    for value in metrics.values():
        if type(value) not in (int, float) or not math.isfinite(value) or abs(value) > 1e15:
            raise Rejected("E_APP_REPLY", "the app's reply: a metric is no finite number up to 1e15")
    return examples, metrics


def _keep_newest(folder: Path) -> None:
    files = sorted(folder.glob("*.fab"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in files[KEPT_BUNDLES:]:
        path.unlink(missing_ok=True)
