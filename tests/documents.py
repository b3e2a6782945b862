"""The blocks of code in the documents, and the commands in them, as a reader types them."""

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    "README.md",
    "docs/data.md",
    "docs/paper.md",
    "cluster/README.md",
    "cluster/lab/README.md",
    "cluster/mlflow/README.md",
    "docs/monitoring.md",
    "docs/scale.md",
    "benchmarks/README.md",
    "CONTRIBUTING.md",
)
_FENCE = re.compile(r"^([ ]*)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_INDENTED = re.compile(r"(?:^\n|\A)((?: {4}.*\n|\n(?= {4}))+)", re.MULTILINE)
_INLINE = re.compile(r"`([^`\n]+)`")
_PROGRAMS = "python[0-9.]*|pip|pytest|mlflow|ray|ruff|aws|chmod|pre-commit"
_PROGRAM = re.compile(rf"(?:RAY_AUTH_MODE=token )?(?:{_PROGRAMS}) \S|pytest$")


@dataclass(frozen=True)
class Block:
    """A block of code: its language, empty where the document says none."""

    document: str
    language: str
    text: str

    @property
    def first_line(self) -> str:
        return self.text.strip().partition("\n")[0]

    @property
    def is_shell(self) -> bool:
        return self.language == "sh" or (not self.language and _PROGRAM.match(self.first_line) is not None)


def blocks(document: str) -> list[Block]:
    """The fenced blocks of a document, then those that are indented by four spaces."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = [Block(document, language, textwrap.dedent(code)) for _, language, code in _FENCE.findall(text)]
    found += [Block(document, "", textwrap.dedent(code)) for code in _INDENTED.findall(_FENCE.sub("", text))]
    return found


def block(document: str, first_line: str) -> Block:
    """The block that begins so."""
    (found,) = [each for each in blocks(document) if each.first_line == first_line]
    return found


def commands(document: str) -> Iterator[str]:
    """The commands in the shell blocks of a document and in its sentences and tables, each without its comment."""
    for each in blocks(document):
        if each.is_shell:
            yield from _typed(each.text)
    text = _FENCE.sub("", (ROOT / document).read_text(encoding="utf-8"))
    for code in _INLINE.findall(text):
        if _PROGRAM.match(code):
            yield from _typed(code)


def _typed(text: str) -> Iterator[str]:
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        command = re.split(r"\s+#|\s{4,}|\s+>\s", line)[0]
        yield from (part.strip() for part in re.split(r" && (?=(?:[^']*'[^']*')*[^']*$)", command) if part.strip())


def words(command: str) -> list[str]:
    """The words of a command; of a synopsis without what is in brackets, as that may be left out."""
    return shlex.split(re.sub(r" \[[^\]]*\]", "", command))
