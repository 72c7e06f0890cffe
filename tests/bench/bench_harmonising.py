"""What a joint scaling is worth on real rows: the table in docs/rounds.md."""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from federation import training
from federation.recipes.loop import repeatable
from federation.recipes.tabular_classification import build
from tests.clinics import PARAMETERS, federated, scalings, write_clinics

ROUNDS = 8


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        clinics = write_clinics(work)
        base = work / "base.safetensors"
        with repeatable(3):
            training.save_weights(build(PARAMETERS), base)
        print("| columns | accuracy | AUC |\n|---|---|---|")
        for name, parameters in scalings(clinics, PARAMETERS).items():
            found = federated(clinics, base, work, parameters, rounds=ROUNDS)
            print(f"| {name} | {found.accuracy:.3f} | {found.auc:.3f} |")
        print(f"{found.rows} held-out rows, {ROUNDS} rounds")


if __name__ == "__main__":
    main()
