"""A study's file: what every trial shares, and what is searched, checked against the settings before anything starts.

study: {name: digits, ...}                                          settings.study
run: {train.epochs: 27, ...}                                        what every trial shares, over the defaults
space:                                                              Optuna's terms; bounds inclusive
  model.latent_dim: {type: int, low: 2, high: 16, log: true}
  model.prior: {type: categorical, choices: [gaussian, mixture]}
  model.prior_components: {type: int, low: 2, high: 20, when: {model.prior: [mixture]}}
start:                                                              points that are tried first
  - {model.latent_dim: 8, model.prior: gaussian}
"""

import itertools
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from optuna.distributions import (
    CategoricalDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)
from pydantic import ValidationError

from aae_ray.errors import Kind, Problem, SettingsError, UserError, closest, did_you_mean, unknown_key
from aae_ray.evaluation.metrics import METRICS
from aae_ray.reading import (
    Entry,
    build,
    key_problems,
    nest,
    read_changes,
    read_overrides,
    read_yaml,
    rule_problems,
    shown,
    unclear,
)
from aae_ray.search.choice import RULES as RULES_OF_CHOICE
from aae_ray.search.conditions import Conditions, is_active, parents_first, read_conditions
from aae_ray.search.constraints import constraint_problems
from aae_ray.search.distributions import (
    Space,
    count,
    inside,
    number,
    options,
    plain_value,
    read_distribution,
    read_specs,
    spec_of,
)
from aae_ray.search.events import PlanRecord
from aae_ray.search.outcomes import RungVerdict
from aae_ray.search.points import LARGEST_GRID, space_size
from aae_ray.search.population import mutable
from aae_ray.search.pruner import PRUNERS, rungs
from aae_ray.secrets import without_userinfo
from aae_ray.settings import Sampler, Settings, StudySettings, dotted_fields, setting
from aae_ray.settings.rules import RULES, WITH_CLUSTERS, WITHOUT_CONDITIONS
from aae_ray.settings.sections import CHANGES_UNDER_WAY
from aae_ray.spellings import folded

_INSTALLED = Path(__file__).parents[1] / "search_spaces"
SHIPPED = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[2] / "search_spaces"  # in a checkout
BLOCKS = ("study", "run", "space", "start")


@dataclass(frozen=True)
class Plan:
    """A study that is ready to run."""

    settings: Settings  # with the values that every trial shares
    space: Space
    start: tuple[dict[str, Any], ...] = ()
    conditions: Conditions = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict, compare=False)  # where the user wrote each key

    def spec(self, key: str) -> dict[str, Any]:
        """A searched key as a study's file writes it."""
        when = {parent: list(choices) for parent, choices in self.conditions.get(key, {}).items()}
        return spec_of(self.space[key]) | ({"when": when} if when else {})

    def describe(self, key: str) -> str:
        """The distribution of a searched key, and its condition."""
        when = [f"{parent} in {list(choices)}" for parent, choices in self.conditions.get(key, {}).items()]
        return f"{self.space[key]}" + (f" when {' and '.join(when)}" if when else "")

    @property
    def directions(self) -> list[str]:
        """`min` or `max` for each objective, from the table of metrics. One that an earlier version could optimise, and
        that has no direction any more, was maximised."""
        return ["min" if METRICS[name].sign > 0 else "max" for name in self.settings.study.objectives]


Changes = Iterable[str] | Mapping[str, Any]  # `key=value`, as on the command line, or values by dotted keys


def read_plan(path: str | None, overrides: Changes = ()) -> Plan:
    """The plan in a file with changes, those of the command line or of a program, which also fix what the file
    searches.

    Raises SettingsError with every mistake in both, each with its place.
    """
    entries = read_yaml(study_file(path)) if path else {}
    changes = read_changes(overrides) if isinstance(overrides, Mapping) else read_overrides(overrides)
    problems: list[Problem] = []
    shared, searched, start = _sort_blocks(entries, problems)
    for key, entry in changes.items():
        if key == "start":
            start = entry
            continue
        name = key.removeprefix("space.")
        if name in dotted_fields():  # a key, or a whole distribution, instead of the file's
            searched = {field: spec for field, spec in searched.items() if not field.startswith(f"{name}.")}
        (searched if key.startswith("space.") else shared)[name] = entry

    specs = read_specs(searched, problems)
    found = {name: read_distribution(name, spec, problems) for name, spec in specs.items()}
    places = {name: next(iter(spec.values())).where for name, spec in specs.items()}
    space = {name: distribution for name, distribution in found.items() if distribution is not None}
    given = {name for name in space if any(key.startswith(f"space.{name}") for key in changes)}
    fixed = {key: entry for key, entry in changes.items() if key in dotted_fields()}
    conditions, never, unknown = read_conditions(specs, space, fixed, given, problems)
    space = {name: distribution for name, distribution in space.items() if name not in never}
    whole = not problems  # all that is searched is known
    conditional = {name for name, spec in specs.items() if any(key.startswith("when") for key in spec)}
    twice = (specs.keys() & shared.keys()) - conditional
    for name in twice:
        text = f"{name} is fixed here and searched at {places[name]}; keep one of them"
        problems.append(Problem((name,), Kind.DUPLICATE, shared[name].where, text))
    points, start_problems = _start_points(
        start, space, conditions, (set(specs) | set(searched)) - set(space) | set(changes), given
    )
    problems += _metric_problems(shared)
    problems += key_problems(shared)
    base = shared | {  # a key with a condition has what applies where it is not active
        name: Entry(options(distribution)[0], places[name])
        for name, distribution in space.items()
        if name not in conditional
    }
    problems += constraint_problems(shared.get("study.constraints"), _most_clusters(base, space, problems))
    ranges = {name: distribution for name, distribution in space.items() if name not in twice}
    sure = {name: distribution for name, distribution in space.items() if name not in unknown}
    contradictions = _contradictions(base, sure, conditions, places, problems)
    contradictions += _beyond_the_sampler(base, ranges, conditions.keys() | unknown, places, problems)
    contradictions += _beyond_the_pruner(base, space, whole, problems)
    contradictions += _beyond_the_seeds(base, space, problems)
    if whole:
        contradictions += _too_many_points(base, space, conditions, problems)
        contradictions += _too_few_points(base, space, conditions, places, problems)
    if problems := [*problems, *start_problems, *contradictions]:
        raise SettingsError(dict.fromkeys(problems))
    return Plan(build(base), space, points, conditions, {key: entry.where for key, entry in base.items()})


def study_file(path: str) -> str:
    """The file itself; where there is none, `NAME` and `search_spaces/NAME.yaml` mean the one that ships.

    Raises UserError for a name that no study has.
    """
    shipped = SHIPPED / f"{Path(path).stem}.yaml"
    bare = Path(path) == Path(shipped.stem)
    if os.path.isfile(path) or not (bare or Path(path) == Path("search_spaces", shipped.name)):
        return path
    if bare and not os.path.exists(shipped):
        names = sorted(file.stem for file in SHIPPED.glob("*.yaml"))
        hint = did_you_mean(path, names) or f" Those that ship: {', '.join(names)}."
        raise UserError(f"{path} is neither a file nor a study that ships.{hint}")
    return str(shipped) if os.path.exists(shipped) else path


def _sort_blocks(
    entries: Mapping[str, Entry], problems: list[Problem]
) -> tuple[dict[str, Entry], dict[str, Entry], Entry | None]:
    """The file's entries as settings, as fields of searched keys, and the list of start points."""
    shared: dict[str, Entry] = {}
    searched: dict[str, Entry] = {}
    start = None
    for key, entry in entries.items():
        block, _, rest = key.partition(".")
        if block == "start":
            start = entry if not rest else Entry({rest: entry.value}, entry.where)
        elif block in BLOCKS and not rest:
            if entry.value not in ({}, None):
                text = f"{block} must be a mapping of keys to values, got {shown(entry.value)}"
                text += "; a colon needs a space behind it" if ":" in str(entry.value) else ""
                problems.append(Problem((block,), Kind.SECTION, entry.where, text))
        elif block == "study":
            shared[key] = entry
        elif block == "run" and rest.startswith("study."):
            text = f"{rest} belongs under `study:`, not under `run:`"
            problems.append(Problem((rest,), Kind.MISPLACED, entry.where, text))
        elif block in ("run", "space"):
            (shared if block == "run" else searched)[rest] = entry
        elif key in dotted_fields():
            text = f"{key} is outside of any block; put it under `run:`"
            problems.append(Problem((key,), Kind.MISPLACED, entry.where, text))
        else:
            meant = closest(key, dotted_fields())
            setting_meant = meant and folded(key.rpartition(".")[2]) == folded(meant.rpartition(".")[2])
            hint = f" Did you mean {meant}, under `run:`?" if setting_meant else did_you_mean(block, BLOCKS)
            text = f"{key} is not a block of a study's file; the blocks are {', '.join(BLOCKS)}.{hint}"
            problems.append(Problem((key,), Kind.UNKNOWN_KEY, entry.where, text))
    return shared, searched, start


def _most_clusters(base: Mapping[str, Entry], space: Space, problems: Sequence[Problem]) -> int | None:
    """The most clusters that a trial has; None where that is unclear, or where a trial may have none."""

    def values(key: str) -> list[Any]:
        alone = base[key].value if key in base else setting(Settings(), key)
        return [alone, *(options(space[key]) if key in space else ())]

    if unclear(("task", "model.clusters"), base, problems) or not set(values("task")) <= set(WITH_CLUSTERS):
        return None
    return max(map(int, values("model.clusters")))


def _metric_problems(shared: Mapping[str, Entry]) -> list[Problem]:
    problems = []
    goals = [name for name, metric in METRICS.items() if metric.direction and name.startswith("val/")]
    objectives, pruner = shared.get("study.objectives"), shared.get("study.pruner.metric")
    select = shared.get("study.select")
    given = objectives.value if objectives else []
    names = given.split(",") if isinstance(given, str) else given if isinstance(given, list) else []
    names = [name.strip() if isinstance(name, str) else name for name in names]
    wanted = [("study.objectives", objectives, name) for name in names]
    if pruner and pruner.value != "front":
        wanted.append(("study.pruner.metric", pruner, pruner.value))
    if select and select.value not in RULES_OF_CHOICE:
        wanted.append(("study.select", select, select.value))
    for key, entry, name in wanted:
        if entry is None or not isinstance(name, str) or name in goals:
            continue  # what is no text is reported as a wrong type
        diagnostic = name in METRICS and not METRICS[name].direction
        what = "is a diagnostic without a direction" if diagnostic else "is not a metric to search on"
        text = f"{key}: {name} {what}; those are {', '.join(goals)}.{did_you_mean(name, goals)}"
        problems.append(Problem((key,), Kind.VALUE, entry.where, text))
    if objectives and len(set(map(str, names))) < len(names):
        text = f"study.objectives names a metric twice: {names}"
        problems.append(Problem(("study.objectives",), Kind.DUPLICATE, objectives.where, text))
    return problems


def _start_points(
    start: Entry | None, space: Space, conditions: Conditions, skipped: set[str], given: set[str]
) -> tuple[tuple[dict[str, Any], ...], list[Problem]]:
    """The points to try first, and what is wrong with them. Points are without the keys that the command line fixed or
    that are wrong themselves, and without values that a distribution given on the command line shuts out; points that
    differ only in those are one."""
    if start is None or start.value in (None, []):
        return (), []
    if not isinstance(start.value, list) or not all(isinstance(point, dict) for point in start.value):
        text = "start must be a list of points, each a mapping of searched keys to values"
        return (), [Problem(("start",), Kind.SECTION, start.where, text)]
    points: list[dict[str, Any]] = []
    problems: list[Problem] = []
    whole: list[dict[str, Any]] = []  # as they were written
    for index, point in enumerate(start.value, start=1):
        values, written = {}, {}
        for key, value in point.items():
            written[key] = value
            if key in skipped:
                continue
            if key not in space:
                problems.append(unknown_key(str(key), space, start.where, "is not searched", prefix="start: "))
                continue
            categorical = isinstance(space[key], CategoricalDistribution)
            if not categorical and number(value) is None and not isinstance(value, float):
                text = f"start: {key} must be a number, got {value!r}"
                problems.append(Problem((key,), Kind.VALUE, start.where, text))
                continue
            plain: Any = plain_value(key, value) if categorical else number(value)
            written[key] = plain
            if not inside(space[key], plain):
                if key in given:
                    continue
                text = f"start: {key}={value} is outside what is searched"
                problems.append(Problem((key,), Kind.VALUE, start.where, text))
                continue
            values[key] = int(plain) if isinstance(space[key], IntDistribution) else plain
        for key in parents_first(space, conditions):
            if key in values and not is_active(key, values, conditions):
                del values[key]
                shut_out = given & point.keys() - values.keys()  # by the command line
                if not shut_out & conditions[key].keys():
                    problems.append(_inactive(key, values, conditions, start.where))
        if written in whole:
            text = f"start: point {index} is the same as point {whole.index(written) + 1}; remove one of them"
            problems.append(Problem(tuple(map(str, point)), Kind.DUPLICATE, start.where, text))
        elif values not in points:
            points.append(values)
        whole.append(written)
    return tuple(points), problems


def _inactive(key: str, values: Mapping[str, Any], conditions: Conditions, where: str) -> Problem:
    """The problem of a start point that has a key which is not active in it."""
    needed = [
        f"{parent} {' or '.join(map(str, choices))}, not {values.get(parent, 'left out')}"
        for parent, choices in conditions[key].items()
        if values.get(parent) not in choices
    ]
    return Problem((key,), Kind.VALUE, where, f"start: {key} is searched only with {', and with '.join(needed)}")


def _contradictions(
    base: Mapping[str, Entry],
    space: Space,
    conditions: Conditions,
    places: Mapping[str, str],
    problems: Sequence[Problem],
) -> list[Problem]:
    """Values that cannot go together, found by trying, for each rule, what is searched of its keys."""
    found: dict[tuple[str, ...], Problem] = {}
    for rule in RULES:
        searched = [name for name in space if name in rule.keys]
        keys = parents_first(searched, conditions)
        for values in itertools.product(*(options(space[key]) for key in keys)):
            active: dict[str, Any] = {}
            for key, value in zip(keys, values, strict=True):
                active |= {key: value} if is_active(key, active, conditions) else {}
            tried = {**base, **{key: Entry(value, places[key]) for key, value in active.items()}}
            for problem in rule_problems(tried, problems):
                if problem.keys == rule.keys and searched:
                    text = f"the space allows values that do not go together: {problem.text}"
                    problem = replace(problem, where=places[searched[0]], text=text)
                if problem.keys == rule.keys:
                    found.setdefault(rule.keys, problem)
    return list(found.values())


def _beyond_the_sampler(
    base: Mapping[str, Entry],
    space: Space,
    conditional: Collection[str],
    places: Mapping[str, str],
    problems: Sequence[Problem],
) -> list[Problem]:
    """What the type of sampler cannot take of a space, key by key: those with a condition, and continuous ones."""
    key = "study.sampler.type"
    if unclear((key,), base, problems):
        return []
    kind, reasons = str(base[key].value) if key in base else Sampler().type, {}
    if kind in WITHOUT_CONDITIONS:
        reason = "does not learn from what only some trials have; use tpe, or remove `when`"
        reasons = {name: reason for name in places if name in conditional}
    elif kind == "grid":
        endless = "needs values that can be counted; give a step, or type categorical with choices"
        reasons = {name: endless for name, distribution in space.items() if count(distribution) is None}
    return [
        Problem((key, name), Kind.RULE, places[name], f"space {name}: {key} {kind} {reason}")
        for name, reason in reasons.items()
    ]


def _too_many_points(
    base: Mapping[str, Entry], space: Space, conditions: Conditions, problems: Sequence[Problem]
) -> list[Problem]:
    """The problem of a grid that is too large to be listed, where sampler and space are right by themselves."""
    key = "study.sampler.type"
    if unclear((key, *space), base, problems) or key not in base or base[key].value != "grid":
        return []
    size = space_size(space, conditions)
    if size is None or size <= LARGEST_GRID:
        return []
    text = f"{key} grid lists at most {LARGEST_GRID} points, and the space has {size}; use qmc, or a smaller space"
    return [Problem((key, *space), Kind.RULE, base[key].where, text)]


def _beyond_the_pruner(
    base: Mapping[str, Entry], space: Space, whole: bool, problems: Sequence[Problem]
) -> list[Problem]:
    """What pbt cannot change under way, each as far as what it needs is known: `whole` says that of the space."""
    kind, seeds, mutate = "study.pruner.type", "study.seeds_per_trial", "study.pruner.mutate"
    if unclear((kind,), base, problems) or kind not in base or base[kind].value != "pbt":
        return []
    found, can = [], mutable(space)
    if not unclear((seeds,), base, problems) and (given := _study(base, seeds).seeds_per_trial) > 1:
        text = (
            "study.pruner.type pbt changes settings under way, so that other seeds of a trial cannot be trained alike; "
        )
        found.append((seeds, f"{text}let study.seeds_per_trial be 1, got {given}"))
    if whole and not can:
        text = "study.pruner.type pbt changes rates, momenta, noise and weights of losses, and no range of these is "
        found.append((kind, f"{text}searched"))
    elif not unclear((mutate,), base, problems):
        for name in _study(base, mutate).pruner.mutate:
            if name not in can and (whole or name not in CHANGES_UNDER_WAY):
                text = f"study.pruner.mutate: {name} is not a searched range of what may change while the weights stay"
                those = f"; those are {', '.join(can)}" if can else ""
                found.append((mutate, f"{text}{those}.{did_you_mean(name, can)}"))
    return [Problem((key,), Kind.VALUE, base[key].where, text) for key, text in found]


def _study(base: Mapping[str, Entry], *keys: str) -> StudySettings:
    """The study with the values of these keys, which are right by themselves, and the defaults of all others; whether
    they go together is asked elsewhere."""
    return StudySettings.model_validate(
        nest({key.removeprefix("study."): base[key].value for key in keys if key in base})
    )


def _beyond_the_seeds(base: Mapping[str, Entry], space: Space, problems: Sequence[Problem]) -> list[Problem]:
    """Seeds that a study gives its trials where there are none to give, each as far as what it needs is known."""
    found = _no_rung_for_seeds(base, problems)
    most, finalists, of_each = "study.seeds_per_trial", "study.confirm.finalists", "study.confirm.seeds"
    asked: dict[str, tuple[int, int]] = {}  # what was given, and how many seeds beyond the first one it needs
    if not unclear((most,), base, problems):
        seeds = _study(base, most).seeds_per_trial
        asked[most] = seeds, seeds - 1
    if not unclear((finalists, of_each), base, problems):
        confirm = _study(base, finalists, of_each).confirm
        asked[finalists] = confirm.finalists, confirm.seeds if confirm.finalists else 0
    asked = {key: (value, beyond) for key, (value, beyond) in asked.items() if beyond}
    if "seed" in space:
        text = "gives each configuration seeds of its own, and `seed` is searched as well; remove one of them"
        return found + [
            Problem(("seed", key), Kind.RULE, base[key].where, f"{key}={value} {text}")
            for key, (value, _) in asked.items()
        ]
    if unclear(("seed",), base, problems) or "seed" not in base:
        return found
    seed, largest = build({"seed": base["seed"]}).seed, 2**32 - 1 - sum(beyond for _, beyond in asked.values())
    if seed > largest:
        of = " and ".join(f"{key}={value}" for key, (value, _) in asked.items())
        text = f"seed={seed} leaves no larger seeds for {of}; the largest is {largest}"
        found.append(Problem(("seed", most, finalists, of_each), Kind.RULE, base["seed"].where, text))
    return found


def _no_rung_for_seeds(base: Mapping[str, Entry], problems: Sequence[Problem]) -> list[Problem]:
    """The problem of an epoch at which further seeds cannot begin."""
    key, seeds, kind = "study.seeds_from_rung", "study.seeds_per_trial", "study.pruner.type"
    of_rungs, epochs = (kind, "study.pruner.grace_period", "study.pruner.reduction_factor"), "train.epochs"
    if unclear((key,), base, problems) or (first := _study(base, key).seeds_from_rung) is None:
        return []
    study = _study(base, *(name for name in (seeds, *of_rungs) if not unclear((name,), base, problems)))
    wrong = None
    if study.seeds_per_trial == 1 and not unclear((seeds,), base, problems):
        wrong = (
            "is where further seeds begin, and study.seeds_per_trial=1 asks for none; give 2 or more, or leave it out"
        )
    elif PRUNERS[study.pruner.type].otherwise is not RungVerdict.PAUSE:
        wrong = f"needs a pruner that pauses trials, and study.pruner.type is {study.pruner.type}; give asha"
    elif not unclear((*of_rungs, epochs), base, problems):
        budget = build({epochs: base[epochs]} if epochs in base else {}).train.epochs
        levels = rungs(study.pruner, budget)
        if first not in levels:
            known = ", ".join(map(str, levels)) or f"none below train.epochs={budget}"
            wrong = f"is no rung; the rungs are {known} (study.pruner.grace_period, study.pruner.reduction_factor)"
    keys = (seeds, key, *of_rungs, epochs)
    return [Problem(keys, Kind.RULE, base[key].where, f"{key}={first} {wrong}")] if wrong else []


def _too_few_points(
    base: Mapping[str, Entry],
    space: Space,
    conditions: Conditions,
    places: Mapping[str, str],
    problems: Sequence[Problem],
) -> list[Problem]:
    """The problem of a space with fewer points than there are trials, where both are right by themselves. A grid ends
    with its points."""
    key, sampler = "study.budget.trials", "study.sampler.type"
    keys, size = (key, *space), space_size(space, conditions)
    if not space or size is None or unclear((*keys, sampler), base, problems):
        return []
    study = build({name: base[name] for name in (key, sampler) if name in base}).study
    trials = study.budget.trials
    if size >= trials or study.sampler.type == "grid":
        return []
    text = (
        f"{key} is {trials}, and the space has only {size} different point{'s' * (size != 1)}, so that trials would be "
        f"repeated; give {key}={size} or less, or a larger space"
    )
    return [Problem(keys, Kind.RULE, base[key].where if key in base else places[next(iter(space))], text)]


# ------------------------------------------------------------------------------------------------ a plan in a journal


def record_plan(plan: Plan) -> PlanRecord:
    """A plan as a journal keeps it: no user or password of an address."""
    values = {key: setting(plan.settings, key) for key in dotted_fields()}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    uri = plan.settings.tracking.uri
    plain["tracking.uri"] = None if uri is None else without_userinfo(uri)
    space = {key: distribution_to_json(distribution) for key, distribution in plan.space.items()}
    conditions = {
        key: {parent: list(choices) for parent, choices in when.items()} for key, when in plan.conditions.items()
    }
    return PlanRecord(settings=plain, space=space, start=plan.start, conditions=conditions)


def plan_from(record: PlanRecord) -> Plan:
    """The plan that was recorded. Raises UserError for settings of another version."""
    space = {key: json_to_distribution(text) for key, text in record.space.items()}
    try:
        settings = Settings.model_validate(nest(record.settings))
    except ValidationError as error:
        keys = ", ".join(".".join(map(str, detail["loc"])) or detail["msg"] for detail in error.errors())
        raise UserError(f"it is a study of another version of aae_ray, whose settings differ: {keys}") from None
    conditions = {
        key: {parent: tuple(choices) for parent, choices in when.items()} for key, when in record.conditions.items()
    }
    return Plan(settings, space, record.start, conditions)
