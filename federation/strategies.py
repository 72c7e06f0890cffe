"""How the deltas of several sites become one move of the weights: small objects over pieces of one tensor.

A strategy is up to three parts: ``select`` picks sites by the distances between whole updates (Krum),
``merge`` makes one delta of many, ``step`` moves the weights by it (server optimisers). Every part works
element by element on pieces, so memory is bounded by the piece, and only with operations that IEEE 754
defines exactly, in a fixed order: the same updates give the same bytes on any machine. Files and checks are
``aggregation``'s.

Letters: S sites, n elements of a piece. All arrays are float32, or float64 for F64 tensors.
The formulas are those of Flower 1.42 (``flwr.serverapp.strategy``), which the tests use as their oracle.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from federation.strategy_terms import least_sites
from federation.tensors import Array
from storage.errors import Misuse, Refused

# --- merge: S deltas become one ---------------------------------------------------------------------------


class Merge(Protocol):
    """Makes one delta, shape (n,), of S deltas, each of shape (n,), in the fixed order of sites."""

    @property
    def robust(self) -> bool:
        """Whether a buffer takes the middle value, rather than the heaviest site's."""
        ...

    def __call__(self, deltas: Sequence[Array], weights: Sequence[int]) -> Array: ...


@dataclass(frozen=True)
class WeightedMean:
    """The mean of the deltas by weight: FedAvg.

    Source: McMahan et al. 2017 (arXiv 1602.05629), Algorithm 1, last line.

    >>> WeightedMean()([np.float32([1.0]), np.float32([4.0])], [2, 1]).tolist()
    [2.0]
    """

    robust: bool = False

    def __call__(self, deltas: Sequence[Array], weights: Sequence[int]) -> Array:
        total = sum(weights)
        mean: Array = deltas[0] * deltas[0].dtype.type(weights[0] / total)
        for delta, weight in zip(deltas[1:], weights[1:], strict=True):
            mean += delta * delta.dtype.type(weight / total)
        return mean


@dataclass(frozen=True)
class Median:
    """The middle delta of each coordinate, the mean of both middles when S is even; weights do not count.

    Source: Yin et al. 2018 (arXiv 1803.01498), Definition 1.
    """

    robust: bool = True

    def __call__(self, deltas: Sequence[Array], weights: Sequence[int]) -> Array:
        return _middle(_ascending(deltas))


@dataclass(frozen=True)
class TrimmedMean:
    """The mean of each coordinate without its ``floor(beta * S)`` least and most values.

    Source: Yin et al. 2018 (arXiv 1803.01498), Definition 2.
    """

    beta: float
    robust: bool = True

    def __call__(self, deltas: Sequence[Array], weights: Sequence[int]) -> Array:
        cut = int(self.beta * len(deltas))
        return _plain_mean(_ascending(deltas)[cut : len(deltas) - cut])


@dataclass(frozen=True)
class NearestToMedian:
    """The mean of the S - 2f values of each coordinate that are nearest to its median: Bulyan's second half.

    Source: El Mhamdi et al. 2018 (arXiv 1802.07927), section 4, step 2.
    """

    malicious: int
    robust: bool = True

    def __call__(self, deltas: Sequence[Array], weights: Sequence[int]) -> Array:
        keep = len(deltas) - 2 * self.malicious
        values = _ascending(deltas)
        order = np.argsort(np.abs(values - _middle(values)), axis=0, kind="stable")[:keep]
        return _plain_mean(np.take_along_axis(values, order, axis=0))


def _ascending(deltas: Sequence[Array]) -> Array:
    """The deltas of each coordinate in ascending order, shape (S, n).

    Zeros lose their sign: sorting ignores it, so it would end up here or there.
    """
    values: Array = np.stack(deltas)
    values += values.dtype.type(0)
    values.sort(axis=0)
    return values


def _middle(values: Array) -> Array:
    """The median of sorted values, shape (S, n) to (n,)."""
    low, high = values[(len(values) - 1) // 2], values[len(values) // 2]
    half = low.dtype.type(0.5)
    middle: Array = low.copy() if len(values) % 2 else low * half + high * half
    return middle


def _plain_mean(values: Array) -> Array:
    """The mean over the first axis, added up in its order."""
    total: Array = values[0].copy()
    for row in values[1:]:
        total += row
    total /= values.dtype.type(len(values))
    return total


# --- select: which sites count ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Krum:
    """Picks the updates that lie closest to their neighbours; needs one pass more over all updates.

    Attributes:
        malicious: f, how many sites may lie.
        count: how many updates to pick, or None for S - 2f (Bulyan's first half).
    Source: Blanchard et al. 2017 (arXiv 1703.02757), section 4: score(i) = sum of squared distances to the
        S - f - 2 nearest others.
    """

    malicious: int
    count: int | None

    def __call__(self, distances: Sequence[Sequence[float]]) -> list[int]:
        """Indices of the picked sites, ascending.

        Args:
            distances: squared L2 distance between updates i and j, S x S.
        """
        sites = len(distances)
        nearest = max(1, sites - self.malicious - 2)
        scores = [
            math.fsum(sorted(d for other, d in enumerate(row) if other != site)[:nearest])
            for site, row in enumerate(distances)
        ]
        count = sites - 2 * self.malicious if self.count is None else self.count
        return sorted(sorted(range(sites), key=lambda site: (scores[site], site))[:count])


# --- step: the one delta moves the weights ----------------------------------------------------------------


class Step(Protocol):
    """Moves weights by a delta."""

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of what it remembers of each weight from round to round."""
        ...

    def __call__(
        self, weights: Array, delta: Array, memory: Sequence[Array], round_number: int
    ) -> tuple[Array, list[Array]]:
        """New weights and new memory, one array of shape (n,) per slot; memory is zeros before round 1."""
        ...


@dataclass(frozen=True)
class Add:
    """New weights are the old ones plus the delta: FedAvg, and every merge without a server optimiser."""

    slots: tuple[str, ...] = ()

    def __call__(
        self, weights: Array, delta: Array, memory: Sequence[Array], round_number: int
    ) -> tuple[Array, list[Array]]:
        return weights + delta, []


@dataclass(frozen=True)
class Momentum:
    """Server momentum: FedAvgM.

    Source: Hsu et al. 2019 (arXiv 1909.06335), section 4.3: v = beta v + delta, w = w + rate v.
    """

    rate: float
    momentum: float
    slots: tuple[str, ...] = ("momentum",)

    def __call__(
        self, weights: Array, delta: Array, memory: Sequence[Array], round_number: int
    ) -> tuple[Array, list[Array]]:
        velocity = self.momentum * memory[0] + delta
        return weights + self.rate * velocity, [velocity]


@dataclass(frozen=True)
class Adaptive:
    """Server Adagrad, Adam and Yogi: FedAdagrad, FedAdam, FedYogi.

    Attributes:
        kind: "adagrad", "adam" or "yogi": how the second moment moves; only Adam corrects its bias, with the
            exponent ``round + 1`` as Flower does.
    Source: Reddi et al. 2021 (arXiv 2003.00295), Algorithm 2; Kingma and Ba 2015 (arXiv 1412.6980), section
    2.
    """

    kind: str
    eta: float
    beta1: float
    beta2: float
    tau: float
    slots: tuple[str, ...] = ("first", "second")

    def __call__(
        self, weights: Array, delta: Array, memory: Sequence[Array], round_number: int
    ) -> tuple[Array, list[Array]]:
        first = self.beta1 * memory[0] + (1 - self.beta1) * delta
        square = delta * delta
        second = memory[1]
        if self.kind == "adagrad":
            second = second + square
        elif self.kind == "adam":
            second = self.beta2 * second + (1 - self.beta2) * square
        else:
            second = second - (1 - self.beta2) * square * np.sign(second - square)
        rate = self.eta
        if self.kind == "adam":
            rate *= math.sqrt(1 - _power(self.beta2, round_number + 1)) / (
                1 - _power(self.beta1, round_number + 1)
            )
        return weights + rate * first / (np.sqrt(second) + self.tau), [first, second]


def _power(number: float, exponent: int) -> float:
    """``number ** exponent`` by multiplication alone: ``pow`` may differ in the last bit between machines."""
    result = 1.0
    for _ in range(exponent):
        result *= number
    return result


# --- strategies -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Strategy:
    """A named way to aggregate.

    Attributes:
        least: how many updates it needs.
    """

    name: str
    merge: Merge
    step: Step
    select: Krum | None
    least: int

    def check_count(self, sites: int) -> None:
        """Refuse to aggregate fewer updates than the strategy's promise needs.

        Raises:
            Refused: ``E_TOO_FEW_UPDATES``.
        """
        if sites < self.least:
            raise Refused(
                "E_TOO_FEW_UPDATES",
                f"{self.name} needs at least {self.least} updates with its parameters, found {sites}",
                "set the quorum of a plan to at least that many sites",
            )


def make_strategy(name: str, parameters: Mapping[str, Any]) -> Strategy:
    """The strategy that a checked ``config.json`` names, decimals given as text.

    Raises:
        Misuse: no such strategy; ``federation.plan.read_config`` would have refused it.

    >>> make_strategy("FedAvg", {}).step
    Add(slots=())
    """

    def number(parameter: str) -> float:
        return float(parameters[parameter])

    merge: Merge = WeightedMean()
    step: Step = Add()
    select: Krum | None = None
    match name:
        case "FedAvg" | "FedProx":
            pass
        case "FedAvgM":
            step = Momentum(number("serverLearningRate"), number("serverMomentum"))
        case "FedAdam":
            step = Adaptive("adam", number("eta"), number("beta1"), number("beta2"), number("tau"))
        case "FedYogi":
            step = Adaptive("yogi", number("eta"), number("beta1"), number("beta2"), number("tau"))
        case "FedAdagrad":
            step = Adaptive("adagrad", number("eta"), 0.0, 0.0, number("tau"))
        case "FedMedian":
            merge = Median()
        case "FedTrimmedAvg":
            merge = TrimmedMean(number("beta"))
        case "Krum":
            select = Krum(parameters["malicious"], 1)
        case "MultiKrum":
            select = Krum(parameters["malicious"], parameters["select"])
        case "Bulyan":
            select, merge = Krum(parameters["malicious"], None), NearestToMedian(parameters["malicious"])
        case _:
            raise Misuse("E_STRATEGY", f"no strategy {name}")
    return Strategy(name, merge, step, select, least_sites(name, parameters))
