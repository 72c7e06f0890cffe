"""What ``fedhub plan new`` may be told: one option for each term of a plan."""

from pathlib import Path
from typing import Annotated

import typer

Folder = Annotated[Path, typer.Argument(help="A new folder for the draft.")]
Model = Annotated[str, typer.Option(help="The base version, NAME@VERSION or NAME:TAG.")]
Participant = Annotated[list[str], typer.Option(help="A dataset's name or asset id; once per site.")]
Rounds = Annotated[int, typer.Option(min=1, max=10_000)]
MinParticipants = Annotated[int | None, typer.Option(help="Sites each round needs (default: all).")]
Approvals = Annotated[int | None, typer.Option(help="Approvals of a release (default: a majority).")]
Setting = Annotated[
    list[str] | None,
    typer.Option("--set", "--parameter", help="A recipe parameter, NAME=VALUE; may be repeated."),
]
Strategy = Annotated[str, typer.Option(help="How updates become an aggregate.")]
StrategyParameter = Annotated[
    list[str] | None,
    typer.Option("--strategy-parameter", "--strategy-set", help="Of the strategy, NAME=VALUE."),
]
Weighting = Annotated[str | None, typer.Option(help="examples or equal (default: as the strategy needs it).")]
MaxExamples = Annotated[int, typer.Option(help="Examples beyond which a site weighs no more.", min=1)]
Compression = Annotated[str, typer.Option(help="How updates travel: none, bf16, fp16 or int8.")]
KeepUpdates = Annotated[
    bool,
    typer.Option("--keep-updates", help="Keep each site's updates, so that auditors can repeat the sum."),
]
BadUpdate = Annotated[str, typer.Option(help="leave-out or stop, when a site's update breaks a rule.")]
Seed = Annotated[int, typer.Option(min=0)]
Quorum = Annotated[int | None, typer.Option(help="Replies that close a round (default: all needed).")]
Deadline = Annotated[int, typer.Option(help="Seconds that a round stays open.", min=1)]
Days = Annotated[int, typer.Option(help="Days until the plan expires.", min=1, max=366)]
Epsilon = Annotated[str | None, typer.Option(help="Privacy loss allowed, with --delta.")]
Delta = Annotated[str | None, typer.Option()]
Harmonise = Annotated[
    bool, typer.Option("--harmonise", help="Scale all columns alike at all sites, by joint statistics.")
]
HarmoniseColumn = Annotated[
    list[str] | None, typer.Option(help="Scale only this column so; may be repeated.")
]
CountLabels = Annotated[
    bool, typer.Option("--count-labels", help="With joint statistics: count rows by class too.")
]
Report = Annotated[
    bool,
    typer.Option(help="End the run with a benefit report: each site's own model beside the shared one."),
]
SmallestCohort = Annotated[
    int | None, typer.Option(help="Tell nothing about fewer rows (default: 10).", min=1, max=1_000_000)
]
App = Annotated[
    str | None,
    typer.Option("--app", help="Your own code: a Flower app bundle, by file, digest or an earlier plan."),
]
