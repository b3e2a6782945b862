"""What a check has found, a line each."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """How it stands with one thing that a cluster needs."""

    OK = "ok"
    ADVICE = "advice"  # the cluster comes up all the same
    MISSING = "missing"  # `ray up` or the study would fail, or would be open to others


@dataclass(frozen=True)
class Finding:
    """One line of a check: what it is about, how it stands, and in a sentence what there is or what to do."""

    subject: str
    state: State
    text: str


def ok(subject: str, text: str) -> Finding:
    return Finding(subject, State.OK, text)


def advice(subject: str, text: str) -> Finding:
    return Finding(subject, State.ADVICE, text)


def missing(subject: str, text: str) -> Finding:
    return Finding(subject, State.MISSING, text)


def is_ready(findings: Iterable[Finding]) -> bool:
    """Whether nothing is missing."""
    return all(finding.state is not State.MISSING for finding in findings)
