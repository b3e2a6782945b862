"""A study's file: what every trial shares, and what is searched, checked against the settings before anything starts.

study: {name: digits, ...}                                          settings.study
run: {train.epochs: 27, ...}                                        what every trial shares, over the defaults
space:                                                              Optuna's terms; bounds inclusive
  model.latent_dim: {type: int, low: 2, high: 16, log: true}
  model.prior: {type: categorical, choices: [gaussian, mixture]}
start:                                                              points that are tried first
  - {model.latent_dim: 8, model.prior: gaussian}
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
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

from aae_ray.errors import Kind, Problem, SettingsError, UserError, did_you_mean, unknown_key
from aae_ray.evaluation.metrics import METRICS
from aae_ray.reading import Entry, build, key_problems, nest, read_overrides, read_yaml, rule_problems, unclear
from aae_ray.search.choice import RULES as RULES_OF_CHOICE
from aae_ray.search.events import PlanRecord
from aae_ray.secrets import without_userinfo
from aae_ray.settings import RULES, Settings, dotted_fields, flatten, setting

_INSTALLED = Path(__file__).parents[1] / "search_spaces"
SHIPPED = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[2] / "search_spaces"  # in a checkout
BLOCKS = ("study", "run", "space", "start")
FIELDS = {  # of a searched key: required, optional
    "float": ({"low", "high"}, {"log", "step"}),
    "int": ({"low", "high"}, {"log", "step"}),
    "categorical": ({"choices"}, set()),
}
FIXED = ("study.", "tracking.", "data.", "train.epochs")  # settings that no trial can have to itself

Space = dict[str, BaseDistribution]
Complain = Callable[..., None]  # of what is wrong, the field of the searched key, and the kind


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
    entries = read_yaml(study_file(path)) if path else {}
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
    found = {name: _distribution(name, spec, problems) for name, spec in specs.items()}
    places = {name: next(iter(spec.values())).where for name, spec in specs.items()}
    space = {name: distribution for name, distribution in found.items() if distribution is not None}
    whole = not problems  # all that is searched is known
    for name in specs.keys() & shared.keys():
        text = f"{name} is fixed here and searched at {places[name]}; keep one of them"
        problems.append(Problem((name,), Kind.DUPLICATE, shared[name].where, text))
    given = {name for name in space if any(key.startswith(f"space.{name}") for key in changes)}
    points, start_problems = _start_points(start, space, set(specs) - set(space) | set(changes), given)
    problems += _metric_problems(shared)
    problems += key_problems(shared)
    base = shared | {name: Entry(options(distribution)[0], places[name]) for name, distribution in space.items()}
    contradictions = _contradictions(base, space, places, problems)
    if whole:
        contradictions += _too_few_points(base, space, places, problems)
    if problems := [*problems, *start_problems, *contradictions]:
        raise SettingsError(dict.fromkeys(problems))
    return Plan(build(base), space, points)


def study_file(path: str) -> str:
    """The file itself; where there is none, `NAME` and `search_spaces/NAME.yaml` mean the one that ships.

    Raises UserError for a name that no study has.
    """
    shipped = SHIPPED / f"{Path(path).stem}.yaml"
    bare = Path(path) == Path(shipped.stem)
    if Path(path).is_file() or not (bare or Path(path) == Path("search_spaces", shipped.name)):
        return path
    if bare and not shipped.exists():
        names = sorted(file.stem for file in SHIPPED.glob("*.yaml"))
        hint = did_you_mean(path, names) or f" Those that ship: {', '.join(names)}."
        raise UserError(f"{path} is neither a file nor a study that ships.{hint}")
    return str(shipped) if shipped.exists() else path


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
                text = f"{block} must be a mapping of keys to values, got {entry.value!r}"
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
            hint = did_you_mean(block, BLOCKS)
            text = f"{key} is not a block of a study's file; the blocks are {', '.join(BLOCKS)}.{hint}"
            problems.append(Problem((key,), Kind.UNKNOWN_KEY, entry.where, text))
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
            text = f"space {key}: must say what is searched, such as {example}, got {entry.value!r}"
            problems.append(Problem((key,), Kind.VALUE, entry.where, text))
    return specs


def _distribution(name: str, spec: Mapping[str, Entry], problems: list[Problem]) -> BaseDistribution | None:
    """Optuna's distribution of a searched key, or None after reporting what is wrong with it."""
    before, where = len(problems), next(iter(spec.values())).where

    def complain(message: str, field: str = "", kind: Kind = Kind.VALUE) -> None:
        place = spec[field].where if field in spec else where
        problems.append(Problem((name,), kind, place, f"space {name}: {message}"))

    searchable = [key for key in dotted_fields() if not key.startswith(FIXED)]
    if name not in searchable:
        problem = unknown_key(name, searchable, where, "is not a setting that can be searched")
        exists = name in dotted_fields()
        problems.append(replace(problem, keys=(name,), kind=Kind.MISPLACED) if exists else problem)
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
        complain("log and step cannot be used together", "step")
    if step is not None and step <= 0:
        complain(f"step must be above 0, got {spec['step'].value}", "step")
    if dotted_fields()[name].annotation is bool:
        complain("is true or false; use type categorical with choices: [true, false]", "type")
    for field in ("low", "high"):
        bound = int(numbers[field]) if kind == "int" else numbers[field]
        problems += key_problems({name: Entry(bound, spec[field].where)})
    if len(problems) == before and kind == "float" and key_problems({name: Entry(low + 0.382 * (high - low), "")}):
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
    found = [problem for value in entry.value for problem in key_problems({name: Entry(value, entry.where)})]
    problems += found
    if found:
        return None
    choices = [_plain(name, value) for value in entry.value]
    if len(set(choices)) < len(choices):
        complain(f"choices has a value twice: {entry.value}", "choices", Kind.DUPLICATE)
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
        text = f"{name} {what}; those are {', '.join(goals)}.{did_you_mean(name, goals)}"
        problems.append(Problem((key,), Kind.VALUE, entry.where, text))
    if objectives and len(set(map(str, names))) < len(names):
        text = f"study.objectives names a metric twice: {names}"
        problems.append(Problem(("study.objectives",), Kind.DUPLICATE, objectives.where, text))
    return problems


def _start_points(
    start: Entry | None, space: Space, skipped: set[str], given: set[str]
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
    for count, point in enumerate(start.value, start=1):
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
            plain: Any = _plain(key, value) if categorical else number(value)
            written[key] = plain
            if not _inside(space[key], plain):
                if key in given:
                    continue
                text = f"start: {key}={value} is outside what is searched"
                problems.append(Problem((key,), Kind.VALUE, start.where, text))
                continue
            values[key] = int(plain) if isinstance(space[key], IntDistribution) else plain
        if written in whole:
            text = f"start: point {count} is the same as point {whole.index(written) + 1}; remove one of them"
            problems.append(Problem(tuple(map(str, point)), Kind.DUPLICATE, start.where, text))
        elif values not in points:
            points.append(values)
        whole.append(written)
    return tuple(points), problems


def _inside(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    if value is None or not distribution.low <= value <= distribution.high:
        return False
    steps = (value - distribution.low) / distribution.step if distribution.step else 0
    return bool(abs(steps - round(steps)) < 1e-9)


def options(distribution: BaseDistribution) -> Sequence[Any]:
    """The values of a distribution that are tried against those of others: choices, or both bounds."""
    categorical = isinstance(distribution, CategoricalDistribution)
    return distribution.choices if categorical else (distribution.low, distribution.high)


def fits(params: Mapping[str, Any], space: Space) -> bool:
    """Whether a configuration is a point of a space: it has the same parameters, each within its distribution."""
    return params.keys() == space.keys() and all(_inside(space[name], value) for name, value in params.items())


def space_size(space: Space) -> int | None:
    """How many different points there are; None if any dimension is continuous. A space without keys has one point."""
    size = 1
    for distribution in space.values():
        if isinstance(distribution, CategoricalDistribution):
            size *= len(distribution.choices)
        elif not distribution.single():
            if not distribution.step:
                return None
            size *= math.floor((distribution.high - distribution.low) / distribution.step + 1e-9) + 1
    return size


def points(space: Space) -> Iterator[dict[str, Any]]:
    """Every point of a space, one after the other; none where any dimension is continuous."""
    if space_size(space) is None:
        return
    axes: list[Sequence[Any]] = []
    for distribution in space.values():
        if isinstance(distribution, CategoricalDistribution):
            axes.append(distribution.choices)
        elif distribution.single():
            axes.append((distribution.low,))
        else:
            count = math.floor((distribution.high - distribution.low) / distribution.step + 1e-9) + 1
            axes.append(
                [min(distribution.low + index * distribution.step, distribution.high) for index in range(count)]
            )
    for values in itertools.product(*axes):
        yield dict(zip(space, values, strict=True))


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


def _contradictions(
    base: Mapping[str, Entry], space: Space, places: Mapping[str, str], problems: Sequence[Problem]
) -> list[Problem]:
    """Values that cannot go together, found by trying, for each rule, what is searched of its keys."""
    found: dict[tuple[str, ...], Problem] = {}
    for rule in RULES:
        searched = [name for name in space if name in rule.keys]
        for values in itertools.product(*(options(space[name]) for name in searched)):
            tried = {**base, **{name: Entry(value, places[name]) for name, value in zip(searched, values, strict=True)}}
            for problem in rule_problems(tried, problems):
                if problem.keys == rule.keys and searched:
                    text = f"the space allows values that do not go together: {problem.text}"
                    problem = replace(problem, where=places[searched[0]], text=text)
                if problem.keys == rule.keys:
                    found.setdefault(rule.keys, problem)
    return list(found.values())


def _too_few_points(
    base: Mapping[str, Entry], space: Space, places: Mapping[str, str], problems: Sequence[Problem]
) -> list[Problem]:
    """The problem of a space with fewer points than there are trials, where both are right by themselves."""
    key = "study.budget.trials"
    keys, size = (key, *space), space_size(space)
    if not space or size is None or unclear(keys, base, problems):
        return []
    trials = build({key: base[key]} if key in base else {}).study.budget.trials
    if size >= trials:
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
    return PlanRecord(settings=plain, space=space, start=plan.start)


def plan_from(record: PlanRecord) -> Plan:
    """The plan that was recorded. Raises UserError for settings of another version."""
    space = {key: json_to_distribution(text) for key, text in record.space.items()}
    try:
        settings = Settings.model_validate(nest(record.settings))
    except ValidationError as error:
        keys = ", ".join(".".join(map(str, detail["loc"])) or detail["msg"] for detail in error.errors())
        raise UserError(f"it is a study of another version of aae_ray, whose settings differ: {keys}") from None
    return Plan(settings, space, record.start)
