"""What a plan may say of its strategy: the names, what each takes, and how many sites it needs."""

from collections.abc import Mapping
from typing import Any

from federation.fields import Schema, decimal, integer, one_of, problems

TAKES: dict[str, Schema] = {
    "FedAvg": {},
    "FedProx": {},
    "FedAvgM": {
        "serverLearningRate": decimal("0", "100", above=True),
        "serverMomentum": decimal("0", "1", below=True),
    },
    "FedAdam": {
        "eta": decimal("0", "100", above=True),
        "beta1": decimal("0", "1", below=True),
        "beta2": decimal("0", "1", below=True),
        "tau": decimal("0", "1", above=True),
    },
    "FedYogi": {
        "eta": decimal("0", "100", above=True),
        "beta1": decimal("0", "1", below=True),
        "beta2": decimal("0", "1", below=True),
        "tau": decimal("0", "1", above=True),
    },
    "FedAdagrad": {"eta": decimal("0", "100", above=True), "tau": decimal("0", "1", above=True)},
    "FedMedian": {},
    "FedTrimmedAvg": {"beta": decimal("0", "0.5", below=True)},
    "Krum": {"malicious": integer(0, 1000)},
    "MultiKrum": {"malicious": integer(0, 1000), "select": integer(1, 1000)},
    "Bulyan": {"malicious": integer(0, 1000)},
}
STRATEGIES = tuple(TAKES)

# What a draft is given where its author says nothing; a plan always writes it out. The optimisers' are those
# of Flower 1.42. How many sites may lie is nobody's default.
DEFAULTS: dict[str, dict[str, Any]] = {
    "FedAvgM": {"serverLearningRate": "1", "serverMomentum": "0.9"},
    "FedAdam": {"eta": "0.1", "beta1": "0.9", "beta2": "0.99", "tau": "0.001"},
    "FedYogi": {"eta": "0.01", "beta1": "0.9", "beta2": "0.99", "tau": "0.001"},
    "FedAdagrad": {"eta": "0.1", "tau": "0.001"},
    "FedTrimmedAvg": {"beta": "0.2"},
}
# Strategies that count every site once, whatever a site says about its examples.
EQUAL_ONLY = ("FedMedian", "FedTrimmedAvg", "Bulyan")


def strategy_problems(strategy: dict[str, Any]) -> list[str]:
    """What is wrong with the member ``strategy`` of a ``config.json``."""
    name = strategy.get("name")
    parameters = TAKES.get(name) if isinstance(name, str) else None
    schema: Schema = {
        "name": one_of(*STRATEGIES),
        "parameters": lambda value: None if isinstance(value, dict) else "an object",
    }
    found = problems(strategy, schema, "strategy")
    if parameters is not None and isinstance(strategy.get("parameters"), dict):
        found += problems(strategy["parameters"], parameters, "strategy.parameters")
    return found


def least_sites(strategy: str, parameters: Mapping[str, Any]) -> int:
    """How many updates a strategy needs before its promise against hostile sites means anything.

    Source: n >= 2f + 3 in Blanchard et al. 2017 (arXiv 1703.02757), n >= 4f + 3 in El Mhamdi et al. 2018
    (arXiv 1802.07927), f being the number of malicious sites.
    """
    if strategy in ("Krum", "MultiKrum"):
        least = 2 * int(parameters["malicious"]) + 3
        return max(least, int(parameters.get("select", 1)) + int(parameters["malicious"]))
    if strategy == "Bulyan":
        return 4 * int(parameters["malicious"]) + 3
    return 1
