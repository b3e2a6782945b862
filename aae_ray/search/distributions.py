"""A searched key: how a study's file writes its distribution, and what is asked of one.

type: int, low, high, log, step · type: float, the same · type: categorical, choices. Optuna's terms; bounds inclusive.
Each may have a condition, `when`: see `conditions`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import ValidationError

from aae_ray import spellings
from aae_ray.errors import Kind, Problem, did_you_mean, unknown_key
from aae_ray.reading import Entry, key_problems, nest, shown
from aae_ray.settings import Settings, dotted_fields, flatten

FIELDS = {  # of a searched key: required, optional
    "float": ({"low", "high"}, {"log", "step"}),
    "int": ({"low", "high"}, {"log", "step"}),
    "categorical": ({"choices"}, set()),
}
WHEN = "when."  # before each key that the condition of a searched one names, as a field of it
SWITCHES = {"yes": True, "on": True, "no": False, "off": False}
FIXED = ("study.", "tracking.", "data.", "train.epochs")  # settings that no trial can have to itself


Space = dict[str, BaseDistribution]
Complain = Callable[..., None]  # of what is wrong, the field of the searched key, and the kind


def read_specs(searched: Mapping[str, Entry], problems: list[Problem]) -> dict[str, dict[str, Entry]]:
    """The fields of each searched key."""
    specs: dict[str, dict[str, Entry]] = {}
    for key, entry in searched.items():
        name, _, field = key.rpartition(".")
        conditioned, of, parent = key.partition(f".{WHEN}")
        if of:
            specs.setdefault(conditioned, {})[WHEN + parent] = entry
        elif key not in dotted_fields() and name:
            specs.setdefault(name, {})[field] = entry
        elif isinstance(entry.value, dict) and entry.value:
            fields = {str(field): value for field, value in entry.value.items()}
            when = fields.pop("when", None)
            if isinstance(when, dict):
                fields |= {WHEN + parent: choices for parent, choices in _dotted(when).items()}
            elif when is not None:
                fields["when"] = when
            specs[key] = {field: Entry(value, entry.where) for field, value in fields.items()}
        else:
            meant = spellings.distribution(entry.value, _is_whole(key))
            example = spellings.flow(meant) if meant else "{type: int, low: 2, high: 8}"
            text = f"space {key}: must say what is searched, such as {example}, got {shown(entry.value)}"
            problems.append(Problem((key,), Kind.VALUE, entry.where, text))
    return specs


def _dotted(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of mappings as dotted keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def read_distribution(name: str, spec: Mapping[str, Entry], problems: list[Problem]) -> BaseDistribution | None:
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
        got = f", got {shown(kind)}" if kind else ""
        complain(f"needs a type, one of {', '.join(FIELDS)}{got}{_translated(name, spec)}", "type")
        return None
    required, optional = FIELDS[kind]
    if "when" in spec:
        complain("when must name other searched keys and their choices, such as {model.prior: [mixture]}", "when")
    fields = {field for field in spec if field != "when" and not field.startswith(WHEN)}
    strange = sorted(fields - required - optional - {"type"})
    translated = _translated(name, spec) if strange else ""
    for field in strange:
        hint = translated or f".{did_you_mean(field, required | optional)}"
        complain(f"{field!r} is not part of type {kind}{hint}", field)
    for field in sorted(required - spec.keys() if not translated else ()):
        complain(f"type {kind} needs {field!r}")
    if len(problems) > before:
        return None
    found = (
        _categorical(name, spec["choices"], complain, problems)
        if kind == "categorical"
        else _range(name, kind, spec, complain, problems)
    )
    return found if len(problems) == before else None


def _translated(name: str, spec: Mapping[str, Entry]) -> str:
    """How a distribution in the words of another tool is written; nothing where that is not clear."""
    given = {field: entry.value for field, entry in spec.items() if field != "when" and not field.startswith(WHEN)}
    meant = spellings.distribution(given, _is_whole(name))
    return f"; write {spellings.flow(meant)}" if meant else ""


def _is_whole(name: str) -> bool:
    """Whether a setting takes whole numbers alone."""
    return name in dotted_fields() and dotted_fields()[name].annotation in (int, int | None)


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
    log = SWITCHES.get(log, log) if isinstance(log, str) else log
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
    if len(problems) == before and step is not None:
        last = _last(low, high, step)
        if last != high:
            complain(
                f"step {step:g} does not divide the range from {low:g} to {high:g}, so that its last value would be "
                f"{last:g}; give high: {last:g}, or another step",
                "step",
            )
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


def _last(low: float, high: float, step: float) -> float:
    """The largest value of a range with a step, computed in decimals: 0.3 is three steps of 0.1."""
    start, end, by = (Decimal(str(value)) for value in (low, high, step))
    return float(end - (end - start) % by)


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
    choices = [plain_value(name, value) for value in entry.value]
    if len(set(choices)) < len(choices):
        complain(f"choices has a value twice: {entry.value}", "choices", Kind.DUPLICATE)
        return None
    return CategoricalDistribution(choices)


def plain_value(name: str, value: Any) -> Any:
    """A value as MLflow and Optuna show it: widths `[128, 64]` become `128-64`."""
    try:
        return flatten(Settings.model_validate(nest({name: value})))[name]
    except ValidationError:
        return value


def inside(distribution: BaseDistribution, value: Any) -> bool:
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


def at_quantile(distribution: BaseDistribution, u: float) -> Any:
    """The value below which a share u in [0, 1) of a distribution lies; of choices, the one in whose share u is."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[min(int(u * len(distribution.choices)), len(distribution.choices) - 1)]
    low, high, step = distribution.low, distribution.high, distribution.step
    if distribution.log:
        half = (
            0.5 if isinstance(distribution, IntDistribution) else 0.0
        )  # a whole number stands for all that round to it
        value = math.exp((1 - u) * math.log(low - half) + u * math.log(high + half))
        return min(max(round(value) if half else value, low), high)
    number = count(distribution)
    return low + u * (high - low) if number is None else min(low + (step or 0) * int(u * number), high)


def count(distribution: BaseDistribution) -> int | None:
    """How many values a distribution has; None for a continuous one."""
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    if distribution.single():
        return 1
    if not distribution.step:
        return None
    return 1 + int((distribution.high - distribution.low) / distribution.step + 1e-9)


def values(distribution: BaseDistribution) -> Sequence[Any]:
    """Every value of a distribution that is not continuous, in order."""
    if isinstance(distribution, CategoricalDistribution):
        return tuple(distribution.choices)
    low, high = distribution.low, distribution.high
    return [min(low + index * (distribution.step or 0), high) for index in range(count(distribution) or 0)]


def spec_of(distribution: BaseDistribution) -> dict[str, Any]:
    """A distribution as a study's file writes it, but for its condition."""
    if isinstance(distribution, CategoricalDistribution):
        return {"type": "categorical", "choices": list(distribution.choices)}
    spec: dict[str, Any] = {"type": "int" if isinstance(distribution, IntDistribution) else "float"}
    spec |= {"low": distribution.low, "high": distribution.high}
    if distribution.log:
        spec["log"] = True
    elif distribution.step and distribution.step != (1 if spec["type"] == "int" else None):
        spec["step"] = distribution.step
    return spec
