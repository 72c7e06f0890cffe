"""What a training plan fixes: ``config.json``, ``recipe.json``, and the one object that reads all of it.

Both files are canonical JSON that a person can hold; the plan statement names their digests. A site rebuilds
``recipe.json`` from its own installed files, so the digest is of code and not of a name. ``config.json``
decides everything else about the result, so every field is required and none is unknown. Deliberately
without numpy, torch and flwr: the hub and an auditor read plans too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

from federation.app_terms import AppTerms, app_members, take_app
from federation.fields import Schema, as_expected, boolean, integer, one_of, problems, text
from federation.harmonising import OPTIONS, Harmonise, option_problems, options, read_harmonise
from federation.recipes.catalogue import RECIPES, Recipe
from federation.strategy_terms import DEFAULTS, EQUAL_ONLY, TAKES, least_sites, strategy_problems
from storage.encoding import canonical, parse_time, read_canonical, sha256_hex
from storage.errors import FedhubError, Rejected, Unchecked, shown
from storage.manifests import check_names
from storage.statements import Statement

CONFIG_TYPE = "https://fedhub.dev/config/v1"
MODEL_CONFIG_TYPE = "https://fedhub.dev/model-config/v1"
CONFIG_BYTES = 1 << 20
RECIPE_BYTES = 1 << 16
MAX_INTEGER = (1 << 53) - 1

_HERE = Path(__file__).parent

COMPRESSIONS = ("none", "bf16", "fp16", "int8")

_RECIPE_NAME = text(r"[a-z0-9]+(-[a-z0-9]+){0,7}", "a recipe's name")

_CONFIG: Schema = {
    "type": one_of(CONFIG_TYPE),
    "recipe": lambda value: None if isinstance(value, dict) else "an object",
    "strategy": lambda value: None if isinstance(value, dict) else "an object",
    "seed": integer(0, MAX_INTEGER),
    "weighting": one_of("examples", "equal"),
    "maxExamples": integer(1, MAX_INTEGER),
    "compression": one_of(*COMPRESSIONS),
    "quorum": integer(1, 1000),
    "roundDeadline": integer(1, 30 * 86_400),
    "keepUpdates": boolean,
    "badUpdate": one_of("leave-out", "stop"),
    "weights": text(r"[^\x00]{1,1024}", "a file name of the base version"),
}


@dataclass(frozen=True)
class Config:
    """One ``config.json``, read and checked.

    Attributes:
        recipe, recipe_version, parameters: the training code's name and everything it takes.
        strategy, strategy_parameters: how updates become an aggregate.
        weighting: "examples" or "equal"; ``max_examples`` caps what one site can weigh.
        quorum: replies without which a round is not closed. ``round_deadline_s``: seconds a round stays open.
        compression: the form in which updates travel, see ``federation.compression``.
        keep_updates: whether single updates stay in the store, for ``fedhub audit recompute``.
        bad_update: "leave-out" or "stop", when a site's update breaks a rule.
        weights: name of the file of the base version that travels.
        raw, digest: the file's bytes and their SHA-256.
        harmonise: the columns that all sites scale alike, or None. report: whether the run ends with one.
        smallest_cohort: fewer rows than this are told of nowhere.
        app: a lab's own code instead of a recipe, or None. ``recipe`` is then a name that nobody installs.
    """

    recipe: str
    recipe_version: str
    parameters: Mapping[str, Any]
    strategy: str
    strategy_parameters: Mapping[str, Any]
    seed: int
    weighting: str
    max_examples: int
    compression: str
    quorum: int
    round_deadline_s: int
    keep_updates: bool
    bad_update: str
    weights: str
    raw: bytes
    digest: str
    harmonise: Harmonise | None = None
    report: bool = False
    smallest_cohort: int = 1
    app: AppTerms | None = None


@dataclass(frozen=True)
class PlanSite:
    """One participant of a plan: an institution and the asset id of the dataset it trains on."""

    institution: str
    dataset: str


@dataclass(frozen=True)
class TrainingPlan:
    """A plan with the two files that it names, agreeing with each other.

    Attributes:
        id: the plan's statement id.
        sites: participants in the plan's order, which is the order updates are folded in.
        base: asset id of the base version. ``code``: digest of ``recipe.json`` or of the app bundle.
        expires: seconds since 1970, UTC.
        epsilon, delta: the plan's privacy terms, or None when it promises none.
    """

    id: str
    issuer: str
    rounds: int
    min_participants: int
    approvals: int
    expires: int
    epsilon: Decimal | None
    delta: Decimal | None
    sites: tuple[PlanSite, ...]
    base: str
    code: str
    config: Config

    def site(self, dataset: str) -> PlanSite | None:
        """The participant whose dataset has this asset id, or None."""
        return next((site for site in self.sites if site.dataset == dataset), None)


def make_config(
    recipe: str,
    parameters: Mapping[str, Any],
    *,
    quorum: int,
    seed: int = 1,
    strategy: str = "FedAvg",
    strategy_parameters: Mapping[str, Any] | None = None,
    weighting: str | None = None,
    max_examples: int = 1_000_000,
    compression: str = "none",
    round_deadline_s: int = 600,
    keep_updates: bool = True,
    bad_update: str = "leave-out",
    weights: str | None = None,
    harmonise: bool | Sequence[str] = False,
    count_labels: bool = False,
    report: bool = False,
    smallest_cohort: int | None = None,
    app: AppTerms | None = None,
) -> bytes:
    """The bytes of a ``config.json`` for a recipe installed here, or an app, already checked.

    Args:
        parameters, strategy_parameters: values as JSON has them, or as a person types them; the strategy's
            defaults are filled in.
        weighting: "equal" for strategies that know no other and "examples" for others when None.
        weights: file of the base version that travels; the recipe's own when None.
        harmonise, count_labels, report, smallest_cohort: see ``harmonising.options``.
        app: code instead of a recipe; ``recipe`` and ``parameters`` are then not read.
    Raises:
        Rejected: ``E_CONFIG``, naming every bad field; ``E_RECIPE``: no such recipe is installed here.
    """
    if app is not None:
        parameters = app.parameters
    given = {**DEFAULTS.get(strategy, {}), **(strategy_parameters or {})}
    raw = canonical(
        {
            "type": CONFIG_TYPE,
            **(_recipe_members(recipe, parameters) if app is None else app_members(app)),
            "strategy": {"name": strategy, "parameters": _typed(given, TAKES.get(strategy, {}))},
            "seed": seed,
            "weighting": weighting or ("equal" if strategy in EQUAL_ONLY else "examples"),
            "maxExamples": max_examples,
            "compression": compression,
            "quorum": quorum,
            "roundDeadline": round_deadline_s,
            "keepUpdates": keep_updates,
            "badUpdate": bad_update,
            "weights": weights or (RECIPES[recipe].weights if app is None else "model.safetensors"),
            **options(
                parameters,
                harmonise=harmonise,
                count_labels=count_labels,
                report=report and app is None,
                smallest_cohort=smallest_cohort,
            ),
        },
        code="E_CONFIG",
    )
    return read_config(raw).raw


def _recipe_members(recipe: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    installed = _installed(recipe)
    typed = _typed(parameters, installed.parameters)
    return {"recipe": {"name": recipe, "version": installed.version, "parameters": typed}}


def _typed(values: Mapping[str, Any], schema: Schema) -> dict[str, Any]:
    return {
        name: as_expected(value, schema[name]) if name in schema else value for name, value in values.items()
    }


def read_config(raw: bytes) -> Config:
    """Read the bytes of a ``config.json``, also of a recipe that this fedhub has not, or has otherwise.

    What such a recipe takes is not checked then: ``check_recipe`` keeps it from being run.

    Raises:
        Rejected: ``E_CONFIG``: not canonical JSON, or at least one bad field; the message names every one.
    """
    app, value, found = take_app(read_canonical(raw, code="E_CONFIG", limit=CONFIG_BYTES))
    if found:
        raise _rejected("config.json", found)
    optional = {name: rule for name, rule in OPTIONS.items() if isinstance(value, dict) and name in value}
    found = problems(value, {**_CONFIG, **optional})
    recipe, strategy = _part(value, "recipe"), _part(value, "strategy")
    if recipe is not None:
        found += _recipe_problems(recipe, "recipe", installed_only=False)
    if strategy is not None:
        found += strategy_problems(strategy)
    found += _weights_problems(value)
    if not found:
        found = _together(value) + option_problems(value, recipe=app is None)
    if found:
        raise _rejected("config.json", found)
    return Config(
        recipe=value["recipe"]["name"],
        recipe_version=value["recipe"]["version"],
        parameters=value["recipe"]["parameters"],
        strategy=value["strategy"]["name"],
        strategy_parameters=value["strategy"]["parameters"],
        seed=value["seed"],
        weighting=value["weighting"],
        max_examples=value["maxExamples"],
        compression=value["compression"],
        quorum=value["quorum"],
        round_deadline_s=value["roundDeadline"],
        keep_updates=value["keepUpdates"],
        bad_update=value["badUpdate"],
        weights=value["weights"],
        raw=raw,
        digest=sha256_hex(raw),
        harmonise=read_harmonise(value),
        report=value.get("report", False),
        smallest_cohort=value.get("smallestCohort", 1),
        app=app,
    )


def build_recipe(name: str) -> bytes:
    """``recipe.json`` over the installed source files of a recipe.

    Raises:
        Rejected: ``E_RECIPE``: no recipe of that name is installed.
        Unchecked: ``E_RECIPE_SOURCE``: a source file is missing from the installation.
    """
    recipe = _installed(name)
    files = []
    for file in recipe.files:
        try:
            digest, size = _source(_HERE / file)
        except OSError as error:
            raise Unchecked(
                "E_RECIPE_SOURCE",
                f"recipe {name}: source file federation/{file} cannot be read",
                "install fedhub again with its source files",
            ) from error
        files.append({"name": file, "sha256": digest, "size": size})
    return canonical({"name": recipe.name, "version": recipe.version, "files": files})


def _source(path: Path) -> tuple[str, int]:
    """Digest and size of a file, which is not read again while it has not changed: each order asks."""
    status = path.stat()
    return _read_source(path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@lru_cache(maxsize=64)
def _read_source(path: Path, *_version: int) -> tuple[str, int]:
    source = path.read_bytes()
    return sha256_hex(source), len(source)


def check_recipe(config: Config, code: str) -> None:
    """Check that the recipe installed here is byte for byte the code that a plan names, and takes its
    parameters.

    Args:
        code: the plan's ``subject[0]`` digest.
    Raises:
        Rejected: ``E_RECIPE``: no such recipe here, or its files have another digest; ``E_CONFIG``.
    """
    if config.app is not None:
        raise Rejected("E_RECIPE", f"the plan's code is the app {config.app.sha256}, not a recipe")
    installed = sha256_hex(build_recipe(config.recipe))
    if installed != code:
        raise Rejected(
            "E_RECIPE",
            f"recipe {config.recipe}: the plan names code {code}, the code installed here is {installed}",
            "install the fedhub release that the plan's owner used, or ask the owner for a new plan",
        )
    check_parameters(config.recipe, config.parameters)


def read_plan(statement: Statement, recipe: bytes, config: bytes) -> TrainingPlan:
    """One object from a plan statement and the two files that it names.

    Says nothing about who signed the statement or whether the recipe is installed: see ``check_recipe``. Of a
    plan of an app, ``recipe`` is empty: the app travels by its digest.

    Raises:
        Rejected: ``E_PLAN``: a file has another digest than the plan says, or statement, recipe and config
            disagree; ``E_CONFIG``, ``E_RECIPE``: a file is malformed.
    """
    if statement.kind != "plan":
        raise Rejected("E_PLAN", f"statement {statement.id}: expected a plan, found {statement.kind}")
    digests = [digest for _, digest in statement.subjects]
    if len(digests) != 3:
        raise Rejected("E_PLAN", f"plan {statement.id}: expected 3 subjects, found {len(digests)}")
    _check_file(statement, "config.json", digests[2], sha256_hex(config))
    settings = read_config(config)
    if settings.app is None:
        _check_file(statement, "recipe.json", digests[0], sha256_hex(recipe))
    else:
        _check_file(statement, "the app", digests[0], settings.app.sha256)
    terms = statement.predicate
    plan = TrainingPlan(
        id=statement.id,
        issuer=statement.issuer,
        rounds=terms["rounds"],
        min_participants=terms["minParticipants"],
        approvals=terms["approvals"],
        expires=parse_time(terms["expires"], "E_PLAN"),
        epsilon=Decimal(terms["epsilon"]) if "epsilon" in terms else None,
        delta=Decimal(terms["delta"]) if "delta" in terms else None,
        sites=tuple(PlanSite(site["institution"], site["dataset"]) for site in terms["participants"]),
        base=digests[1],
        code=digests[0],
        config=settings,
    )
    _check_agreement(plan, terms["strategy"], recipe)
    return plan


def _check_file(statement: Statement, name: str, named: str, found: str) -> None:
    if found != named:
        raise Rejected("E_PLAN", f"plan {statement.id}: {name} should be {named}, it is {found}")


def make_model_config(recipe: str, parameters: Mapping[str, Any]) -> bytes:
    """``config.json`` of a model folder: which recipe loads its weights, and with which parameters.

    Raises:
        Rejected: ``E_MODEL_CONFIG``, naming every bad field.
    """
    version = RECIPES[recipe].version if recipe in RECIPES else "1"
    value = {"name": recipe, "version": version, "parameters": dict(parameters)}
    raw = canonical({"type": MODEL_CONFIG_TYPE, "recipe": value}, code="E_MODEL_CONFIG")
    read_model_config(raw)
    return raw


def read_model_config(raw: bytes) -> tuple[str, Mapping[str, Any]]:
    """The recipe's name and parameters from the ``config.json`` of a model folder.

    Raises:
        Rejected: ``E_MODEL_CONFIG``, naming every bad field.
    """
    value = read_canonical(raw, code="E_MODEL_CONFIG", limit=CONFIG_BYTES)
    schema: Schema = {"type": one_of(MODEL_CONFIG_TYPE), "recipe": _CONFIG["recipe"]}
    found = problems(value, schema)
    recipe = _part(value, "recipe")
    if recipe is not None:
        found += _recipe_problems(recipe, "recipe")
    if found:
        raise _rejected("the model's config.json", found, "E_MODEL_CONFIG")
    return value["recipe"]["name"], value["recipe"]["parameters"]


def check_parameters(recipe: str, parameters: Mapping[str, Any]) -> None:
    """Check a recipe's parameters before they are used.

    Raises:
        Rejected: ``E_RECIPE``: no such recipe; ``E_CONFIG``, naming every bad parameter.
    """
    found = _installed(recipe).problems(dict(parameters), "parameters")
    if found:
        raise _rejected(f"recipe {recipe}", found)


def _installed(name: str) -> Recipe:
    try:
        return RECIPES[name]
    except KeyError:
        raise Rejected(
            "E_RECIPE", f"no recipe {shown(name)} is installed here", f"recipes: {', '.join(sorted(RECIPES))}"
        ) from None


def _part(value: object, name: str) -> dict[str, Any] | None:
    part = value.get(name) if isinstance(value, dict) else None
    return part if isinstance(part, dict) else None


def _recipe_problems(recipe: dict[str, Any], where: str, *, installed_only: bool = True) -> list[str]:
    """What is wrong with a recipe's name, version and parameters.

    Args:
        installed_only: whether another recipe or version than those installed here is wrong too.
    """
    schema: Schema = {
        "name": one_of(*sorted(RECIPES)) if installed_only else _RECIPE_NAME,
        "version": text(r"[0-9]{1,6}", "digits as text"),
        "parameters": lambda value: None if isinstance(value, dict) else "an object",
    }
    found = problems(recipe, schema, where)
    name = recipe.get("name")
    known = RECIPES.get(name) if isinstance(name, str) else None
    if known is None:
        return found
    if isinstance(recipe.get("version"), str) and recipe["version"] != known.version:
        if not installed_only:
            return found
        found.append(
            f"{where}.version: expected {known.version!r}, the version installed here, "
            f"found {shown(recipe['version'])}"
        )
    if isinstance(recipe.get("parameters"), dict):
        found += known.problems(recipe["parameters"], f"{where}.parameters")
    return found


def _weights_problems(value: object) -> list[str]:
    name = value.get("weights") if isinstance(value, dict) else None
    if not isinstance(name, str):
        return []
    try:
        check_names([name])
    except FedhubError as error:
        return [f"weights: {error.message}"]
    return (
        []
        if name.endswith(".safetensors")
        else [f"weights: expected a .safetensors file, found {shown(name)}"]
    )


def _together(value: dict[str, Any]) -> list[str]:
    """Rules between fields that are each well by themselves."""
    found = []
    strategy, parameters = value["strategy"]["name"], value["strategy"]["parameters"]
    least = least_sites(strategy, parameters)
    if value["quorum"] < least:
        found.append(
            f"quorum: {strategy} with these parameters needs at least {least}, found {value['quorum']}"
        )
    if strategy in EQUAL_ONLY and value["weighting"] != "equal":
        found.append(f"weighting: {strategy} counts every site once, expected 'equal', found 'examples'")
    mu = value["recipe"]["parameters"].get("proximalMu")
    if strategy == "FedProx" and isinstance(mu, str) and set(mu) <= set("-0."):
        found.append(f"recipe.parameters.proximalMu: FedProx needs a decimal above 0, found {mu!r}")
    return found


def _check_agreement(plan: TrainingPlan, strategy: str, recipe: bytes) -> None:
    """Check that statement, recipe and config speak of the same training."""
    found = []
    config = plan.config
    names: tuple[object, object] = (config.recipe, config.recipe_version)
    if config.app is None:
        named = read_canonical(recipe, code="E_RECIPE", limit=RECIPE_BYTES)
        names = (named.get("name"), named.get("version")) if isinstance(named, dict) else (None, None)
    elif recipe:
        found.append("a plan of an app has no recipe.json")
    if names != (config.recipe, config.recipe_version):
        found.append(
            f"recipe.json is {shown(names[0])} version {shown(names[1])}, "
            f"config.json names {config.recipe!r} version {config.recipe_version!r}"
        )
    if strategy != config.strategy:
        found.append(f"the plan's strategy is {shown(strategy)}, config.json names {config.strategy!r}")
    if not plan.min_participants <= config.quorum <= len(plan.sites):
        found.append(
            f"quorum {config.quorum} should be from minParticipants {plan.min_participants} "
            f"to {len(plan.sites)} participants"
        )
    if config.harmonise is not None and plan.min_participants < 2:
        found.append("a joint scaling takes two sites: minParticipants should be at least 2")
    datasets = [site.dataset for site in plan.sites]
    if len(set(datasets)) < len(datasets):
        found.append("a dataset takes part twice")
    if found:
        raise Rejected("E_PLAN", f"plan {plan.id}: " + "; ".join(found), "the plan's owner makes a new plan")


def _rejected(document: str, found: list[str], code: str = "E_CONFIG") -> Rejected:
    count = "1 field is wrong" if len(found) == 1 else f"{len(found)} fields are wrong"
    return Rejected(
        code, f"{document}: {count}: " + "; ".join(found), "correct the fields named and try again"
    )
