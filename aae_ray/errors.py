"""Mistakes of the user, told in sentences: where, what, and what would be right."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


class UserError(Exception):
    """A mistake of the user, told in sentences. Commands print it without a traceback and end with exit code 2."""


@dataclass(frozen=True)
class Problem:
    """One mistake: where it stands, which key it concerns, and what would be right."""

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


class SettingsError(UserError):
    """All the mistakes in the settings of a run, at once."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint ` Did you mean ...?` when a known name, or the last part of a dotted key, is close; else nothing."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    if not close:
        leaf = name.rpartition(".")[2]
        leaves = difflib.get_close_matches(leaf, [key.rpartition(".")[2] for key in known], n=1, cutoff=0.75)
        close = [key for key in known if leaves and key.rpartition(".")[2] == leaves[0]][:1]
    return f" Did you mean {close[0]}?" if close else ""
