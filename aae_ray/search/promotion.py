"""Whether a decoder becomes the champion of its name: a pure decision on recorded evidence."""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from aae_ray.search.objectives import dominates, select

SAME = (
    ("data.digest", "was measured on other data"),
    ("data.split", "was measured on another split of the data"),
    ("task", "is of another task (tracking.model_name gives a name of its own)"),
    ("objectives", "was measured on other objectives"),
)


class Verdict(NamedTuple):
    """Whether the alias moves, and why."""

    champion: bool
    reason: str


def promote(
    champion: Mapping[str, str], version: str, own: Mapping[str, str], front: Sequence[Sequence[float]], rule: str
) -> Verdict:
    """Hold a new decoder against the champion, `version` of its name, by the tags of both.

    The champion takes part in the choice as one more point of the study's front (`front`, smaller is better): it stays
    when the rule that chose the study's best would choose it.
    """
    for tag, what in SAME:
        if champion.get(tag) != own[tag]:
            return Verdict(False, f"version {version} {what}; compare them and move the alias by hand")
    rival, mine = json.loads(champion["objective_values"]), json.loads(own["objective_values"])
    if mine == rival or dominates(rival, mine):
        return Verdict(False, f"version {version} is as good or better in every objective")
    points = [rival, *front]  # first, so that it stays when the rule is indifferent
    first = [point for point in points if not any(dominates(other, point) for other in points)]
    if first[select(first, rule)] is rival:
        return Verdict(False, f"study.select={rule} chooses version {version}")
    return Verdict(True, f"better than version {version}")
