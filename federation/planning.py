"""An owner drafts a training plan in a folder, looks at it, and signs it.

A draft is three files that a person can read: ``plan.json`` (what the plan will say), ``recipe.json`` (the
code, by digest) or ``app.fab`` (the lab's own code), and ``config.json`` (everything else that decides the
result). Nothing is signed before ``submit``.
"""

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from federation import fetching, sending
from federation.app_bundle import check_named, read_bundle, typed_parameters
from federation.app_terms import APP_BYTES, APP_FILE, AppTerms
from federation.home import Home, write_atomically
from federation.plan import TrainingPlan, build_recipe, make_config, read_model_config, read_plan
from federation.pulling import find_dataset, find_version
from storage.encoding import format_time, read_json, sha256_hex
from storage.errors import Rejected, Unchecked
from storage.signing import open_envelope
from storage.statements import compose, read_statement

if TYPE_CHECKING:
    from federation import wire
    from federation.client import HubClient

_DAY_S = 86_400
_MEMBERS = {
    "base",
    "baseName",
    "participants",
    "rounds",
    "minParticipants",
    "approvals",
    "strategy",
    "expires",
}
_OPTIONAL = {"epsilon", "delta"}


@dataclass(frozen=True)
class Terms:
    """What an owner decides about a plan; ``None`` leaves it to the base version or the house's default."""

    participants: Sequence[str]  # dataset names or asset ids
    rounds: int
    min_participants: int | None = None  # all
    approvals: int | None = None  # more than half
    days: int = 30
    parameters: Mapping[str, Any] | None = None  # of the recipe, on top of the base version's
    strategy: str = "FedAvg"
    strategy_parameters: Mapping[str, Any] | None = None
    weighting: str | None = None  # as the strategy needs it, else by examples
    max_examples: int = 1_000_000
    compression: str = "none"
    seed: int = 1
    quorum: int | None = None  # as many as min_participants
    round_deadline_s: int = 600
    keep_updates: bool = False
    bad_update: str = "leave-out"
    epsilon: str | None = None
    delta: str | None = None
    harmonise: bool | Sequence[str] = False  # columns by name, or all that the recipe scales
    count_labels: bool = False
    report: bool = False
    smallest_cohort: int | None = None  # the house's default
    app: bytes | None = None  # a Flower app bundle in place of the base version's recipe


@dataclass(frozen=True)
class Draft:
    """A plan before it is signed."""

    members: dict[str, Any]  # of the plan statement
    subjects: list[tuple[str, str]]
    base_name: str
    recipe: bytes  # empty where the code is an app
    config: bytes
    app: bytes | None = None


def draft_plan(client: "HubClient", folder: Path, base: str, terms: Terms) -> Draft:
    """Write a draft into the new ``folder``; without an app, recipe and parameters come from the base
    version's own config.

    Raises:
        Unchecked: the folder is there, or the base version or a dataset is not.
        Rejected: a term breaks a rule; names every one.
    """
    if folder.exists() and any(folder.iterdir()):
        raise Unchecked("E_TARGET", f"{folder} is not empty", "choose another folder for the draft")
    version = find_version(client, base)
    recipe_name, parameters, app = "", {}, None
    if terms.app is None:
        recipe_name, defaults = read_model_config(_model_config(client, version))
        parameters = {**defaults, **(terms.parameters or {})}
    else:
        bundle = read_bundle(terms.app)
        settings = typed_parameters(
            bundle, {name: str(each) for name, each in (terms.parameters or {}).items()}
        )
        app = AppTerms(bundle.sha256, bundle.size, settings)
    datasets = [find_dataset(client, each) for each in terms.participants]
    pairs = sorted((each.owner, each.asset_id) for each in datasets)
    least = terms.min_participants or len(pairs)
    config = make_config(
        recipe_name,
        parameters,
        quorum=terms.quorum or least,
        seed=terms.seed,
        strategy=terms.strategy,
        strategy_parameters=terms.strategy_parameters,
        weighting=terms.weighting,
        max_examples=terms.max_examples,
        compression=terms.compression,
        round_deadline_s=terms.round_deadline_s,
        keep_updates=terms.keep_updates,
        bad_update=terms.bad_update,
        harmonise=terms.harmonise,
        count_labels=terms.count_labels,
        report=terms.report,
        smallest_cohort=terms.smallest_cohort,
        app=app,
    )
    plan: dict[str, Any] = {
        "base": version.asset_id,
        "baseName": f"{version.name}@{version.version}",
        "participants": [{"institution": owner, "dataset": dataset} for owner, dataset in pairs],
        "rounds": terms.rounds,
        "minParticipants": least,
        "approvals": terms.approvals or len({owner for owner, _ in pairs}) // 2 + 1,
        "strategy": terms.strategy,
        "expires": format_time(int(time.time()) + terms.days * _DAY_S),
    }
    if terms.epsilon is not None and terms.delta is not None:
        plan |= {"epsilon": terms.epsilon, "delta": terms.delta}
    folder.mkdir(parents=True, exist_ok=True)
    if terms.app is None:
        write_atomically(folder / "recipe.json", build_recipe(recipe_name))
    else:
        write_atomically(folder / APP_FILE, terms.app)
    write_atomically(folder / "config.json", config)
    write_atomically(folder / "plan.json", json.dumps(plan, indent=2, sort_keys=True).encode() + b"\n")
    return read_draft(folder)


def read_draft(folder: Path) -> Draft:
    """The draft in ``folder``; its members are checked when it is composed.

    Raises:
        Unchecked: a file is missing or is no draft (E_DRAFT).
    """
    texts = {}
    code = APP_FILE if (folder / APP_FILE).exists() else "recipe.json"
    for name in ("plan.json", code, "config.json"):
        try:
            texts[name] = (folder / name).read_bytes()
        except OSError as error:
            message = f"{folder / name}: {error.strerror}"
            raise Unchecked("E_DRAFT", message, "make a draft with: fedhub plan new") from error
    plan = read_json(texts["plan.json"], code="E_DRAFT")
    if not isinstance(plan, dict) or not _MEMBERS <= set(plan) <= _MEMBERS | _OPTIONAL:
        message = f"{folder / 'plan.json'} must have the members {', '.join(sorted(_MEMBERS))}"
        raise Unchecked("E_DRAFT", message, "make a draft with: fedhub plan new")
    members = {name: value for name, value in plan.items() if name not in ("base", "baseName")}
    config = texts["config.json"]
    subjects = [
        (code, sha256_hex(texts[code])),
        ("manifest.json", plan["base"]),
        ("config.json", sha256_hex(config)),
    ]
    recipe, app = (texts[code], None) if code != APP_FILE else (b"", texts[code])
    return Draft(members, subjects, plan["baseName"], recipe, config, app)


def check_draft(home: Home, draft: Draft) -> TrainingPlan:
    """The plan that signing the draft would make; everything is checked as a site would, but the signature.

    Raises:
        Rejected: statement, recipe and config break a rule or disagree; names what.
    """
    from storage.signing import new_private_key, sign

    payload = compose("plan", draft.subjects, draft.members, issuer=home.institution, hub=home.hub)
    # Signed by a key of nobody: only so that the reader for real plans can read it.
    statement = read_statement(open_envelope(sign(new_private_key(), payload)))
    plan = read_plan(statement, draft.recipe, draft.config)
    if plan.config.app is not None and draft.app is not None:
        check_named(read_bundle(draft.app), plan.config.app)
    return plan


def submit_draft(home: Home, client: "HubClient", draft: Draft) -> "wire.Plan":
    """Sign the draft with the targets key and have the plan logged; from then on it never changes."""
    check_draft(home, draft)
    if draft.app is not None:
        push_app(client, draft.app)
    bundle = home.sign("plan", draft.subjects, draft.members)
    plan = client.submit_plan(bundle, draft.recipe, draft.config)
    home.keep(bundle)
    return plan


def push_app(client: "HubClient", app: bytes) -> None:
    """Upload an app bundle, which nothing runs before a plan names it; a repeat sends nothing.

    Raises:
        Rejected: ``E_APP``.
    """
    bundle = read_bundle(app)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / APP_FILE
        path.write_bytes(app)
        sending.send_file(client, path, known=(bundle.sha256, bundle.size))


def fetch_app(client: "HubClient", sha256: str) -> bytes:
    """An app bundle by its digest: an own one, or one that a plan names which this home may read.

    Raises:
        Rejected: ``E_DIGEST``, ``E_SIZE``. Unchecked: ``E_NOT_FOUND``.
    """
    found = client.app(sha256)
    if found.size > APP_BYTES:
        raise Rejected("E_SIZE", f"app {sha256}: at most {APP_BYTES} bytes are read, found {found.size}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / APP_FILE
        fetching.fetch(found.url, path, sha256, found.size)
        return path.read_bytes()


def _model_config(client: "HubClient", version: "wire.ModelVersion") -> bytes:
    entry = next((file for file in version.files if file.name == "config.json"), None)
    if entry is None:
        message = f"{version.name}@{version.version} has no config.json, so its recipe is unknown"
        raise Unchecked("E_MODEL_CONFIG", message, "push the model with the config.json of a recipe")
    pull = client.pull(version.asset_id)
    url = next(file.url for file in pull.files if file.name == "config.json")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        fetching.fetch(url, path, entry.sha256, entry.size, entry.parts)
        return path.read_bytes()
