"""What metrics of several sites say together, and when a gain may be claimed: pure numbers, without torch."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

Verdict = Literal["gain", "no clear difference", "loss"]
Z_95 = 1.959963984540054  # two-sided 95 %


def mean_metrics(sites: Sequence[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    """Means over sites by their examples, of the metrics that every site has; a site that tells none is left
    out.

    Args:
        sites: (examples, metrics by name) of each site, in the plan's order; examples above 0.

    >>> mean_metrics([(30, {"accuracy": 0.9}), (10, {"accuracy": 0.5})])
    {'accuracy': 0.8}
    """
    sites = [site for site in sites if site[1]]
    if not sites:
        return {}
    names = [name for name in sites[0][1] if all(name in metrics for _, metrics in sites)]
    total = sum(examples for examples, _ in sites)
    return {
        name: math.fsum(examples * float(metrics[name]) for examples, metrics in sites) / total
        for name in names
    }


def interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval around a share of ``count`` rows, such as an accuracy.

    Source: Wilson 1927, the score interval; it stays within 0 and 1 and holds for few rows too.

    >>> low, high = interval(0.9, 100)
    >>> round(low, 3), round(high, 3)
    (0.826, 0.945)
    """
    z2 = Z_95 * Z_95
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    spread = Z_95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    return max(0.0, middle - spread), min(1.0, middle + spread)


def is_gain(new: tuple[float, int], old: tuple[float, int]) -> bool:
    """Whether a share is higher than another beyond doubt: their 95 % intervals do not overlap.

    Args:
        new, old: (share, count of rows) each.

    >>> is_gain((0.95, 444), (0.81, 444)), is_gain((0.95, 44), (0.90, 44))
    (True, False)
    """
    return interval(*new)[0] > interval(*old)[1]


def verdict(federated: float, local: float, majority: float, count: int) -> Verdict:
    """What federation brought a site, against the better of what it has without: its own model, or the
    commonest label. Neither gain nor loss is claimed while the 95 % intervals overlap.

    Args:
        federated, local, majority: shares of right answers on the same ``count`` rows.

    >>> verdict(0.95, 0.81, 0.5, 444), verdict(0.95, 0.90, 0.5, 44), verdict(0.6, 0.5, 0.9, 444)
    ('gain', 'no clear difference', 'loss')
    """
    alone = max(local, majority)
    if is_gain((federated, count), (alone, count)):
        return "gain"
    return "loss" if is_gain((alone, count), (federated, count)) else "no clear difference"
