"""YAML as it looks: what YAML 1.1 reads differently is refused, with the line and in plain words.

`no`, `on` and dates are text, as in YAML 1.2, and `1e-3` is a number. Numbers to base 60 and 8 (`1:30`, `010`), keys
that are given twice, several documents, merge keys and tags are refused.
"""

import codecs
import re
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from aae_ray.errors import Kind, Problem, SettingsError

DEEPEST = 20  # parts of a key, and lists within each other
LONGEST = 120  # letters of a value or a line in a message
MERGE = "<<"
SEXAGESIMAL = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
LEADING_ZERO = re.compile(r"[-+]?0[0-9_]*[0-9]")
STANDARD = "tag:yaml.org,2002:"
NULL = f"{STANDARD}null"
TAGS: Mapping[type[yaml.Node], Collection[str]] = {  # that say no more than how a value looks
    yaml.ScalarNode: {f"{STANDARD}{kind}" for kind in ("str", "int", "float", "bool", "null")},
    yaml.SequenceNode: {f"{STANDARD}seq"},
    yaml.MappingNode: {f"{STANDARD}map"},
}


@dataclass(frozen=True)
class Entry:
    """A value and the place where the user wrote it."""

    value: Any
    where: str


class Refused(Exception):
    """A part of a text that is not taken: where it begins, counted from 0, and why."""

    def __init__(self, line: int, text: str, kind: Kind = Kind.SYNTAX) -> None:
        super().__init__(line, text, kind)
        self.line, self.text, self.kind = line, text, kind


class Loader(yaml.SafeLoader):
    """Scalars by their looks. Dates, `yes` and `no`, and `=` are text: 1000-64-32 are widths."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        check_tag(node)
        if isinstance(node, yaml.ScalarNode):
            check_blanks(node)
        return super().construct_object(node, deep=deep)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key_node, _ in node.value:
            key, line = plain_key(key_node), key_node.start_mark.line
            if key in seen:
                raise Refused(line, f"{key} is given twice, first in line {seen[key] + 1}", Kind.DUPLICATE)
            seen[key] = line
        return super().construct_mapping(node, deep=deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        text, line = node.value, node.start_mark.line
        if SEXAGESIMAL.fullmatch(text):
            value = 0.0
            for part in text.lstrip("+-").replace("_", "").split(":"):
                value = 60 * value + float(part)
            value = -value if text.startswith("-") else value
            read = f"YAML reads {text} as {value:g}, a number to base 60"
            raise Refused(line, f"{read}; write {value:g}, or a duration such as 1m30s, or text in quotes")
        if LEADING_ZERO.fullmatch(text):
            decimal = int(text.replace("_", ""))
            octal = None if re.search("[89]", text) else self.construct_yaml_int(node)
            read = "as text" if octal is None else f"as {octal}, a number to base 8"
            raise Refused(line, f"{text} has a leading zero, with which YAML reads it {read}; write {decimal}")
        whole = node.tag == f"{STANDARD}int"
        return self.construct_yaml_int(node) if whole else self.construct_yaml_float(node)


Loader.yaml_implicit_resolvers = {}
for _kind, _form, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", rf"[-+]?[0-9][0-9_]*|[-+]?0x[0-9a-fA-F_]+|[-+]?0b[01_]+|{SEXAGESIMAL.pattern}", "-+0123456789"),
    ("float", r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+.0123456789"),
):
    Loader.add_implicit_resolver(f"{STANDARD}{_kind}", re.compile(f"(?:{_form})$"), list(_first))
for _kind in ("int", "float"):
    Loader.add_constructor(f"{STANDARD}{_kind}", Loader.construct_number)


def cut(text: str) -> str:
    """A text as a message quotes it: not more than LONGEST letters of it."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def check_tag(node: yaml.Node) -> None:
    """Raises Refused for a value that is said to be something else than it looks."""
    if node.tag not in TAGS[type(node)]:
        shown = cut(node.tag.replace(STANDARD, "!!"))
        raise Refused(node.start_mark.line, f"the tag {shown} has no meaning here; remove it")


def check_blanks(node: yaml.ScalarNode) -> None:
    """Raises Refused for blanks that look like none, or like a space, which editors and web pages put into a text."""
    if node.style is not None:  # in quotes they are meant
        return
    for sign in node.value:
        if sign != " " and unicodedata.category(sign) in ("Zs", "Cf"):
            shown = cut(node.value.replace(sign, "_"))
            what = f"{unicodedata.name(sign).lower()} (U+{ord(sign):04X})"
            article = "an" if what[0] in "aeiou" else "a"
            where = f"has {article} {what} where _ stands in `{shown}`"
            raise Refused(node.start_mark.line, f"{where}; write a plain space, or nothing, or put it in quotes")


def plain_key(node: yaml.Node) -> str:
    """A key as it is written. Raises Refused for one that is no plain name."""
    if not isinstance(node, yaml.ScalarNode):
        raise Refused(node.start_mark.line, "a key must be a name, and this one is a list or a mapping")
    if node.value == MERGE:
        raise Refused(node.start_mark.line, f"merge keys ({MERGE}) are not taken; write the keys themselves")
    check_tag(node)
    check_blanks(node)
    return str(node.value)


def decoded(content: bytes) -> str:
    """The text of a file, which is UTF-8, or UTF-16 with its mark. Raises Refused with the line that is not."""
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = content[: error.start].count(b"\n"), content[error.start : error.start + 1].hex()
        raise Refused(line, f"is not UTF-8 text, as it has the byte 0x{byte}; save the file as UTF-8") from None
    control = re.search(r"[^\t\n\r\x20-\x7e\x85\xa0-\U0010ffff]", text)
    if control is None:
        return text
    line, sign = text[: control.start()].count("\n"), ord(control[0])
    what = "is no text, or text in UTF-16 without its mark" if sign == 0 else f"has the control character {sign:#04x}"
    raise Refused(line, f"{what}; save the file as UTF-8 text")


def compose(text: str) -> yaml.Node | None:
    """The only document of a text; None for an empty one. Raises Refused."""
    try:
        loader = Loader(text)
    except yaml.reader.ReaderError as error:  # of a file this was seen before
        shown = ascii(chr(error.character)) if isinstance(error.character, int) else ascii(error.character)
        line = text[: error.position].count("\n")
        raise Refused(line, f"has the character {shown} in it, which YAML does not allow") from None
    try:
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise _refused(error, text) from None
    except (yaml.YAMLError, RecursionError):
        raise Refused(0, "is not YAML, or nested too deeply") from None
    finally:
        loader.dispose()
    return root


def _refused(error: yaml.MarkedYAMLError, text: str) -> Refused:
    """What the parser has to say about a text, by where it stopped."""
    mark = error.problem_mark or error.context_mark
    assert mark is not None
    lines = [*text.splitlines(), ""]
    line = min(mark.line, len(lines) - 1)
    written, rest = cut(lines[line].strip()), lines[line][mark.column :]
    if isinstance(error, yaml.composer.ComposerError):
        if rest.startswith("*"):
            return Refused(line, f"is not YAML: the alias in `{written}` has no anchor before it")
        if written.startswith("---"):
            return Refused(line, "a second document begins here; a file holds one, so remove the line ---")
        return Refused(line, f"is not YAML: the anchor in `{written}` is there already")
    if not "".join([rest, *lines[line + 1 :]]).strip():  # the end of the text
        began = error.context_mark.line if error.context_mark else line
        began = next((index for index in range(began, 0, -1) if lines[index].strip()), 0)
        return Refused(began, f"is not YAML: `{cut(lines[began].strip())}` has a bracket or quote that is not closed")
    scanned = isinstance(error, yaml.scanner.ScannerError)
    if "\t" in lines[line][: len(lines[line]) - len(lines[line].lstrip())] or rest.startswith("\t"):
        what = "a tab stands where only spaces can be; indent the line with spaces"
    elif scanned and rest.startswith(":"):
        what = "a second colon; put the value in quotes, or begin a new line"
    elif scanned and rest.startswith(("@", "`", "%")):
        what = f"a value cannot begin with {rest[0]} unless it is in quotes"
    else:
        what = "look at its indentation, its brackets and quotes, and the space behind each colon"
    return Refused(line, f"is not YAML: `{written}`: {what}")


def construct(node: yaml.Node) -> Any:
    """The value of a node. Raises Refused."""
    loader = Loader("")
    try:
        return loader.construct_object(node, deep=True)
    except yaml.YAMLError:  # an alias within what it names
        raise Refused(node.start_mark.line, "an alias stands within what it names") from None
    except (ValueError, OverflowError):
        raise Refused(node.start_mark.line, "is a number that cannot be read") from None
    except RecursionError:
        raise Refused(node.start_mark.line, "is nested too deeply") from None
    finally:
        loader.dispose()


def read_entries(path: str | Path, text_settings: Collection[str]) -> dict[str, Entry]:
    """A YAML file as dotted keys, each with its file and line; nested and dotted spellings mean the same. A value of a
    setting that is text is taken as it is written: `2026` is a name.

    Raises SettingsError when the file is missing, is not YAML, is not a mapping, or has a key twice.
    """
    try:
        root = compose(decoded(Path(path).read_bytes()))
        if root is not None:
            check_tag(root)
    except OSError as error:
        raise SettingsError([Problem((), Kind.SYNTAX, str(path), f"cannot be read: {error.strerror}")]) from None
    except Refused as refused:
        raise SettingsError([Problem((), refused.kind, f"{path}:{refused.line + 1}", refused.text)]) from None
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        text = "must be a mapping of keys to values, such as `study: {name: digits}`"
        raise SettingsError([Problem((), Kind.SYNTAX, str(path), text)])

    entries: dict[str, Entry] = {}
    problems: list[Problem] = []

    def descend(node: yaml.MappingNode, prefix: str) -> None:
        if len(prefix.split(".")) > DEEPEST:  # an alias that holds itself has no end
            endless = f"{prefix[:40]}...: mappings are nested without end"
            raise SettingsError([Problem((prefix[:-1],), Kind.SYNTAX, str(path), endless)])
        seen: dict[str, str] = {}  # keys of this mapping
        for key_node, value_node in node.value:
            where, key = f"{path}:{key_node.start_mark.line + 1}", prefix
            try:
                key += plain_key(key_node)
                first = seen.setdefault(key, where) if key not in entries else entries[key].where
                if first != where or key in entries:
                    twice = f"{key} is given twice, first at {first}"
                    problems.append(Problem((key,), Kind.DUPLICATE, where, twice))
                elif isinstance(value_node, yaml.MappingNode) and value_node.value:
                    check_tag(value_node)
                    descend(value_node, f"{key}.")
                else:
                    entries[key] = Entry(_value(value_node, key, text_settings), where)
            except Refused as refused:
                place = f"{path}:{refused.line + 1}"
                problems.append(Problem((key,), refused.kind, place, f"{key.rstrip('.')}: {refused.text}".lstrip(": ")))

    descend(root, "")
    if problems:
        raise SettingsError(problems)
    return entries


def _value(node: yaml.Node, key: str, text_settings: Collection[str]) -> Any:
    check_tag(node)
    if isinstance(node, yaml.ScalarNode):
        check_blanks(node)
    plain = isinstance(node, yaml.ScalarNode) and node.tag != NULL
    return node.value if plain and key.removeprefix("run.") in text_settings else construct(node)


def read_value(text: str, key: str, text_settings: Collection[str]) -> Any:
    """A value of the command line. That of a setting that is text is taken as it is, but for quotes around it."""
    if key.removeprefix("run.") in text_settings and not re.fullmatch(r"\s*(~|null|[\"'].*[\"']|)\s*", text):
        return text
    try:
        node = compose(text)
    except Refused:  # no YAML, and told as a wrong value
        return text
    return None if node is None else construct(node)
