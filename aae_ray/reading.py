"""Settings from YAML files and command lines: every mistake at once, each with its place.

Unknown keys, wrong types and values out of range are reported with file, line and the name that was probably meant.
"""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from aae_ray import spellings
from aae_ray.errors import Kind, Problem, SettingsError, unknown_key
from aae_ray.secrets import redact
from aae_ray.settings import Settings, dotted_fields
from aae_ray.settings.rules import BrokenRules
from aae_ray.yaml_text import Entry as Entry
from aae_ray.yaml_text import Refused, cut, read_entries, read_value

COMMAND_LINE = "command line"


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


def read_yaml(path: str | Path) -> dict[str, Entry]:
    """A YAML file as dotted keys, each with its file and line; nested and dotted spellings mean the same.

    Raises SettingsError when the file is missing, is not YAML, is not a mapping, or has a key twice.
    """
    return read_entries(path, text_settings())


def read_overrides(arguments: Iterable[str]) -> dict[str, Entry]:
    """`key=value` arguments of the command line; values are read as YAML."""
    entries: dict[str, Entry] = {}
    problems = []
    for argument in arguments:
        written, equals, text = argument.partition("=")
        key = written.strip()
        if not equals or not key:
            form = f"{argument!r} is not of the form key=value, such as train.epochs=9"
            problems.append(Problem((), Kind.SYNTAX, COMMAND_LINE, form))
            continue
        try:
            entries[key] = Entry(read_value(text, key, text_settings()), COMMAND_LINE)
        except Refused as refused:
            problems.append(Problem((key,), refused.kind, COMMAND_LINE, f"{key}: {refused.text}"))
    if problems:
        raise SettingsError(problems)
    return entries


def read_changes(values: Mapping[str, Any]) -> dict[str, Entry]:
    """Changes by dotted keys, as a program gives them; a tuple is a list."""
    return {
        str(key): Entry(list(value) if isinstance(value, tuple) else value, "changes") for key, value in values.items()
    }


@functools.cache
def text_settings() -> frozenset[str]:
    """The settings that are text, whatever it looks like: names, and notations such as -1:1."""
    return frozenset(key for key, field in dotted_fields().items() if _is_text(field.annotation))


def _is_text(annotation: Any) -> bool:
    """Whether a type is text with rules, or such text or nothing."""
    if get_origin(annotation) is Annotated:
        return _is_text(get_args(annotation)[0])
    members = set(get_args(annotation)) - {type(None)} or {annotation}
    return members == {str} or (len(members) == 1 and annotation not in members and _is_text(*members))


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
            text = f"{key} is a section that holds {some}; it cannot have a value of its own, got {shown(entry.value)}"
            text += _section_advice(key, entry.value, known)
            problems.append(Problem((key,), Kind.SECTION, entry.where, text))
        elif name is None:
            whole = next((field for field in known if key.startswith(f"{field}.")), None)
            text = "is not a setting" + (f", as {whole} has no parts" if whole else "")
            problems.append(unknown_key(key, known, entry.where, text))
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
        text = f"{field}: {_expectation(known[field], detail)}, got {shown(entry.value)}"
        if detail["type"] in NUMERIC:
            text += _number_advice(field, entry.value, whole=detail["type"].startswith("int"))
        problems.append(Problem((field,), Kind.VALUE, entry.where, text))
    return list(dict.fromkeys(problems))


def shown(value: Any) -> str:
    """A value as a message has it: without the secrets of an address, and cut where it is long."""
    if value is None:
        return "nothing"
    return cut(redact(repr(value)))


def _section_advice(key: str, value: Any, known: Mapping[str, FieldInfo]) -> str:
    """What was probably meant by a value of a section."""
    if isinstance(value, Mapping):
        example = next((f"{key}.{name}={given}" for name, given in value.items() if f"{key}.{name}" in known), None)
        return f"; give its settings one by one, as {example}" if example else ""
    kind = known.get(f"{key}.type")
    choices = get_args(kind.annotation) if kind else ()
    word = "none" if value in (None, False) else value
    if word in choices:
        return f"; for its type give {key}.type: {word}"
    first = next(name for name in known if name.startswith(f"{key}."))
    return f"; give {first}: {value}" if isinstance(value, int) and not isinstance(value, bool) else ""


def _number_advice(field: str, value: Any, *, whole: bool) -> str:
    """How the number in a text is written, or the range."""
    if not isinstance(value, str):
        return ""
    if not whole and (number := re.fullmatch(r"\s*([-+]?\d+),(\d+)\s*", value)):
        return f"; decimals have a point, as {number[1]}.{number[2]}"
    if number := re.fullmatch(r"\s*([-+]?\d+(?:\.\d+)?)\s*[A-Za-z]+\s*", value):
        return f"; give the number alone, {number[1]}"
    if number := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value):
        return f"; give it as {float(number[1]) / 100:g}"
    found = spellings.distribution(value, whole=False)
    return f"; to search it, put it under `space:`, as {field}: {spellings.flow(found)}" if found else ""


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
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "finite_number": "a finite number",
    "string_type": "text",
    "string_unicode": "text in UTF-8",
    "tuple_type": "a list",
    "too_short": "{min_length} or more",
    "too_long": "at most {max_length}",
    "dict_type": "a mapping of names to values",
    "literal_error": "one of {choices}",
}


NUMERIC = ("int_type", "int_parsing", "int_from_float", "float_type", "float_parsing")


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
