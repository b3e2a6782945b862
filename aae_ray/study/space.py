"""A study's file: what every trial shares, and what is searched, checked against the settings before anything starts.

study: {name: digits, ...}                                          settings.study
run: {train.epochs: 27, ...}                                        what every trial shares, over the defaults
space:                                                              Optuna's terms; bounds inclusive
  model.latent_dim: {type: int, low: 2, high: 16, log: true}
  model.prior: {type: categorical, choices: [gaussian, mixture]}
start:                                                              points that are tried first
  - {model.latent_dim: 8, model.prior: gaussian}
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import ValidationError

from aae_ray.settings import (
    Entry,
    Problem,
    Settings,
    SettingsError,
    build,
    did_you_mean,
    dotted_fields,
    find_problems,
    flatten,
    nest,
    read_overrides,
    read_yaml,
    replace,
)
from aae_ray.training.metrics import METRICS

BLOCKS = ("study", "run", "space", "start")
FIELDS = {  # of a searched key: required, optional
    "float": ({"low", "high"}, {"log", "step"}),
    "int": ({"low", "high"}, {"log", "step"}),
    "categorical": ({"choices"}, set()),
}
COMBINATIONS = 512  # of choices that are checked against each other

Space = dict[str, BaseDistribution]


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
        if key.startswith("space."):
            searched[key.removeprefix("space.")] = entry
        else:
            shared[key] = entry
            searched = {name: spec for name, spec in searched.items() if name.rpartition(".")[0] != key}

    space, places = _distributions(searched, problems)
    for key in space:
        if key in shared:
            problems.append(
                Problem(shared[key].where, f"{key} is fixed here and searched at {places[key]}; keep one of them")
            )
    problems += find_problems(shared)
    problems += _metric_problems(shared)
    points = _start_points(start, space, set(changes), problems)
    if not problems:
        problems += _contradictions(build(shared), space, places)
    if problems:
        raise SettingsError(dict.fromkeys(problems))
    return Plan(build(shared), space, points)


def _sort_blocks(
    entries: Mapping[str, Entry], problems: list[Problem]
) -> tuple[dict[str, Entry], dict[str, Entry], Entry | None]:
    """The file's entries as settings, as fields of searched keys, and the list of start points."""
    shared: dict[str, Entry] = {}
    searched: dict[str, Entry] = {}
    start = None
    for key, entry in entries.items():
        block, _, rest = key.partition(".")
        if block == "start" and not rest:
            start = entry
        elif not rest and block in BLOCKS and entry.value in ({}, None):
            continue  # an empty block
        elif block == "study" and rest:
            shared[key] = entry
        elif block == "run" and rest:
            if rest.startswith("study."):
                problems.append(Problem(entry.where, f"{rest} belongs under `study:`, not under `run:`"))
            else:
                shared[rest] = entry
        elif block == "space" and rest:
            searched[rest] = entry
        elif key in dotted_fields():
            problems.append(Problem(entry.where, f"{key} stands outside a block; put it under `run:`"))
        else:
            problems.append(
                Problem(
                    entry.where,
                    f"{key} is not a block of a study's file; those are {', '.join(BLOCKS)}."
                    + did_you_mean(block, BLOCKS),
                )
            )
    return shared, searched, start


def _distributions(searched: Mapping[str, Entry], problems: list[Problem]) -> tuple[Space, dict[str, str]]:
    """Optuna's distribution for each searched key, and the place where each is written."""
    specs: dict[str, dict[str, Entry]] = {}
    for key, entry in searched.items():
        name, _, field = key.rpartition(".")
        specs.setdefault(name or key, {})[field] = entry
    space: Space = {}
    places = {}
    for name, spec in specs.items():
        where = next(iter(spec.values())).where
        found = _distribution(name, spec, where, problems)
        if found is not None:
            space[name], places[name] = found, where
    return space, places


def _distribution(name: str, spec: Mapping[str, Entry], where: str, problems: list[Problem]) -> BaseDistribution | None:
    before = len(problems)

    def complain(message: str, field: str | None = None) -> None:
        place = spec[field].where if field in spec else where  # type: ignore[index]
        problems.append(Problem(place, f"space {name}: {message}"))

    known = dotted_fields()
    if name not in known or name.startswith(("study.", "tracking.", "data.")):
        hint = did_you_mean(name, [key for key in known if not key.startswith(("study.", "tracking.", "data."))])
        problems.append(Problem(where, f"{name} is not a setting that can be searched.{hint}"))
        return None
    kind = spec["type"].value if "type" in spec else None
    if kind not in FIELDS:
        complain(f"needs a type, one of {', '.join(FIELDS)}" + (f", got {kind!r}" if kind else ""), "type")
        return None
    required, optional = FIELDS[kind]
    for field in spec.keys() - required - optional - {"type"}:
        complain(f"{field!r} is not part of type {kind}.{did_you_mean(field, required | optional)}", field)
    for field in sorted(required - spec.keys()):
        complain(f"type {kind} needs {field!r}")
    if len(problems) > before:
        return None

    values = {field: entry.value for field, entry in spec.items() if field != "type"}
    if kind == "categorical":
        return _categorical(name, spec["choices"], complain, problems)
    if kind == "float" and known[name].annotation is int:
        complain("is a whole number; use type int", "type")
    numbers = {}
    for field in ("low", "high", "step"):
        if field in values:
            try:
                numbers[field] = (int if kind == "int" else float)(str(values[field]))
            except ValueError:
                complain(
                    f"{field} must be {'a whole number' if kind == 'int' else 'a number'}, got {values[field]!r}",
                    field,
                )
    if "log" in values and not isinstance(values["log"], bool):
        complain(f"log must be true or false, got {values['log']!r}", "log")
    if len(problems) > before:
        return None
    log = values.get("log", False)
    if numbers["low"] >= numbers["high"]:
        complain(f"low must be below high, got {numbers['low']} and {numbers['high']}", "low")
    if log and numbers["low"] <= 0:
        complain(f"log needs low above 0, got {numbers['low']}", "low")
    if log and "step" in numbers:
        complain("log and step exclude each other", "step")
    if numbers.get("step", 1) <= 0:
        complain(f"step must be above 0, got {numbers['step']}", "step")
    for field in ("low", "high"):
        problems += find_problems({name: Entry(numbers[field], spec[field].where)})
    if len(problems) > before:
        return None
    if kind == "int":
        return IntDistribution(int(numbers["low"]), int(numbers["high"]), log=log, step=int(numbers.get("step", 1)))
    return FloatDistribution(numbers["low"], numbers["high"], log=log, step=numbers.get("step"))


def _categorical(name: str, entry: Entry, complain: Any, problems: list[Problem]) -> BaseDistribution | None:
    if not isinstance(entry.value, list) or not entry.value:
        complain(f"choices must be a list with at least one value, got {entry.value!r}", "choices")
        return None
    # A choice alone may contradict the defaults (task: vae): that is judged later, all choices together.
    found = [
        p
        for value in entry.value
        for p in find_problems({name: Entry(value, entry.where)})
        if p.message.startswith(name)
    ]
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
    entry = shared.get("study.objectives")
    names = entry.value if entry and isinstance(entry.value, list) else []
    wanted = [(entry, name) for name in names]
    metric = shared.get("study.pruner.metric")
    if metric and metric.value != "front":
        wanted.append((metric, metric.value))
    for place, name in wanted:
        if name not in goals and place:
            what = (
                "is a diagnostic without a direction"
                if name in METRICS and not METRICS[name].direction
                else "is not a metric to search on"
            )
            problems.append(
                Problem(
                    place.where,
                    f"{name} {what}; those are {', '.join(goals)}.{did_you_mean(str(name), goals)}",
                )
            )
    if len(set(map(str, names))) < len(names) and entry:
        problems.append(Problem(entry.where, f"study.objectives names a metric twice: {names}"))
    return problems


def _start_points(
    start: Entry | None, space: Space, fixed: set[str], problems: list[Problem]
) -> tuple[dict[str, Any], ...]:
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
            if key in fixed:
                continue  # the command line fixed it
            if key not in space:
                problems.append(Problem(start.where, f"start: {key} is not searched.{did_you_mean(str(key), space)}"))
                continue
            distribution = space[key]
            plain = _plain(key, value) if isinstance(distribution, CategoricalDistribution) else value
            if isinstance(plain, str) and not isinstance(distribution, CategoricalDistribution):
                try:
                    plain = float(plain)  # PyYAML reads 1e-4 as text
                except ValueError:
                    problems.append(Problem(start.where, f"start: {key} must be a number, got {value!r}"))
                    continue
            inside = (
                plain in distribution.choices
                if isinstance(distribution, CategoricalDistribution)
                else distribution.low <= plain <= distribution.high
            )
            if not inside:
                problems.append(Problem(start.where, f"start: {key}={value} lies outside of what is searched"))
            values[key] = plain
        points.append(values)
    return tuple(points)


def _contradictions(shared: Settings, space: Space, places: Mapping[str, str]) -> list[Problem]:
    """Choices that cannot go together, found by trying them; numbers take their lower bounds."""
    options = {name: d.choices if isinstance(d, CategoricalDistribution) else (d.low,) for name, d in space.items()}
    problems: dict[str, Problem] = {}
    for values in islice(product(*options.values()), COMBINATIONS):
        point = dict(zip(options, values, strict=True))
        try:
            replace(shared, point)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            named = [name for name in space if name in reason or name == "task"]
            where = places[named[0]] if named else "space"
            problems.setdefault(reason, Problem(where, f"space allows what does not go together: {reason}"))
    return list(problems.values())
