"""Settings from YAML files and command lines: every mistake at once, each with its place.

Unknown keys, wrong types and values out of range are reported with file, line and the name that was probably meant.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from aae_ray.errors import Kind, Problem, SettingsError, unknown_key
from aae_ray.settings import BrokenRules, Settings, dotted_fields


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as a tree of dictionaries."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *path, leaf = key.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                text = f"{key}: {part} is given as a single value and has no parts"
                raise SettingsError([Problem((key,), Kind.SECTION, "settings", text)])
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
    """YAML without dates and without numbers to the base of 60: 1000-64-32 are widths, and -1:1 is a range."""


Loader.yaml_implicit_resolvers = {
    first: [
        (tag, re.compile(f"(?![^:]*:){form.pattern}", form.flags) if tag.endswith((":int", ":float")) else form)
        for tag, form in forms
        if tag != "tag:yaml.org,2002:timestamp"
    ]
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
        raise SettingsError([Problem((), Kind.SYNTAX, str(path), f"cannot be read: {reason}")]) from None
    try:
        root = yaml.compose(text, Loader=Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        text = f"is not YAML: {getattr(error, 'problem', None) or error}"
        raise SettingsError([Problem((), Kind.SYNTAX, where, text)]) from None
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise SettingsError([Problem((), Kind.SYNTAX, str(path), "must be a mapping of keys to values")])

    entries: dict[str, Entry] = {}
    problems: list[Problem] = []
    loader = Loader("")

    def descend(node: yaml.MappingNode, prefix: str) -> None:
        if len(prefix.split(".")) > DEEPEST:  # an alias that holds itself has no end
            endless = f"{prefix[:40]}...: mappings are nested without end"
            raise SettingsError([Problem((prefix[:-1],), Kind.SYNTAX, str(path), endless)])
        for key_node, value_node in node.value:
            key, where = f"{prefix}{key_node.value}", f"{path}:{key_node.start_mark.line + 1}"
            if isinstance(value_node, yaml.MappingNode) and value_node.value:
                descend(value_node, f"{key}.")
            elif key in entries:
                twice = f"{key} is given twice, first at {entries[key].where}"
                problems.append(Problem((key,), Kind.DUPLICATE, where, twice))
            else:
                try:
                    entries[key] = Entry(loader.construct_object(value_node, deep=True), where)
                except yaml.YAMLError as error:
                    text = f"{key}: {getattr(error, 'problem', None) or error}"
                    problems.append(Problem((key,), Kind.SYNTAX, where, text))

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
            form = f"{argument!r} is not of the form key=value, such as train.epochs=9"
            problems.append(Problem((), Kind.SYNTAX, "command line", form))
            continue
        try:
            value = text if text.startswith("#") else yaml.load(text, Loader=Loader)  # no comment, but a colour
        except yaml.YAMLError:
            value = text
        entries[key] = Entry(value, "command line")
    if problems:
        raise SettingsError(problems)
    return entries


def read_changes(values: Mapping[str, Any]) -> dict[str, Entry]:
    """Changes by dotted keys, as a program gives them; a tuple is a list."""
    return {
        str(key): Entry(list(value) if isinstance(value, tuple) else value, "changes") for key, value in values.items()
    }


def find_problems(entries: Mapping[str, Entry]) -> list[Problem]:
    """Every mistake in these values, in the order in which they were written; empty when they make good settings."""
    problems = key_problems(entries)
    problems += rule_problems(entries, problems)
    order = {entry.where: index for index, entry in enumerate(entries.values())}
    return sorted(problems, key=lambda problem: order.get(problem.where, len(order)))


def key_problems(entries: Mapping[str, Entry]) -> list[Problem]:
    """What is wrong with each key by itself: keys that do not exist, and values of a wrong type or out of range."""
    known, problems = dotted_fields(), []
    good: dict[str, Entry] = {}
    for key, entry in entries.items():
        name = _setting_of(key, known)
        inside = [field for field in known if field.startswith(f"{key}.")]
        if name is None and inside:
            some = ", ".join(inside[:4]) + (", ..." if len(inside) > 4 else "")
            text = f"{key} is a section that holds {some}; it cannot have a value of its own, got {entry.value!r}"
            problems.append(Problem((key,), Kind.SECTION, entry.where, text))
        elif name is None:
            problems.append(unknown_key(key, known, entry.where, "is not a setting"))
        elif key != name and name in good and not isinstance(good[name].value, Mapping):
            continue  # the whole is refused, below: nothing can be a part of it
        else:
            good[key] = entry
    for detail in _refusals(good):
        parts = [str(part) for part in detail["loc"]]
        places = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        field = next((place for place in places if place in known), None)
        if field is None:  # of rules, judged where each of their keys is right
            continue
        entry = good.get(field) or next(entry for key, entry in good.items() if key.startswith(f"{field}."))
        text = f"{field}: {_expectation(known[field], detail)}, got {entry.value!r}"
        problems.append(Problem((field,), Kind.VALUE, entry.where, text))
    return list(dict.fromkeys(problems))


def rule_problems(entries: Mapping[str, Entry], problems: Sequence[Problem]) -> list[Problem]:
    """The rules that these values break, each with the place where one of its keys was written; but not those of which
    it is unclear, because of the problems that the keys have by themselves, which values were meant."""
    known = dotted_fields()
    right = {
        key: entry
        for key, entry in entries.items()
        if _setting_of(key, known) and not any(problem.concerns(key) for problem in problems)
    }
    broken = [
        problem
        for detail in _refusals(right)
        if isinstance(reason := detail.get("ctx", {}).get("error"), BrokenRules)
        for problem in reason.problems
        if not unclear(problem.keys, entries, problems)
    ]
    return [replace(problem, where=_written(problem, right)) for problem in broken]


def unclear(keys: Iterable[str], entries: Mapping[str, Entry], problems: Sequence[Problem]) -> bool:
    """Whether nobody knows which values of these keys were meant: one of them has a problem, or was not given while
    there is a misspelt key that may be meant for any."""
    known = dotted_fields()
    misspelt = any(
        problem.kind is Kind.UNKNOWN_KEY and not any(key in known for key in problem.keys) for problem in problems
    )
    return any((misspelt and key not in entries) or any(problem.concerns(key) for problem in problems) for key in keys)


def _written(problem: Problem, entries: Mapping[str, Entry]) -> str:
    return next((entry.where for key, entry in entries.items() if problem.concerns(key)), problem.where)


def _setting_of(key: str, known: Mapping[str, FieldInfo]) -> str | None:
    """The setting that a key is, or is a part of, such as a resource of a worker; None if there is none."""
    if key in known:
        return key
    return next((name for name, field in known.items() if field_takes_keys(field) and key.startswith(f"{name}.")), None)


def _refusals(entries: Mapping[str, Entry]) -> list[Any]:
    """What pydantic refuses of these values, as its details."""
    try:
        Settings.model_validate(nest({key: entry.value for key, entry in entries.items()}))
    except ValidationError as error:
        details = error.errors()
        # Of a list whose items are wrong nothing is left: that it is then too short says nothing more.
        return [
            detail
            for detail in details
            if detail["type"] != "too_short"
            or not any(other["loc"][: len(detail["loc"])] == detail["loc"] != other["loc"] for other in details)
        ]
    return []


def field_takes_keys(field: FieldInfo) -> bool:
    """Whether a field is itself a mapping, whose keys are the user's (resources of a worker)."""
    return get_origin(field.annotation) is dict


EXPECTED = {  # by pydantic's types of errors
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "finite_number": "a finite number",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "string_pattern_mismatch": "letters, digits, dots, dashes and underscores",
    "tuple_type": "a list",
    "too_short": "{min_length} or more",
    "too_long": "at most {max_length}",
    "dict_type": "a mapping of names to values",
    "literal_error": "one of {choices}",
}


def _expectation(field: FieldInfo, detail: Any) -> str:
    """What would be right in place of a value that pydantic refuses."""
    context = {key: f"{value:g}" if isinstance(value, float) else value for key, value in detail.get("ctx", {}).items()}
    if detail["type"] in EXPECTED:
        choices = ", ".join(map(str, get_args(field.annotation)))
        return f"expected {EXPECTED[detail['type']].format(**context, choices=choices)}"
    return str(context.get("error", detail["msg"]))  # sentences of our own


def build(entries: Mapping[str, Entry]) -> Settings:
    """Settings from values and the places they come from; raises SettingsError with every mistake."""
    problems = find_problems(entries)
    if problems:
        raise SettingsError(problems)
    return Settings.model_validate(nest({key: entry.value for key, entry in entries.items()}))
