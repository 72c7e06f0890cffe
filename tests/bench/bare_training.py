"""What torch itself needs for a site's step: a bare process that trains one network once, without our code.

``python tests/bench/bare_training.py PARAMETERS ROWS`` takes a recipe's parameters as JSON and a number of rows,
builds the network of ``image-classification`` with torch alone, measures it, makes one step on random rows,
and prints its peak memory in MB. Lean on purpose: no optimiser object (torch's own would import its compiler,
150 MB), and large pages and two heaps as an agent has them, so that what an agent needs beyond this is ours.
"""

import json
import resource
import sys

import torch
from torch import nn


def main() -> None:
    p, count = json.loads(sys.argv[1]), int(sys.argv[2])
    side, filters = (p["height"], p["width"]), p["filters"]
    torch.set_num_threads(1)
    network = nn.Sequential(
        nn.Conv2d(p["channels"], filters, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(filters, filters, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(filters * (side[0] // 2) * (side[1] // 2), p["hidden"]),
        nn.ReLU(),
        nn.Linear(p["hidden"], p["classes"]),
    )
    rows, labels = torch.rand(count, p["channels"], *side), torch.randint(p["classes"], (count,))
    with torch.inference_mode():
        network(rows)
    nn.functional.cross_entropy(network(rows), labels).backward()
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(weight.grad, alpha=-float(p["learningRate"]))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)


if __name__ == "__main__":
    main()
