"""Mistakes of the user, in sentences: where, what, and what would be right."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from aae_ray.spellings import REMARKS, SETTINGS, folded

# Exit codes of the commands.
STOPPED = 1  # a study stopped before its planned end, or has no complete trial
MISTAKE = 2  # of the user
INTERRUPTED = 130  # by Ctrl-C, SIGTERM or SIGHUP

LIKE = 0.6  # how much the last part of a key must look like that of another one which was probably meant, of 1


class UserError(Exception):
    """A mistake of the user, in sentences. Commands print it without a traceback and end with the code MISTAKE."""


class Kind(StrEnum):
    """What sort of mistake a problem is."""

    SYNTAX = "syntax"  # a file or an argument that cannot be read
    UNKNOWN_KEY = "unknown_key"
    SECTION = "section"  # a value where keys belong, or keys where a value belongs
    MISPLACED = "misplaced"  # a setting in a block where it does not belong
    DUPLICATE = "duplicate"  # given twice
    VALUE = "value"  # wrong by itself: its type, its range, or not one of the choices
    RULE = "rule"  # values that are right by themselves and do not go together
    DATA = "data"  # values that do not fit the data


@dataclass(frozen=True)
class Problem:
    """One mistake. Code decides by `keys` and `kind`; `text` is for people, who read what would be right in it."""

    keys: tuple[str, ...]  # that it concerns; of an unknown key also the one that was probably meant
    kind: Kind
    where: str  # the user wrote it
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"

    def concerns(self, key: str) -> bool:
        """Whether it is about this key, about a section that holds it, or about a part of it."""
        return any(key == own or key.startswith(f"{own}.") or own.startswith(f"{key}.") for own in self.keys)


class SettingsError(UserError):
    """All the mistakes in the settings of a run, at once."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)  # as it is made again from a pickle

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant, None if there is none: the same but for capitals and signs, the same at
    its end, what other tools call so, or one that is close."""
    known, leaf = list(known), name.rpartition(".")[2]
    same = [key for key in known if folded(key) == folded(name)]
    same = same or [key for key in known if folded(_leaf(key)) == folded(leaf)]
    if same:
        return max(same, key=lambda key: _likeness(key, name))
    for part in (leaf, name.partition(".")[0]):
        if SETTINGS.get(folded(part)) in known:
            return SETTINGS[folded(part)]
    close = [
        key
        for key in difflib.get_close_matches(name, known, n=3, cutoff=0.7)
        if _likeness(_leaf(key), leaf) >= LIKE or name.startswith(f"{key}.")
    ]
    if not close:
        leaves = difflib.get_close_matches(leaf, map(_leaf, known), n=1, cutoff=0.75)
        close = [key for key in known if leaves and _leaf(key) == leaves[0]][:1]
    return close[0] if close else None


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint ` Did you mean ...?` when a known name is close; else nothing."""
    meant = closest(name, known)
    return f" Did you mean {meant}?" if meant else ""


def unknown_key(key: str, known: Iterable[str], where: str, text: str, *, prefix: str = "") -> Problem:
    """A key that does not exist, with the known one that was probably meant, in its keys and as a hint in its text."""
    remark = REMARKS.get(folded(_leaf(key)))
    meant = None if remark else closest(key, known)
    hint = f" {remark}" if remark else f" Did you mean {meant}?" if meant else ""
    return Problem((key, meant) if meant else (key,), Kind.UNKNOWN_KEY, where, f"{prefix}{key} {text}.{hint}")
