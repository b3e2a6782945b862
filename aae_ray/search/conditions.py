"""Conditions: a searched key that only some trials have, those in which other keys have certain choices.

space:
  model.prior: {type: categorical, choices: [gaussian, mixture]}
  model.prior_components: {type: int, low: 2, high: 20, when: {model.prior: [mixture]}}

Where a key is not active it is not among a trial's parameters, and the value of `run:`, or the default, applies.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from optuna.distributions import CategoricalDistribution

from aae_ray.errors import Kind, Problem, did_you_mean
from aae_ray.reading import Entry
from aae_ray.search.distributions import WHEN, Space, plain_value

Conditions = Mapping[
    str, Mapping[str, tuple[Any, ...]]
]  # key -> each of its parents -> choices with which it is active


def is_active(key: str, params: Mapping[str, Any], conditions: Conditions) -> bool:
    """Whether a trial whose other parameters are these has the key as well."""
    when = conditions.get(key, {})
    return all(parent in params and params[parent] in choices for parent, choices in when.items())


def parents_first(keys: Iterable[str], conditions: Conditions) -> list[str]:
    """The keys and all that their conditions name, each one after its parents; else in the order given."""
    order: dict[str, None] = {}

    def visit(key: str) -> None:
        if key not in order:
            for parent in conditions.get(key, ()):
                visit(parent)
            order[key] = None

    for key in keys:
        visit(key)
    return list(order)


def with_parents(values: Mapping[str, Any], conditions: Conditions) -> dict[str, Any] | None:
    """The values, and of each key that their conditions name a choice with which they are active; None if they cannot
    be so together."""
    allowed: dict[str, list[Any]] = {}
    for key in parents_first(values, conditions):
        for parent, choices in conditions.get(key, {}).items():
            allowed[parent] = [choice for choice in allowed.get(parent, choices) if choice in choices]
    if any(not choices or (key in values and values[key] not in choices) for key, choices in allowed.items()):
        return None
    return {key: choices[0] for key, choices in allowed.items()} | dict(values)


def read_conditions(
    specs: Mapping[str, Mapping[str, Entry]],
    space: Space,
    fixed: Mapping[str, Entry],
    given: Collection[str],
    problems: list[Problem],
) -> tuple[Conditions, set[str], set[str]]:
    """The conditions of a study's file; the keys that no trial has after what the command line `fixed` to a value, or
    has `given` as a distribution of its own; and those of which nobody knows which trials have them. Adds to the
    problems what is wrong: parents that are not searched, or not categorical, values that are not among their choices,
    circles."""
    conditions: dict[str, dict[str, tuple[Any, ...]]] = {}
    never: set[str] = set()
    unknown: set[str] = set()
    for name, spec in specs.items():
        for field, entry in spec.items():
            if not field.startswith(WHEN):
                continue
            parent = field.removeprefix(WHEN)
            text = _mistake(parent, entry, specs, space, fixed, given)
            if text:
                problems.append(Problem((name,), Kind.VALUE, entry.where, f"space {name}: {text}"))
                unknown.add(name)
                continue
            choices = [plain_value(parent, value) for value in entry.value]
            if parent in fixed:
                if plain_value(parent, fixed[parent].value) not in choices:
                    never.add(name)
            elif parent in space:
                choices = [choice for choice in choices if choice in space[parent].choices]
                conditions.setdefault(name, {})[parent] = tuple(choices)
                never |= set() if choices else {name}
    circles = _circles(conditions, specs)
    problems += circles
    unknown.update(*(circle.keys for circle in circles))
    right = {name: when for name, when in conditions.items() if name not in unknown}
    for name in parents_first(right, right):
        when = right.get(name, {})
        if never & when.keys():
            never.add(name)
        elif unknown & when.keys():
            unknown.add(name)
    return {name: when for name, when in right.items() if name not in never | unknown}, never, unknown - never


def _mistake(
    parent: str,
    entry: Entry,
    specs: Mapping[str, Mapping[str, Entry]],
    space: Space,
    fixed: Mapping[str, Entry],
    given: Collection[str],
) -> str | None:
    """What is wrong with a condition by itself."""
    if not isinstance(entry.value, list) or not entry.value:
        return f"when {parent}: must be a list of its choices, got {entry.value!r}"
    if parent in fixed or (parent in specs and parent not in space):  # of the second, its own mistake is told
        return None
    if parent not in space:
        return f"when {parent}: it is not searched.{did_you_mean(parent, space)}"
    distribution = space[parent]
    if not isinstance(distribution, CategoricalDistribution):
        return f"when {parent}: it is not categorical, and has no choices"
    wrong = [value for value in entry.value if plain_value(parent, value) not in distribution.choices]
    if not wrong or parent in given:
        return None
    return f"when {parent}: {wrong[0]} is not among its choices, {', '.join(map(str, distribution.choices))}"


def _circles(conditions: Conditions, specs: Mapping[str, Mapping[str, Entry]]) -> list[Problem]:
    """Conditions that lead back to the key that they are of, a problem for each circle."""
    problems: list[Problem] = []
    done: set[str] = set()

    def visit(key: str, trail: tuple[str, ...]) -> None:
        if key in trail:
            circle = trail[trail.index(key) :]
            where = specs[key][f"{WHEN}{circle[1] if len(circle) > 1 else key}"].where
            text = f"space {key}: its conditions run in a circle, {' -> '.join([*circle, key])}"
            problems.append(Problem(circle, Kind.VALUE, where, text))
        elif key not in done:
            for parent in conditions.get(key, ()):
                visit(parent, (*trail, key))
            done.add(key)

    for key in conditions:
        visit(key, ())
    return problems
