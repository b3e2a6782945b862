"""A study's file: what every trial shares, and what is searched, checked against the settings before anything starts.

study: {name: digits, ...}                                          settings.study
run: {train.epochs: 27, ...}                                        what every trial shares, over the defaults
space:                                                              Optuna's terms; bounds inclusive
  model.latent_dim: {type: int, low: 2, high: 16, log: true}
  model.prior: {type: categorical, choices: [gaussian, mixture]}
start:                                                              points that are tried first
  - {model.latent_dim: 8, model.prior: gaussian}
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)
from pydantic import ValidationError

from aae_ray.errors import Problem, SettingsError, did_you_mean
from aae_ray.evaluation.metrics import METRICS
from aae_ray.reading import Entry, build, find_problems, names, nest, read_overrides, read_yaml
from aae_ray.search.events import PlanRecord
from aae_ray.secrets import without_userinfo
from aae_ray.settings import Settings, dotted_fields, flatten, setting

BLOCKS = ("study", "run", "space", "start")
FIELDS = {  # of a searched key: required, optional
    "float": ({"low", "high"}, {"log", "step"}),
    "int": ({"low", "high"}, {"log", "step"}),
    "categorical": ({"choices"}, set()),
}
FIXED = ("study.", "tracking.", "data.", "train.epochs")  # settings that no trial can have to itself

Space = dict[str, BaseDistribution]
Complain = Callable[[str, str], None]


@dataclass(frozen=True)
class Plan:
    """A study that is ready to run."""

    settings: Settings  # with the values that every trial shares
    space: Space
    start: tuple[dict[str, Any], ...] = ()

    @property
    def directions(self) -> list[str]:
        """`min` or `max` for each objective, from the table of metrics."""
        return [str(METRICS[name].direction) for name in self.settings.study.objectives]


def read_plan(path: str | None, overrides: Iterable[str] = ()) -> Plan:
    """The plan in a file with `key=value` overrides of the command line, which also fix what the file searches.

    Raises SettingsError with every mistake in both, each with its place.
    """
    entries = read_yaml(path) if path else {}
    changes = read_overrides(overrides)
    problems: list[Problem] = []
    shared, searched, start = _sort_blocks(entries, problems)
    for key, entry in changes.items():
        if key == "start":
            start = entry
            continue
        name = key.removeprefix("space.")
        if name in dotted_fields():  # a key, or a whole distribution, instead of the file's
            searched = {field: spec for field, spec in searched.items() if field.rpartition(".")[0] != name}
        (searched if key.startswith("space.") else shared)[name] = entry

    specs = _specs(searched, problems)
    space = {name: _distribution(name, spec, problems) for name, spec in specs.items()}
    places = {name: next(iter(spec.values())).where for name, spec in specs.items()}
    good = {name: distribution for name, distribution in space.items() if distribution is not None}
    for name in specs.keys() & shared.keys():
        problems.append(
            Problem(shared[name].where, f"{name} is fixed here and searched at {places[name]}; keep one of them")
        )
    given = {name for name in good if any(key.startswith(f"space.{name}") for key in changes)}
    points = _start_points(start, good, set(specs) - set(good) | set(changes), given, problems)
    problems += _metric_problems(shared)
    found = find_problems(shared)
    # Rules about several keys are judged together with what is searched, below.
    problems += [problem for problem in found if not good or _names_a_key(problem)]
    base = shared | {name: Entry(options(d)[0], places[name]) for name, d in good.items()}
    # What is wrong by itself is left out there, and what is said of its default does not count. Of a misspelt key
    # nobody knows whose default that is.
    if not any(" is not a setting" in problem.message for problem in problems):
        wrong = {key for key in shared if any(names(problem, key) for problem in problems)} | specs.keys() - good.keys()
        right = {key: entry for key, entry in base.items() if key not in wrong}
        found = _contradictions(right, good, places)
        problems += [problem for problem in found if not any(names(problem, key) for key in wrong)]
    if problems:
        raise SettingsError(dict.fromkeys(problems))
    return Plan(build(base), good, points)


def _names_a_key(problem: Problem) -> bool:
    key = problem.message.partition(" ")[0].rstrip(":")
    return (
        key in dotted_fields()
        and problem.message.startswith(f"{key}:")
        or " is not a setting" in problem.message
        or " is a section" in problem.message
    )


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
                problems.append(
                    Problem(entry.where, f"{block} must be a mapping of keys to values, got {entry.value!r}")
                )
        elif block == "study":
            shared[key] = entry
        elif block == "run" and rest.startswith("study."):
            problems.append(Problem(entry.where, f"{rest} belongs under `study:`, not under `run:`"))
        elif block in ("run", "space"):
            (shared if block == "run" else searched)[rest] = entry
        elif key in dotted_fields():
            problems.append(Problem(entry.where, f"{key} stands outside a block; put it under `run:`"))
        else:
            hint = did_you_mean(block, BLOCKS)
            known = ", ".join(BLOCKS)
            problems.append(Problem(entry.where, f"{key} is not a block of a study's file; those are {known}.{hint}"))
    return shared, searched, start


def _specs(searched: Mapping[str, Entry], problems: list[Problem]) -> dict[str, dict[str, Entry]]:
    """The fields of each searched key."""
    specs: dict[str, dict[str, Entry]] = {}
    for key, entry in searched.items():
        name, _, field = key.rpartition(".")
        if key not in dotted_fields() and name:
            specs.setdefault(name, {})[field] = entry
        elif isinstance(entry.value, dict) and entry.value:
            specs[key] = {str(field): Entry(value, entry.where) for field, value in entry.value.items()}
        else:
            example = "{type: int, low: 2, high: 8}"
            problems.append(
                Problem(entry.where, f"space {key}: must say what is searched, such as {example}, got {entry.value!r}")
            )
    return specs


def _distribution(name: str, spec: Mapping[str, Entry], problems: list[Problem]) -> BaseDistribution | None:
    """Optuna's distribution of a searched key, or None after telling what is wrong with it."""
    before, where = len(problems), next(iter(spec.values())).where

    def complain(message: str, field: str = "") -> None:
        problems.append(Problem(spec[field].where if field in spec else where, f"space {name}: {message}"))

    searchable = [key for key in dotted_fields() if not key.startswith(FIXED)]
    if name not in searchable:
        hint = did_you_mean(name, searchable)
        problems.append(Problem(where, f"{name} is not a setting that can be searched.{hint}"))
        return None
    kind = spec["type"].value if "type" in spec else None
    if not isinstance(kind, str) or kind not in FIELDS:
        complain(f"needs a type, one of {', '.join(FIELDS)}" + (f", got {kind!r}" if kind else ""), "type")
        return None
    required, optional = FIELDS[kind]
    for field in spec.keys() - required - optional - {"type"}:
        complain(f"{field!r} is not part of type {kind}.{did_you_mean(field, required | optional)}", field)
    for field in sorted(required - spec.keys()):
        complain(f"type {kind} needs {field!r}")
    if len(problems) > before:
        return None
    found = (
        _categorical(name, spec["choices"], complain, problems)
        if kind == "categorical"
        else _range(name, kind, spec, complain, problems)
    )
    return found if len(problems) == before else None


def _range(
    name: str, kind: str, spec: Mapping[str, Entry], complain: Complain, problems: list[Problem]
) -> BaseDistribution | None:
    before, numbers = len(problems), {}
    for field in ("low", "high", "step"):
        if field in spec:
            value = number(spec[field].value)
            if value is None or (kind == "int" and value != int(value)):
                wanted = "a whole number" if kind == "int" else "a number"
                wanted = "a finite number" if isinstance(spec[field].value, float) and kind == "float" else wanted
                complain(f"{field} must be {wanted}, got {spec[field].value!r}", field)
            else:
                numbers[field] = value
    log = spec["log"].value if "log" in spec else False
    if not isinstance(log, bool):
        complain(f"log must be true or false, got {log!r}", "log")
    if len(problems) > before:
        return None
    low, high, step = numbers["low"], numbers["high"], numbers.get("step")
    if low >= high:
        complain(f"low must be below high, got {low:g} and {high:g}", "low")
    if log and low <= 0:
        complain(f"log needs low above 0, got {low}", "low")
    if log and step is not None:
        complain("log and step exclude each other", "step")
    if step is not None and step <= 0:
        complain(f"step must be above 0, got {spec['step'].value}", "step")
    if dotted_fields()[name].annotation is bool:
        complain("is true or false; use type categorical with choices: [true, false]", "type")
    for field in ("low", "high"):
        bound = int(numbers[field]) if kind == "int" else numbers[field]
        problems += find_problems({name: Entry(bound, spec[field].where)})
    if len(problems) == before and kind == "float" and find_problems({name: Entry(low + 0.382 * (high - low), "")}):
        complain("is a whole number; use type int", "type")
    if len(problems) > before:
        return None
    if kind == "int":
        return IntDistribution(int(low), int(high), log=log, step=int(step or 1))
    return FloatDistribution(low, high, log=log, step=step)


def number(value: Any) -> float | None:
    """A finite number, also where YAML reads one as text (`1e-4`); None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        found = float(value)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _categorical(name: str, entry: Entry, complain: Complain, problems: list[Problem]) -> BaseDistribution | None:
    if not isinstance(entry.value, list) or not entry.value:
        complain(f"choices must be a list with at least one value, got {entry.value!r}", "choices")
        return None
    # A choice alone may contradict the defaults (task: vae): that is judged later, all choices together.
    found = [p for value in entry.value for p in find_problems({name: Entry(value, entry.where)}) if _names_a_key(p)]
    problems += found
    if found:
        return None
    choices = [_plain(name, value) for value in entry.value]
    if len(set(choices)) < len(choices):
        complain(f"choices has a value twice: {entry.value}", "choices")
        return None
    return CategoricalDistribution(choices)


def _plain(name: str, value: Any) -> Any:
    """A value as MLflow and Optuna show it: widths `[128, 64]` become `128-64`."""
    try:
        return flatten(Settings.model_validate(nest({name: value})))[name]
    except ValidationError:
        return value


def _metric_problems(shared: Mapping[str, Entry]) -> list[Problem]:
    problems = []
    goals = [name for name, metric in METRICS.items() if metric.direction and name.startswith("val/")]
    objectives, pruner = shared.get("study.objectives"), shared.get("study.pruner.metric")
    given = objectives.value if objectives else []
    names = given.split(",") if isinstance(given, str) else given if isinstance(given, list) else []
    names = [name.strip() if isinstance(name, str) else name for name in names]
    wanted = [(objectives, name) for name in names]
    if pruner and pruner.value != "front":
        wanted.append((pruner, pruner.value))
    for entry, name in wanted:
        if entry is None or not isinstance(name, str) or name in goals:
            continue  # what is no text is told as a wrong type
        diagnostic = name in METRICS and not METRICS[name].direction
        what = "is a diagnostic without a direction" if diagnostic else "is not a metric to search on"
        hint = did_you_mean(name, goals)
        problems.append(Problem(entry.where, f"{name} {what}; those are {', '.join(goals)}.{hint}"))
    if objectives and len(set(map(str, names))) < len(names):
        problems.append(Problem(objectives.where, f"study.objectives names a metric twice: {names}"))
    return problems


def _start_points(
    start: Entry | None, space: Space, skipped: set[str], given: set[str], problems: list[Problem]
) -> tuple[dict[str, Any], ...]:
    """The points to try first, without the keys that the command line fixed or that are wrong themselves, and without
    values that a distribution given on the command line shuts out."""
    if start is None or start.value in (None, []):
        return ()
    if not isinstance(start.value, list) or not all(isinstance(point, dict) for point in start.value):
        problems.append(
            Problem(start.where, "start must be a list of points, each a mapping of searched keys to values")
        )
        return ()
    points = []
    for point in start.value:
        values = {}
        for key, value in point.items():
            if key in skipped:
                continue
            if key not in space:
                hint = did_you_mean(str(key), space)
                problems.append(Problem(start.where, f"start: {key} is not searched.{hint}"))
                continue
            categorical = isinstance(space[key], CategoricalDistribution)
            if not categorical and number(value) is None and not isinstance(value, float):
                problems.append(Problem(start.where, f"start: {key} must be a number, got {value!r}"))
                continue
            plain = _plain(key, value) if categorical else number(value)
            if not _inside(space[key], plain):
                if key in given:
                    continue
                problems.append(Problem(start.where, f"start: {key}={value} lies outside of what is searched"))
            values[key] = int(plain or 0) if isinstance(space[key], IntDistribution) else plain
        points.append(values)
    return tuple(points)


def _inside(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    if value is None or not distribution.low <= value <= distribution.high:
        return False
    steps = (value - distribution.low) / distribution.step if distribution.step else 0
    return abs(steps - round(steps)) < 1e-9 or bool(getattr(distribution, "log", False) and value == int(value))


def options(distribution: BaseDistribution) -> Sequence[Any]:
    """The values of a distribution that are tried against those of others: choices, or both bounds."""
    categorical = isinstance(distribution, CategoricalDistribution)
    return distribution.choices if categorical else (distribution.low, distribution.high)


def fits(params: Mapping[str, Any], space: Space) -> bool:
    """Whether a configuration is a point of a space: it has the same parameters, each within its distribution."""
    return params.keys() == space.keys() and all(_inside(space[name], value) for name, value in params.items())


def spec_of(distribution: BaseDistribution) -> dict[str, Any]:
    """A distribution as a study's file writes it."""
    if isinstance(distribution, CategoricalDistribution):
        return {"type": "categorical", "choices": list(distribution.choices)}
    spec: dict[str, Any] = {"type": "int" if isinstance(distribution, IntDistribution) else "float"}
    spec |= {"low": distribution.low, "high": distribution.high}
    if distribution.log:
        spec["log"] = True
    elif distribution.step and distribution.step != (1 if spec["type"] == "int" else None):
        spec["step"] = distribution.step
    return spec


def _contradictions(base: Mapping[str, Entry], space: Space, places: Mapping[str, str]) -> list[Problem]:
    """Values that cannot go together, found by trying every pair of choices, the others at their first."""
    problems: dict[str, Problem] = {}
    choices = [(name, value) for name, distribution in space.items() for value in options(distribution)]
    for (first, a), (second, b) in combinations_with_replacement(choices, 2):
        tried = {**base, first: Entry(a, places[first]), second: Entry(b, places[second])}
        for problem in find_problems(tried):
            named = [name for name in space if name in problem.message]
            reason = problem.message.partition(", got")[0]
            told = f"space allows what does not go together: {problem.message}" if named else problem.message
            problems.setdefault(reason, Problem(places[named[0]] if named else problem.where, told))
    return list(problems.values())


# ------------------------------------------------------------------------------------------------ a plan in a journal


def record_plan(plan: Plan) -> PlanRecord:
    """A plan as a journal keeps it: no user or password of an address."""
    values = {key: setting(plan.settings, key) for key in dotted_fields()}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    uri = plan.settings.tracking.uri
    plain["tracking.uri"] = None if uri is None else without_userinfo(uri)
    space = {key: distribution_to_json(distribution) for key, distribution in plan.space.items()}
    return PlanRecord(settings=plain, space=space, start=plan.start)


def plan_from(record: PlanRecord) -> Plan:
    """The plan that was recorded. Raises pydantic's ValidationError for settings of another version."""
    space = {key: json_to_distribution(text) for key, text in record.space.items()}
    return Plan(Settings.model_validate(nest(record.settings)), space, record.start)
