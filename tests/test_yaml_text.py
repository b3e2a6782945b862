"""YAML says what it looks like, or is refused with its line and in words of ours."""

import re
from pathlib import Path

import pytest

from aae_ray.errors import Kind, SettingsError
from aae_ray.reading import build, read_overrides, read_yaml

# What libraries say of wrong input.
FOREIGN = re.compile(
    r"pydantic|Input should|valid (integer|number|string)|YAMLError|Node\(|tag:yaml|could not determine|"
    r"<(block|stream|scalar|document)|found (character|undefined|unconstructable|unexpected|unknown)|"
    r"mapping values are|unacceptable|No such option|Invalid value|requires an argument|Got unexpected|codec|Traceback|"
    r"unpack|unhashable"
)


def told(path: Path, content: str | bytes) -> list[str]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SettingsError) as caught:
        read_yaml(path)
    return [str(problem).replace(f"{path.parent}/", "") for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        # numbers that are others than they seem
        ("a: 3\nb: 1:30\n", "f.yaml:2: b: YAML reads 1:30 as 90, a number to base 60; write 90"),
        ("a: [1, 2:30.5]\n", "f.yaml:1: a: YAML reads 2:30.5 as 150.5, a number to base 60"),
        (
            "a: 010\n",
            "f.yaml:1: a: 010 has a leading zero, with which YAML reads it as 8, a number to base 8; write 10",
        ),
        ("a: -08\n", "f.yaml:1: a: -08 has a leading zero, with which YAML reads it as text; write -8"),
        ("a:\n  - {b: 3}\n  - {b: 007}\n", "f.yaml:3: a: 007 has a leading zero"),
        # keys that are given twice
        ("study: {name: a}\nrun: {}\nstudy: {keep: all}\n", "f.yaml:3: study is given twice, first at f.yaml:1"),
        ("train: {epochs: 3}\ntrain.epochs: 4\n", "f.yaml:2: train.epochs is given twice, first at f.yaml:1"),
        ("train.epochs: 4\ntrain: {epochs: 3}\n", "f.yaml:2: train.epochs is given twice, first at f.yaml:1"),
        ("start:\n  - {a: 1,\n     a: 2}\n", "f.yaml:3: start: a is given twice, first in line 2"),
        # parts of YAML that have no use here
        ("a: 1\n---\na: 2\n", "f.yaml:2: a second document begins here; a file holds one, so remove the line ---"),
        ("b: &b {c: 1}\na:\n  <<: *b\n", "f.yaml:3: a: merge keys (<<) are not taken; write the keys themselves"),
        ("a: !foo b\n", "f.yaml:1: a: the tag !foo has no meaning here; remove it"),
        ("a: !!python/name:os.system x\n", "f.yaml:1: a: the tag !!python/name:os.system has no meaning here"),
        ("data: {name: !foo b}\n", "f.yaml:1: data.name: the tag !foo has no meaning here; remove it"),
        ("a: !!binary aGk=\n", "f.yaml:1: a: the tag !!binary has no meaning here; remove it"),
        ("a: {train.epochs: 3}\nrun: !!str {train.epochs: 3}\n", "f.yaml:2: run: the tag !!str has no meaning here"),
        ("!foo\na: 1\n", "f.yaml:1: the tag !foo has no meaning here; remove it"),
        ("a:\n  - !!str {b: 1}\n", "f.yaml:2: a: the tag !!str has no meaning here"),
        ("a: !!map [1]\n", "f.yaml:1: a: the tag !!map has no meaning here"),
        ("a: !!seq b\n", "f.yaml:1: a: the tag !!seq has no meaning here"),
        ("study.name: !!binary aGk=\n", "f.yaml:1: study.name: the tag !!binary has no meaning here"),
        ("!!foo a: 1\n", "f.yaml:1: the tag !!foo has no meaning here"),
        ("a:\n  ? [b, c]\n  : 3\n", "f.yaml:2: a: a key must be a name, and this one is a list or a mapping"),
        ("a: &a [*a]\n", "f.yaml:1: a: an alias stands within what it names"),
        ("a: *b\n", "f.yaml:1: is not YAML: the alias in `a: *b` has no anchor before it"),
        ("a: [" + "[" * 500 + "]" * 500 + "]\n", "f.yaml:1: is not YAML, or nested too deeply"),
        # blanks that are none, or that nobody sees
        ("a:\u00a09\n", "f.yaml: must be a mapping of keys to values"),
        (
            "a: {b: 1}\nc:\n  d: 9\u00a0\n",
            "f.yaml:3: c.d: has a no-break space (U+00A0) where _ stands in `9_`; write a",
        ),
        ("run:\n\u00a0\u00a0a: 9\n", "f.yaml:2: has a no-break space (U+00A0) where _ stands in `__a`"),
        ("\u200brun: 1\n", "f.yaml:1: has a zero width space (U+200B) where _ stands in `_run`"),
        # what is no YAML
        ("a:\n\tb: 1\n", "f.yaml:2: is not YAML: `b: 1`: a tab stands where only spaces can be"),
        ("a:\n  b: c: d\n", "f.yaml:2: is not YAML: `b: c: d`: a second colon; put the value in quotes"),
        ("a:\n  b: 'c\n", "f.yaml:2: is not YAML: `b: 'c` has a bracket or quote that is not closed"),
        ("a: [1,\n  2\n", "f.yaml:1: is not YAML: `a: [1,` has a bracket or quote that is not closed"),
        ("a: @b\n", "f.yaml:1: is not YAML: `a: @b`: a value cannot begin with @ unless it is in quotes"),
        ("a: 1\n%b\n", "f.yaml:2: is not YAML: "),
        ("a:\n  b: 1\n c: 2\n", "f.yaml:3: is not YAML: `c: 2`: look at its indentation"),
        ("[tool]\na = 1\n", "f.yaml:2: is not YAML: `a = 1`: look at"),
        ("train.epochs = 3\n", "f.yaml: must be a mapping of keys to values, such as `study: {name: digits}`"),
        # what is no text
        ("a: ä\n".encode("latin-1"), "f.yaml:1: is not UTF-8 text, as it has the byte 0xe4; save the file as UTF-8"),
        ("a: 1\nb: 2\n".encode("utf-16-le"), "f.yaml:1: is no text, or text in UTF-16 without its mark"),
        (b"a: 1\nb: \x07\n", "f.yaml:2: has the control character 0x07"),
        (b"\x89PNG\r\n\x1a\n", "f.yaml:1: is not UTF-8 text, as it has the byte 0x89"),
    ],
)
def test_what_is_refused_is_told_with_its_line(tmp_path: Path, content: str | bytes, sentence: str) -> None:
    (found,) = told(tmp_path / "f.yaml", content)
    assert found.startswith(sentence) and not FOREIGN.search(found)


@pytest.mark.parametrize("content", ["a: b: {0}\n", "{0}: [\n", "a: *{0}\n", "a: &b 1\nb: &b {0}\n", "a: !{0} 1\n"])
def test_a_long_line_is_quoted_in_part(tmp_path: Path, content: str) -> None:
    (found,) = told(tmp_path / "f.yaml", content.format("x" * 100_000))
    assert len(found) < len(str(tmp_path)) + 300


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_encodings_and_line_ends_are_read(tmp_path: Path, encoding: str, end: str) -> None:
    path = tmp_path / "f.yaml"
    path.write_bytes(f"data.name: a{end}data.path: ü/🙂{end}".encode(encoding))
    assert {key: entry.value for key, entry in read_yaml(path).items()} == {"data.name": "a", "data.path": "ü/🙂"}


@pytest.mark.parametrize(
    "written", ["no", "on", "y", "2026-01-01", "2026", "1_000", "1e3", "007", "1:30", "0x10", "1.10"]
)
def test_a_name_is_what_is_written(tmp_path: Path, written: str) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(f"study: {{name: {written}}}\ndata.label_column: {written}\n")
    for entries in (read_yaml(path), read_overrides([f"study.name={written}", f"data.label_column={written}"])):
        assert [entry.value for entry in entries.values()] == [written, written]


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("data.path=/data/set #3", "/data/set #3"),
        ("data.path=a: b", "a: b"),
        ("data.path='a b'", "a b"),
        ("data.path=[x]", "[x]"),
        ("data.path=~", None),
        ("data.path=~/x", "~/x"),
        ("health.stop=off", "off"),
        ("seed=1e3", 1000.0),
        (" seed =3", 3),
        ("train.epochs=\x1b[A3", "\x1b[A3"),  # an arrow key, in a terminal that does not know it
        ("train.epochs=\udcff", "\udcff"),  # a byte that is no UTF-8
    ],
)
def test_values_of_the_command_line(argument: str, value: object) -> None:
    (entry,) = read_overrides([argument]).values()
    assert entry.value == value


def test_switches_may_be_yes_and_no() -> None:
    for word, value in (("yes", True), ("on", True), ("no", False), ("off", False), ("false", False), ("TRUE", True)):
        assert build(read_overrides([f"health.stop={word}"])).health.stop is value


def test_a_number_of_the_command_line_that_is_another_is_refused() -> None:
    with pytest.raises(SettingsError, match="train.epochs: 010 has a leading zero.*write 10") as caught:
        read_overrides(["train.epochs=010", "model.hidden=[1:30]", "seed=3"])
    assert [problem.keys for problem in caught.value.problems] == [("train.epochs",), ("model.hidden",)]
    assert {problem.kind for problem in caught.value.problems} == {Kind.SYNTAX}
    with pytest.raises(SettingsError, match="YAML reads 00:10:00 as 600, a number to base 60; write 600"):
        read_overrides(["study.budget.wall_clock=00:10:00"])
