"""Settings from YAML files and command lines: every mistake at once, each with its place.

Unknown keys, wrong types and values out of range are told with file, line and the name that was probably meant.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from aae_ray.errors import Problem, SettingsError, did_you_mean
from aae_ray.settings import Settings, dotted_fields


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as a tree of dictionaries."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *path, leaf = key.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise SettingsError([Problem(key, f"{part} is a value and has no parts")])
        if isinstance(value, Mapping) and isinstance(node.get(leaf), dict):
            node[leaf] |= value
        else:
            node[leaf] = value
    return tree


DEEPEST = 20  # parts of a key


@dataclass(frozen=True)
class Entry:
    """A value and the place where the user wrote it."""

    value: Any
    where: str


class Loader(yaml.SafeLoader):
    """YAML without dates: 1000-64-32 are widths."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in forms if tag != "tag:yaml.org,2002:timestamp"]
    for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: str | Path) -> dict[str, Entry]:
    """A YAML file as dotted keys, each with its file and line; nested and dotted spellings mean the same.

    Raises SettingsError when the file is missing, is not YAML, is not a mapping, or has a key twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SettingsError([Problem(str(path), f"cannot be read: {reason}")]) from None
    try:
        root = yaml.compose(text, Loader=Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise SettingsError([Problem(where, f"is not YAML: {getattr(error, 'problem', None) or error}")]) from None
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise SettingsError([Problem(str(path), "must be a mapping of keys to values")])

    entries: dict[str, Entry] = {}
    problems: list[Problem] = []
    loader = Loader("")

    def descend(node: yaml.MappingNode, prefix: str) -> None:
        if len(prefix.split(".")) > DEEPEST:  # an alias that holds itself has no end
            raise SettingsError([Problem(str(path), f"{prefix[:40]}...: mappings are nested without end")])
        for key_node, value_node in node.value:
            key, where = f"{prefix}{key_node.value}", f"{path}:{key_node.start_mark.line + 1}"
            if isinstance(value_node, yaml.MappingNode) and value_node.value:
                descend(value_node, f"{key}.")
            elif key in entries:
                problems.append(Problem(where, f"{key} is written twice, first at {entries[key].where}"))
            else:
                try:
                    entries[key] = Entry(loader.construct_object(value_node, deep=True), where)
                except yaml.YAMLError as error:
                    problems.append(Problem(where, f"{key}: {getattr(error, 'problem', None) or error}"))

    descend(root, "")
    if problems:
        raise SettingsError(problems)
    return entries


def read_overrides(arguments: Iterable[str]) -> dict[str, Entry]:
    """`key=value` arguments of the command line; values are read as YAML."""
    entries: dict[str, Entry] = {}
    problems = []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key:
            problems.append(
                Problem("command line", f"{argument!r} is not of the form key=value, such as train.epochs=9")
            )
            continue
        try:
            value = yaml.load(text, Loader=Loader)
        except yaml.YAMLError:
            value = text
        entries[key] = Entry(value, "command line")
    if problems:
        raise SettingsError(problems)
    return entries


def find_problems(entries: Mapping[str, Entry]) -> list[Problem]:
    """Every mistake in these values, in the order in which they were written; empty when they make good settings."""
    known = dotted_fields()
    problems = []
    for key, entry in entries.items():
        if key in known or any(field_takes_keys(known[name]) and key.startswith(f"{name}.") for name in known):
            continue
        inside = [name for name in known if name.startswith(f"{key}.")]
        if inside:
            problems.append(
                Problem(
                    entry.where,
                    f"{key} is a section, got {entry.value!r}; it holds {', '.join(inside[:4])}"
                    + (", ..." if len(inside) > 4 else ""),
                )
            )
        else:
            problems.append(Problem(entry.where, f"{key} is not a setting.{did_you_mean(key, known)}"))
    good = {
        key: entry for key, entry in entries.items() if not any(p.message.startswith(f"{key} is") for p in problems)
    }
    # A rule about several keys is judged where each of them is right by itself. So what is wrong is left out, again and
    # again, and what is then said of it, by its default, does not count.
    wrong: set[str] = set()
    while True:
        found = _validated({key: entry for key, entry in good.items() if key not in wrong})
        found = [problem for problem in found if not any(names(problem, key) for key in wrong)]
        problems += found
        more = {key for key in good.keys() - wrong if any(names(problem, key) for problem in found)}
        if not more:
            break
        wrong |= more
    order = {entry.where: index for index, entry in enumerate(entries.values())}
    return sorted(problems, key=lambda problem: order.get(problem.where, len(order)))


def names(problem: Problem, key: str) -> bool:
    """Whether a problem speaks of a key, or of the setting that the key is a part of."""
    mappings = (name for name, field in dotted_fields().items() if field_takes_keys(field))
    setting = next((name for name in mappings if key.startswith(f"{name}.")), key)
    return re.search(rf"(?<![\w.]){re.escape(setting)}(?![\w.]*\w)", problem.message) is not None


def _validated(entries: Mapping[str, Entry]) -> list[Problem]:
    try:
        Settings.model_validate(nest({key: entry.value for key, entry in entries.items()}))
    except ValidationError as error:
        details = error.errors()
        # Of a list whose items are wrong nothing is left: that it is then too short says nothing more.
        told = [
            detail
            for detail in details
            if detail["type"] != "too_short"
            or not any(other["loc"][: len(detail["loc"])] == detail["loc"] != other["loc"] for other in details)
        ]
        return [problem for detail in told for problem in _from_pydantic(detail, entries)]
    return []


def field_takes_keys(field: FieldInfo) -> bool:
    """Whether a field is itself a mapping, whose keys are the user's (resources of a worker)."""
    return get_origin(field.annotation) is dict


def _from_pydantic(detail: Any, entries: Mapping[str, Entry]) -> list[Problem]:
    parts = [str(part) for part in detail["loc"]]
    known = dotted_fields()
    key = next(
        (".".join(parts[:n]) for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in known),
        ".".join(parts),
    )
    entry = entries.get(key) or next((entries[name] for name in entries if name.startswith(f"{key}.")), None)
    reason = re.sub(r"^(Value error|Input), ?", "", detail["msg"])
    if entry is None or key not in known:  # rules about several keys, a line each, name them themselves
        problems = []
        for rule in reason.splitlines():
            touched = next((entry for name, entry in entries.items() if name in rule), None)
            problems.append(Problem(touched.where if touched else "settings", rule))
        return problems
    return [Problem(entry.where, f"{key}: {_expectation(known[key], reason)}, got {entry.value!r}")]


def _expectation(field: FieldInfo, reason: str) -> str:
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    if choices:
        return f"expected one of {', '.join(map(str, choices))}"
    reason = re.sub(r"^Input should be ", "expected ", reason)
    reason = re.sub(r"^String should match pattern .*", "expected letters, digits, dots, dashes and underlines", reason)
    reason = re.sub(r", unable to parse string as an? \w+|, got a number with a fractional part", "", reason)
    return reason.replace("a valid integer", "a whole number").replace("a valid number", "a number")


def build(entries: Mapping[str, Entry]) -> Settings:
    """Settings from values and the places they come from; raises SettingsError with every mistake."""
    problems = find_problems(entries)
    if problems:
        raise SettingsError(problems)
    return Settings.model_validate(nest({key: entry.value for key, entry in entries.items()}))
