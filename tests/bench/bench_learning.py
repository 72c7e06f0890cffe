"""What strategies and compression are worth: real rounds on real digits, printed as the tables of docs/rounds.md.

    python tests/bench/bench_learning.py            prints the tables
    python tests/bench/bench_learning.py --write    puts them into docs/rounds.md, between its markers

Eight sites, scikit-learn's digits in equal parts, six rounds of four epochs; takes two minutes. Same figures
every time.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.learning import Federation, Lie, inverted, noise, scaled  # noqa: E402

PAGE = ROOT / "docs" / "rounds.md"
LIARS = ("site-2", "site-5")
STRATEGIES: list[tuple[str, dict[str, Any]]] = [
    ("FedAvg", {}),
    ("FedProx", {}),
    ("FedAvgM", {"serverMomentum": "0.5"}),
    ("FedAdagrad", {}),
    ("FedAdam", {"eta": "0.02"}),
    ("FedYogi", {"eta": "0.02"}),
    ("FedMedian", {}),
    ("FedTrimmedAvg", {"beta": "0.25"}),
    ("Krum", {"malicious": 2}),
    ("MultiKrum", {"malicious": 2, "select": 4}),
    ("Bulyan", {"malicious": 1}),
]
LIES: list[tuple[str, Lie | None]] = [
    ("all honest", None),
    ("2 inverted", inverted),
    ("2 scaled by 100", scaled),
    ("2 noise", noise),
]


def strategies(federation: Federation) -> list[str]:
    """Accuracy on all sites' held-out rows, by strategy and lie."""
    rows = []
    for name, parameters in STRATEGIES:
        cells = []
        for _, lie in LIES:
            liars = {} if lie is None else dict.fromkeys(LIARS, lie)
            found = federation.train(
                strategy=name,
                strategy_parameters=parameters,
                parameters={"proximalMu": "0.01"} if name == "FedProx" else None,
                liars=liars,
            )
            cells.append(f"{found.accuracy:.3f}")
        said = ", ".join(f"{key} {value}" for key, value in parameters.items())
        rows.append([f"{name} ({said})" if said else name, *cells])
    return _table(["strategy", *(title for title, _ in LIES)], rows)


def compression(federation: Federation) -> list[str]:
    """Bytes of an update and accuracy, by form, with and without error feedback."""
    rows = []
    whole = federation.train()
    for form in ("none", "bf16", "fp16", "int8"):
        with_feedback = federation.train(compression=form)
        without = federation.train(compression=form, feedback=False)
        share = with_feedback.update_bytes / whole.update_bytes
        size = f"{with_feedback.update_bytes:,} ({share:.0%})"
        rows.append([form, size, f"{with_feedback.accuracy:.3f}", f"{without.accuracy:.3f}"])
    return _table(["compression", "bytes of one update", "accuracy", "without error feedback"], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [" | ".join(head), " | ".join("---" for _ in head), *(" | ".join(row) for row in rows)]
    return [f"| {line} |" for line in lines]


def _put(text: str, name: str, lines: Sequence[str]) -> str:
    begin, end = f"<!-- {name}: made by tests/bench/bench_learning.py -->", f"<!-- end of {name} -->"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return before + "\n".join([begin, *lines, end]) + after


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="put the tables into docs/rounds.md")
    write = parser.parse_args().write
    with tempfile.TemporaryDirectory() as folder:
        federation = Federation(Path(folder), 8)
        tables = {"strategies": strategies(federation), "compression": compression(federation)}
    for name, lines in tables.items():
        print(name, *lines, sep="\n")
    if write:
        text = PAGE.read_text()
        for name, lines in tables.items():
            text = _put(text, name, lines)
        PAGE.write_text(text)


if __name__ == "__main__":
    main()
