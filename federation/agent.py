"""The lab agent: does one order of the hub at this site, or refuses it, and answers for both.

It trusts nothing that comes with an order. Checks run in this order, and all of them before a file of the
dataset is opened: the order's signature, time and message (``orders``), the institution's own consent
(``consents``), the plan and its code, the site's ledger. Then the data are held against their salted
manifest, the weights are fetched by digest, the recipe trains in this warm process, a receipt is signed and
logged, and the update goes up by an order bound to its bytes. Any no is a signed refusal. Who carries orders
and answers is not its business: ``federation.flower.node`` does.
"""

import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from federation import fetching, sending, training
from federation.app_training import AppRunner
from federation.compression import Feedback
from federation.consents import Consent, check_plan_allowed, find_consent
from federation.deciding import read_checked_plan
from federation.home import Home, LocalDataset
from federation.ledger import Answer, KeptOrder, SiteLedger
from federation.measuring import (
    JointScaling,
    Told,
    fetch_base,
    measure_benefit,
    measure_columns,
)
from federation.messages import (
    InputReference,
    OrderMessage,
    OrderReply,
    ReceiptReference,
    RefusalNote,
    UpdateReference,
)
from federation.orders import Order, OrderDesk, read_order, told
from federation.plan import TrainingPlan, build_recipe, check_recipe
from federation.recipes.base_files import find_base
from federation.recipes.catalogue import RECIPES
from federation.site_bases import base_folders
from federation.site_log import SiteLog, at_work, explain_failure
from federation.site_policy import read_policy
from federation.site_word import SiteWord
from federation.tensors import unfinished
from federation.wire import Upload, UploadRequest
from storage.blobs import ORDER_BYTES
from storage.encoding import sha256_hex
from storage.errors import Refused, Rejected, Unchecked
from storage.manifests import hash_file, read_manifest

if TYPE_CHECKING:
    from federation.client import HubClient

KEPT_FILES = 2  # newest inputs and updates that stay on disk, to be sent or read again after a crash
SPARE_BYTES = 256 << 20  # what an input must leave free on the disk, besides room for its update


@dataclass(frozen=True)
class Task:
    """An order that this site will carry out."""

    order: Order
    consent: Consent
    plan: TrainingPlan
    dataset: LocalDataset


class Agent:
    """Carries out orders for one home.

    Args:
        client: logged in with the site's snapshot key.
    """

    def __init__(
        self,
        home: Home,
        client: "HubClient",
        ledger: SiteLedger,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._home = home
        self._client = client
        self._ledger = ledger
        self._clock = clock
        self._log = SiteLog(home)
        self._word = SiteWord(home, client, ledger, self._log, clock=clock)
        self._desk = OrderDesk(home, client, clock=clock)
        self._scaling = JointScaling(client)
        self._apps = AppRunner(home, client)
        self._plans: dict[str, TrainingPlan] = {}
        # The code that this process can have in memory: an upgrade under a running agent changes only the
        # files.
        self._started_with = {name: sha256_hex(build_recipe(name)) for name in RECIPES}
        self._inputs = home.site / "inputs"
        self._updates = home.site / "updates"
        self._residuals = home.site / "residuals"
        for folder in (self._inputs, self._updates):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def close(self) -> None:
        """End the process of a lab's own code, if one is warm."""
        self._apps.close()

    def perform(self, message: OrderMessage) -> OrderReply:
        """Do what an order says, or refuse it; either is in the ledger before anybody hears of it."""
        try:
            order = read_order(message.order)
        except Rejected as error:
            # Not an order at all, so there is nothing that a refusal could name.
            note = RefusalNote(code=error.code, message=told(error), statement=None)
            return OrderReply(dataset=None, refusal=note)
        try:
            return self._perform(order, message)
        except (OSError, MemoryError, RuntimeError, ImportError) as error:
            return self._word.refusal(order, explain_failure(error))
        except (Refused, Rejected, Unchecked) as error:
            lost = error.__cause__
            if error.code == "E_INPUT" and isinstance(lost, OSError):  # of a digest: the system is plainer
                return self._word.refusal(order, explain_failure(lost))
            return self._word.refusal(order, error)

    def _perform(self, order: Order, message: OrderMessage) -> OrderReply:
        self._ledger.keep_order(
            KeptOrder(
                order.id,
                order.plan,
                order.dataset,
                order.action,
                order.round,
                order.input,
                order.deadline,
                int(self._clock()),
                order.envelope.raw,
            )
        )
        self._desk.check(order, message)
        task = self._accept(order)
        answer = self._answered(order)
        if answer is None:
            self._check_data(task.dataset)
            with at_work(self._home.site, order.id):
                answer = self._do(task, message.input)
        return self._reply(task, answer)

    # --- may it be done? ----------------------------------------------------------------------------------

    def _accept(self, order: Order) -> Task:
        """Consent, plan, code and dataset of an order whose signature and time hold."""
        now = self._clock()
        if not self._home.has_dataset(order.dataset):
            raise Refused("E_DATASET_UNKNOWN", f"no dataset {order.dataset} lies at this site")
        consent = find_consent(self._home, order.plan, order.dataset, order.action, now=now)
        plan = self._plan(order.plan)
        check_plan_allowed(self._home, consent, plan, order.round, now=now)
        self._check_code(plan)
        if order.action == "statistics" and plan.config.harmonise is None:
            raise Refused("E_ACTION", f"plan {plan.id} asks for no joint statistics", "plan with --harmonise")
        return Task(order, consent, plan, self._home.dataset(order.dataset))

    def _check_code(self, plan: TrainingPlan) -> None:
        """The plan's code is here, byte for byte: a recipe as installed, or an app as fetched."""
        if plan.config.app is not None:
            self._apps.prepare(plan)
            return
        check_recipe(plan.config, plan.code)
        if self._started_with[plan.config.recipe] != plan.code:
            raise Unchecked(
                "E_RECIPE",
                f"recipe {plan.config.recipe} was changed under the running agent",
                "restart the agent",
            )
        pinned = plan.config.parameters.get("base")
        if pinned is not None:  # a recipe with adapters: its base model is here, before a row is read
            find_base(pinned, base_folders(self._home))

    def _plan(self, plan_id: str) -> TrainingPlan:
        """The plan with this id; it never changes, so it is fetched and checked once."""
        if plan_id not in self._plans:
            plan, _ = read_checked_plan(self._home, self._client, plan_id)
            if plan.id != plan_id:
                raise Rejected("E_PLAN", f"the hub answers plan {plan_id} with the plan {plan.id}")
            self._plans[plan_id] = plan
        return self._plans[plan_id]

    def _answered(self, order: Order) -> Answer | None:
        """What was done for this round before: a coordinator that starts again asks again.

        A round has one input, since the round before was closed once; another input is another question,
        which a hub could ask as often as it likes. Rounds rise, as receipts must.
        """
        known = self._ledger.answer(order.plan, order.dataset, order.action, order.round)
        if known is not None:
            if known.input != order.input:
                raise Refused(
                    "E_ROUND_INPUT",
                    f"round {order.round} of plan {order.plan}: answered for the input {known.input}, "
                    f"not to be done again from {order.input}",
                )
            return known
        last = self._ledger.last_answer(order.plan, order.dataset, order.action)
        if last is not None and last.round > order.round:
            raise Refused(
                "E_ROUND_ORDER",
                f"round {order.round} of plan {order.plan}: this site has done round {last.round}",
            )
        return None

    def _check_data(self, dataset: LocalDataset) -> None:
        """The dataset's files are those of its manifest; a file that has not changed is not read again.

        Raises:
            Rejected: ``E_DATASET_CHANGED``.
        """
        manifest = read_manifest(dataset.manifest)
        if manifest.asset_id != dataset.asset_id:
            raise Rejected(
                "E_DATASET_CHANGED", f"dataset {dataset.name}: its manifest was altered", "restore it"
            )
        for entry in manifest.files:
            path = dataset.folder / entry.name
            try:
                status = os.stat(path, follow_symlinks=False)
                digest = self._ledger.checked_file(path, status)
                if digest is None:
                    digest, _, _ = hash_file(path)
                    self._ledger.save_checked_file(path, status, digest)
            except FileNotFoundError as error:
                message = f"dataset {dataset.name}: {entry.name} is not there"
                raise Rejected("E_DATA_MISSING", message, "restore the file") from error
            if digest == entry.sha256:
                continue
            raise Rejected(
                "E_DATASET_CHANGED",
                f"dataset {dataset.name}: a file is not what its manifest {dataset.asset_id} says",
                "publish the changed dataset as a new version, and consent to a plan that names it",
            )

    # --- doing it -----------------------------------------------------------------------------------------

    def _do(self, task: Task, reference: InputReference) -> Answer:
        """What an order says, for the first time; in the ledger before it is answered."""
        order = task.order
        cohort = max(task.plan.config.smallest_cohort, read_policy(self._home).smallest_cohort)
        if order.action == "statistics":
            told = measure_columns(task.plan, order.dataset, task.dataset.folder, cohort)
            answer = self._answer_of(task, told)
        else:
            parameters = self._scaling.parameters(task.plan, order.statement)
            weights = self._fetch_input(order, reference)
            do = self._train if order.action == "train" else self._evaluate
            answer = do(task, weights, parameters, cohort)
        self._ledger.save_answer(answer)
        self._log.over()
        if order.action == "train":
            self._forget_residuals(order)
        return answer

    def _answer_of(self, task: Task, told: Told) -> Answer:
        return self._new_answer(
            task, examples=told.examples, metrics=told.metrics, update=None, figures=told.figures
        )

    def _fetch_input(self, order: Order, reference: InputReference) -> Path:
        """The weights that the order names, fetched by digest from where the home's own hub says they lie."""
        path = self._inputs / f"{order.input}.safetensors"
        if path.exists() and path.stat().st_size == reference.size:
            digest, _, _ = hash_file(path)
            if digest == order.input:
                return path
        free = shutil.disk_usage(self._inputs).free
        if 2 * reference.size + SPARE_BYTES > free:
            raise Unchecked(
                "E_SITE_DISK", f"an input of {reference.size} bytes needs more than {free} free bytes"
            )
        found = self._client.weights(order.plan, order.input)
        if found.size != reference.size:
            raise Rejected(
                "E_ORDER", f"order {order.id}: an input of {reference.size} bytes, the hub has {found.size}"
            )
        parts = None if found.parts is None else tuple(found.parts)
        fetching.fetch(found.url, path, order.input, found.size, parts, over=_make_room(self._inputs))
        return path

    def _train(self, task: Task, weights: Path, parameters: Mapping[str, Any], cohort: int) -> Answer:
        order, config = task.order, task.plan.config
        out = self._updates / "in-work.safetensors"
        spare = _make_room(self._updates)
        if spare is not None:
            spare.replace(unfinished(out))
        data, feedback = task.dataset.folder, self._feedback(task)
        if config.app is not None:
            left_s = order.deadline - self._clock()
            result = self._apps.train(
                task.plan, weights, data, out, order.round, seconds=left_s, feedback=feedback
            )
        else:
            result = training.train(
                config.recipe,
                parameters,
                weights,
                data,
                out,
                config.seed,
                order.round,
                site=order.dataset,
                feedback=feedback,
                bases=base_folders(self._home),
            )
        out.replace(self._update_path(result.sha256))
        return self._new_answer(
            task,
            examples=result.examples,
            metrics=dict(result.metrics) if result.examples >= cohort else {},
            update=(result.sha256, result.size),
        )

    def _feedback(self, task: Task) -> Feedback:
        """How this round's update travels. What it leaves out lies in a file named by the round, and only the
        file of the last round in the ledger is read: a round that is done again after a crash begins with the
        same.
        """
        order, config = task.order, task.plan.config
        if config.compression == "none":
            return Feedback()
        self._residuals.mkdir(exist_ok=True, mode=0o700)
        last = self._ledger.last_answer(order.plan, order.dataset, "train")
        before = None if last is None else self._residual_path(order, last.round)
        after = self._residual_path(order, order.round) if order.round < task.plan.rounds else None
        return Feedback(config.compression, before if before is not None and before.exists() else None, after)

    def _residual_path(self, order: Order, number: int) -> Path:
        return self._residuals / f"{order.plan}-{order.dataset}-{number}.safetensors"

    def _forget_residuals(self, order: Order) -> None:
        """Keep the newest round's only; none after a plan's last round."""
        kept = self._residual_path(order, order.round)
        for path in self._residuals.glob(f"{order.plan}-{order.dataset}-*"):
            if path != kept:
                path.unlink(missing_ok=True)

    def _evaluate(self, task: Task, weights: Path, parameters: Mapping[str, Any], cohort: int) -> Answer:
        config, order, data = task.plan.config, task.order, task.dataset.folder
        if config.report and order.round == task.plan.rounds:
            base = fetch_base(self._home, self._client, task.plan, self._inputs)
            told = measure_benefit(
                task.plan,
                order.statement,
                parameters,
                data,
                cohort,
                weights=weights,
                base=base,
                bases=base_folders(self._home),
            )
            return self._answer_of(task, told)
        if config.app is not None:
            left_s = order.deadline - self._clock()
            found = self._apps.evaluate(task.plan, weights, data, order.round, seconds=left_s)
        else:
            bases = base_folders(self._home)
            found = training.evaluate(config.recipe, parameters, weights, data, bases=bases)
        count = int(found["examples"]) if found["examples"] >= cohort else 0
        metrics = {name: value for name, value in found.items() if name != "examples" and count}
        return self._new_answer(task, examples=count, metrics=metrics, update=None)

    def _new_answer(
        self,
        task: Task,
        *,
        examples: int,
        metrics: dict[str, float | int],
        update: tuple[str, int] | None,
        figures: bytes | None = None,
    ) -> Answer:
        order = task.order
        sha256, size = update or (None, None)
        return Answer(
            plan=order.plan,
            dataset=order.dataset,
            action=order.action,
            round=order.round,
            input=order.input,
            order_id=order.id,
            grant_id=task.consent.id,
            done_at=int(self._clock()),
            update_sha256=sha256,
            update_size=size,
            examples=examples,
            metrics=metrics,
            epsilon=None,
            delta=None,
            figures=figures,
        )

    def _update_path(self, sha256: str) -> Path:
        return self._updates / f"{sha256}.safetensors"

    # --- answering ----------------------------------------------------------------------------------------

    def _reply(self, task: Task, answer: Answer) -> OrderReply:
        """Receipt and update at the hub, again where a crash may have lost them there, then the answer."""
        announced = self._announced(task.plan, answer)
        receipt_id, bundle, upload = self._word.receipt(task.order, task.consent, answer, announces=announced)
        return OrderReply(
            dataset=answer.dataset,
            update=self._send_update(task.plan, answer, upload),
            examples=answer.examples,
            metrics=answer.metrics,
            receipt=ReceiptReference(id=receipt_id, bundle=bundle.decode()),
        )

    def _announced(self, plan: TrainingPlan, answer: Answer) -> UploadRequest | None:
        """The update as its receipt announces it, if it is here and may go whole."""
        sha256, size = answer.update_sha256, answer.update_size
        if sha256 is None or size is None or size > ORDER_BYTES or not self._update_path(sha256).exists():
            return None
        return UploadRequest(sha256=sha256, size=size, plan=plan.id)

    def _send_update(
        self, plan: TrainingPlan, answer: Answer, announced: Upload | None
    ) -> UpdateReference | None:
        """Bring the update into the store; None where there is none, as in an evaluation."""
        if answer.update_sha256 is None or answer.update_size is None:
            return None
        known = (answer.update_sha256, answer.update_size)
        path, upload = self._update_path(answer.update_sha256), ""
        if path.exists():
            # The coordinator checks what it reads; nobody need wait until the hub has read it too.
            upload = sending.send_file(
                self._client, path, plan=plan.id, known=known, announced=announced, settled=False
            ).id
        return UpdateReference(sha256=answer.update_sha256, size=answer.update_size, upload=upload)


def _make_room(folder: Path) -> Path | None:
    """The file that the next one may be written over, if there are so many; older ones are removed.

    All can be fetched or made again.
    """
    files = sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in files[KEPT_FILES:]:
        path.unlink(missing_ok=True)
    return files[KEPT_FILES - 1] if len(files) >= KEPT_FILES else None
