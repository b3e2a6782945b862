"""Whether a decoder becomes the champion of its name: a pure decision on recorded evidence."""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from aae_ray.evaluation.metrics import METRICS
from aae_ray.search.choice import judged_by, select
from aae_ray.search.objectives import dominates

CHOICE_METRICS = "choice_metrics"  # the tag of a version

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
    champion: Mapping[str, str], version: str, own: Mapping[str, str], front: Sequence[Mapping[str, float]], rule: str
) -> Verdict:
    """Hold a new decoder against the champion, `version` of its name, by the tags of both.

    The champion takes part in the choice as one more trial of the study's front (`front`: metrics of its trials):
    it stays when the rule that chose the study's best, `study.select`, would choose it.
    """
    for tag, what in SAME:
        if champion.get(tag) != own[tag]:
            return Verdict(False, f"version {version} {what}; compare them and move the alias by hand")
    rival, mine = json.loads(champion["objective_values"]), json.loads(own["objective_values"])
    if mine == rival or dominates(rival, mine):
        return Verdict(False, f"version {version} is as good or better in every objective")
    objectives = own["objectives"].split(",")
    trials = [_metrics(champion, objectives), *front]  # the champion first: it stays when the rule is indifferent
    points = [[METRICS[name].sign * metrics[name] for name in objectives] for metrics in trials]
    first = [index for index, point in enumerate(points) if not any(dominates(other, point) for other in points)]
    if first[select([trials[index] for index in first], objectives, rule)] == 0:
        return Verdict(False, f"study.select={rule} chooses version {version}")
    return Verdict(True, f"better than version {version}")


def choice_tags(metrics: Mapping[str, float], objectives: Sequence[str], rule: str) -> dict[str, str]:
    """What a version keeps of its trial's metrics for later comparisons."""
    known = {name: metrics[name] for name in sorted(judged_by(objectives, rule)) if name in metrics}
    return {
        "objectives": ",".join(objectives),
        "objective_values": json.dumps([METRICS[name].sign * metrics[name] for name in objectives]),
        CHOICE_METRICS: json.dumps(known),
    }


def _metrics(tags: Mapping[str, str], objectives: Sequence[str]) -> dict[str, float]:
    """The metrics of a version; of one that was registered before they were kept, the objectives alone."""
    if CHOICE_METRICS in tags:
        return dict(json.loads(tags[CHOICE_METRICS]))
    values = json.loads(tags["objective_values"])
    return {name: METRICS[name].sign * value for name, value in zip(objectives, values, strict=True)}
