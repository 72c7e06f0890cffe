"""An auditor repeats the sums of a run from the updates that its plan kept, and compares digests.

Nothing the hub says is believed: plan, round statements and receipts are checked under this home's own pins,
and every byte is fetched by the digest that a signed paper names. What is repeated is what a coordinator did
(``aggregation``), so equal updates give equal bytes; a round whose digest differs was not made from the
updates that its receipts name. What a server optimiser remembers is made again from round 1 on, not fetched.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from federation import fetching
from federation.aggregation import SiteUpdate, aggregate, site_weight
from federation.deciding import read_signed
from federation.finishing import Chain
from federation.home import Home
from federation.plan import TrainingPlan
from federation.strategies import make_strategy
from storage.errors import Refused, Unchecked
from storage.statements import Statement

if TYPE_CHECKING:
    from federation.client import HubClient


@dataclass(frozen=True)
class Recomputed:
    """One round, made again.

    Attributes:
        stated: digest that the round statement names. found: digest of what its updates give.
        sites: institutions in the order of the receipts. update_bytes: what their updates took.
    """

    round: int
    stated: str
    found: str
    sites: tuple[str, ...]
    update_bytes: int
    seconds: float

    @property
    def same(self) -> bool:
        return self.stated == self.found


def check_kept(plan: TrainingPlan) -> None:
    """Refuse a plan whose sums nobody can repeat.

    Raises:
        Refused: ``E_UPDATES_NOT_KEPT``.
    """
    if not plan.config.keep_updates:
        raise Refused(
            "E_UPDATES_NOT_KEPT",
            f"plan {plan.id} does not keep the sites' updates: they were removed as each round closed",
            "a plan that can be recomputed is drafted with: fedhub plan new --keep-updates",
            status=409,
        )


def recompute(
    home: Home,
    client: "HubClient",
    plan: TrainingPlan,
    chain: Chain,
    *,
    number: int | None = None,
) -> list[Recomputed]:
    """Repeat the sums of a run's closed rounds.

    Args:
        chain: the run's rounds, as ``finishing.check_chain`` found them to hold.
        number: this round only; None for all. Rounds before it are repeated too where the strategy remembers.
    Raises:
        Refused: ``E_UPDATES_NOT_KEPT``.
        Unchecked: ``E_ROUND``: there is no such round; ``E_UPDATE_MISSING``: an update is not there for this
            home.
        Rejected: an update is not what its receipt says, or breaks a rule of the aggregation.
    """
    check_kept(plan)
    last = len(chain.rounds) if number is None else number
    if not 1 <= last <= len(chain.rounds):
        raise Unchecked("E_ROUND", f"plan {plan.id}: {len(chain.rounds)} rounds are closed, asked for {last}")
    remembers = bool(make_strategy(plan.config.strategy, plan.config.strategy_parameters).step.slots)
    first = last if number is not None and not remembers else 1
    records = {each.id: each for each in client.all_statements(kind="receipt", plan=plan.id)}
    found = []
    with tempfile.TemporaryDirectory(prefix="fedhub-recompute-") as folder:
        for each in range(first, last + 1):
            statement = chain.rounds[each - 1]
            receipts = [
                read_signed(home, client, records[one].bundle, kind="receipt", issuer=records[one].issuer)
                for one in statement.predicate["receipts"]
            ]
            found.append(_repeat(client, plan, statement, receipts, Path(folder)))
    return [one for one in found if number in (None, one.round)]


def _repeat(
    client: "HubClient",
    plan: TrainingPlan,
    statement: Statement,
    receipts: Sequence[Statement],
    folder: Path,
) -> Recomputed:
    """One round; leaves its aggregate and its server state in ``folder`` for the next."""
    began = time.monotonic()
    config, number = plan.config, int(statement.predicate["round"])
    strategy = make_strategy(config.strategy, config.strategy_parameters)
    start = folder / f"{statement.predicate['input']}.safetensors"
    if not start.exists():
        _fetch(client, plan.id, statement.predicate["input"], start, f"the weights before round {number}")
    updates, size = [], 0
    for place, receipt in enumerate(receipts):
        path = folder / f"update-{place}.safetensors"
        what = f"the update of {receipt.issuer} in round {number}"
        size += _fetch(client, plan.id, receipt.subject, path, what)
        examples = receipt.predicate["examples"]
        weight = site_weight(receipt.issuer, examples, config.weighting, config.max_examples)
        updates.append(SiteUpdate(receipt.issuer, path, weight))
    state = folder / f"state-{number}"
    state.mkdir()
    out = folder / "aggregate.safetensors"
    made = aggregate(
        strategy,
        start,
        updates,
        out,
        compression=config.compression,
        round_number=number,
        state=folder / f"state-{number - 1}" if strategy.step.slots and number > 1 else None,
        next_state=state,
    )
    for one in updates:
        one.path.unlink()
    start.unlink()
    out.replace(folder / f"{made.sha256}.safetensors")
    sites = tuple(receipt.issuer for receipt in receipts)
    return Recomputed(number, statement.subject, made.sha256, sites, size, time.monotonic() - began)


def _fetch(client: "HubClient", plan: str, sha256: str, path: Path, what: str) -> int:
    """Fetch by digest; the size in bytes."""
    try:
        found = client.weights(plan, sha256)
    except Unchecked as error:
        if error.code != "E_NOT_FOUND":
            raise
        raise Unchecked(
            "E_UPDATE_MISSING",
            f"{what} ({sha256}) is not in the hub's store, or not for this institution",
            "the plan's owner, auditors and the operator can read the updates that a plan keeps",
        ) from error
    parts = None if found.parts is None else tuple(found.parts)
    fetching.fetch(found.url, path, sha256, found.size, parts)
    return found.size
