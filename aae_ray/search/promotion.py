"""Whether a decoder becomes the champion of its name: a pure decision on recorded evidence."""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from aae_ray import settings
from aae_ray.evaluation.metrics import METRICS
from aae_ray.search.choice import RULES, judged_by, select
from aae_ray.search.constraints import Constraint, constrained, constraints_of, violation
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
    champion: Mapping[str, str],
    version: str,
    own: Mapping[str, str],
    front: Sequence[Mapping[str, float]],
    rule: str,
    constraints: Sequence[Constraint] = (),
) -> Verdict:
    """Hold a new decoder against the champion, `version` of its name, by the tags of both.

    The champion takes part in the choice as one more trial of the study's front (`front`: metrics of its trials):
    it stays when the rule that chose the study's best, `study.select`, would choose it. A decoder that violates
    constraints of its study never takes the place of one that is not known to.
    """
    for tag, what in SAME:
        if champion.get(tag) != own[tag]:
            return Verdict(False, f"version {version} {what}; compare them and move the alias by hand")
    objectives = own["objectives"].split(",")
    rival, mine = _metrics(champion, objectives), _metrics(own, objectives)
    known = [each for each in constraints if each.metric in rival]
    if violation(constraints, mine) and not violation(known, rival):
        broken = next(each for each in constraints if each.excess(mine) > 0)
        return Verdict(False, f"it violates {broken}, and version {version} is not known to")
    if not violation(known, rival):
        values = [[METRICS[name].sign * metrics[name] for name in objectives] for metrics in (rival, mine)]
        if values[0] == values[1] or dominates(*values):
            return Verdict(False, f"version {version} is as good or better in every objective")
    if rule not in RULES and rule not in rival:
        return Verdict(False, f"version {version} was registered without {rule}, by which study.select chooses")
    limits = judged_by(objectives, rule) - {*objectives, rule}  # of the data: an old champion was registered without
    rival = {name: front[0][name] for name in limits if name in front[0]} | rival
    trials = [rival, *front]  # the champion first: it stays when the rule is indifferent
    points = [
        constrained([METRICS[name].sign * metrics[name] for name in objectives], violation(known, metrics))
        for metrics in trials
    ]
    first = [index for index, point in enumerate(points) if not any(dominates(other, point) for other in points)]
    if first[select([trials[index] for index in first], objectives, rule)] == 0:
        return Verdict(False, f"study.select={rule} chooses version {version}")
    return Verdict(True, f"better than version {version}")


def choice_tags(metrics: Mapping[str, float], study: settings.StudySettings) -> dict[str, str]:
    """What a version keeps of its trial's metrics for later comparisons."""
    kept = choice_metrics(metrics, study)
    return {
        "objectives": ",".join(study.objectives),
        "objective_values": json.dumps([METRICS[name].sign * metrics[name] for name in study.objectives]),
        CHOICE_METRICS: json.dumps(dict(sorted(kept.items()))),
    }


def choice_metrics(metrics: Mapping[str, float], study: settings.StudySettings) -> dict[str, float]:
    """The metrics of a trial that a choice looks at, and those of constraints."""
    names = judged_by(study.objectives, study.select) | {each.metric for each in constraints_of(study)}
    return {name: value for name, value in metrics.items() if name in names}


def _metrics(tags: Mapping[str, str], objectives: Sequence[str]) -> dict[str, float]:
    """The metrics of a version; of one that was registered before they were kept, the objectives alone."""
    if CHOICE_METRICS in tags:
        return dict(json.loads(tags[CHOICE_METRICS]))
    values = json.loads(tags["objective_values"])
    return {name: METRICS[name].sign * value for name, value in zip(objectives, values, strict=True)}
