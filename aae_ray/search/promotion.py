"""Whether a decoder becomes the champion of its name: a pure decision on recorded evidence."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from aae_ray import settings
from aae_ray.evaluation.metrics import METRICS
from aae_ray.search.choice import RULES, compared, judged_by, means, score, select
from aae_ray.search.constraints import Constraint, constrained, violation
from aae_ray.search.objectives import dominates
from aae_ray.search.racing import Seeds, deviations

CHOICE_METRICS = "choice_metrics"  # the tag of a version

SAME = (
    ("data.digest", "was measured on other data"),
    ("data.split", "was measured on another split of the data"),
    ("task", "is of another task (tracking.model_name gives a name of its own)"),
    ("objectives", "was measured on other objectives"),
)


STANDARD_ERRORS = 2.0  # by which the mean of new seeds must be better
# Tags of a version: its metrics with new seeds, study.select, and study.constraints, a list in JSON.
EVIDENCE, RULE, CONSTRAINTS = "evidence", "rule", "constraints"
BETTER, NEVER = "better", "never"  # values of tracking.promotion, as is EVIDENCE


class Evidence(NamedTuple):
    """Two decoders by the rule of `study.select`, over the seeds of each; the scores have no unit, less is better."""

    difference: float  # of the champion's mean score and the other one's: above 0 where that one is better
    standard_error: float  # of the difference, from the spread of seeds of both together
    seeds: int
    champion_seeds: int

    @property
    def holds(self) -> bool:
        return self.difference > STANDARD_ERRORS * self.standard_error

    def __str__(self) -> str:
        return (
            f"by {self.difference:.4g}, with a standard error of {self.standard_error:.2g} "
            f"({self.seeds} new seeds against {self.champion_seeds})"
        )


class Verdict(NamedTuple):
    """Whether the alias moves, and why."""

    champion: bool
    reason: str
    evidence: Evidence | None = None
    against: int | None = None  # the version that was the champion, where it was held against one
    lacks_seeds: bool = False  # refused only because nothing was trained again on new seeds


def promote(
    champion: Mapping[str, str],
    version: str,
    own: Mapping[str, str],
    front: Sequence[Mapping[str, float]],
    rule: str,
    constraints: Sequence[Constraint] = (),
    policy: str = BETTER,
) -> Verdict:
    """Hold a new decoder against the champion, `version` of its name, by the tags of both.

    The champion takes part in the choice as one more trial of the study's front (`front`: metrics of its trials):
    it stays when the rule that chose the study's best, `study.select`, would choose it. A decoder that violates
    constraints of its study never takes the place of one that is not known to. `policy` is `tracking.promotion`: with
    `evidence` it is new seeds of both that decide, and nothing else.
    """
    if policy == NEVER:
        return Verdict(False, "tracking.promotion=never")
    for tag, what in SAME:
        if champion.get(tag) != own[tag]:
            return Verdict(False, f"version {version} {what}; compare them and move the alias by hand")
    objectives = own["objectives"].split(",")
    rival, mine = _metrics(champion, objectives), _metrics(own, objectives)
    kept, kept_by_rival = _kept_to(own, objectives), _kept_to(champion, objectives)
    known = [each for each in constraints if each.metric in kept_by_rival]
    beyond = violation(known, kept_by_rival)
    if violation(constraints, kept) and not beyond:
        broken = next(each for each in constraints if each.excess(kept) > 0)
        return Verdict(False, f"it violates {broken}, and version {version} is not known to")
    if policy == EVIDENCE:
        return _by_evidence(champion, version, own, rival, objectives, rule)
    if not beyond:
        values = [[METRICS[name].sign * metrics[name] for name in objectives] for metrics in (rival, mine)]
        if values[0] == values[1] or dominates(*values):
            return Verdict(False, f"version {version} is as good or better in every objective")
    if rule not in RULES and rule not in rival:
        return Verdict(False, f"version {version} was registered without {rule}, by which study.select chooses")
    limits = judged_by(objectives, rule) - {*objectives, rule}  # of the data: an old champion was registered without
    rival = {name: front[0][name] for name in limits if name in front[0]} | rival
    trials = [rival, *front]  # the champion first: it stays when the rule is indifferent
    points = [
        constrained([METRICS[name].sign * metrics[name] for name in objectives], amount)
        for metrics, amount in zip(trials, (beyond, *(violation(known, each) for each in front)), strict=True)
    ]
    first = [index for index, point in enumerate(points) if not any(dominates(other, point) for other in points)]
    if first[select([trials[index] for index in first], objectives, rule)] == 0:
        return Verdict(False, f"study.select={rule} chooses version {version}")
    return Verdict(True, f"better than version {version}")


def _by_evidence(
    champion: Mapping[str, str],
    version: str,
    own: Mapping[str, str],
    rival: Mapping[str, float],
    objectives: Sequence[str],
    rule: str,
) -> Verdict:
    seeds = json.loads(own.get(EVIDENCE, "[]"))
    if len(seeds) < 2:
        reason = "it has no two new seeds by which it could be held against others"
        return Verdict(False, reason, lacks_seeds=True)
    limits = judged_by(objectives, rule) - {*objectives, rule}  # of the data: an old champion was registered without
    alone = {name: seeds[0][name] for name in limits if name in seeds[0]} | dict(rival)
    others = json.loads(champion.get(EVIDENCE, "[]")) or [alone]
    evidence = weigh(seeds, others, objectives, rule)
    if evidence is None:
        lacking = [(who, _lacking(of, objectives, rule)) for who, of in (("it", seeds), (f"version {version}", others))]
        told = " and ".join(f"{who} has no finite {', '.join(names)}" for who, names in lacking if names)
        return Verdict(False, f"{told}, by which study.select={rule} compares them")
    how = "better than" if evidence.difference > 0 else "not better than"
    if evidence.holds:
        return Verdict(True, f"better than version {version} {evidence}", evidence)
    enough = "" if evidence.difference <= 0 else f", and not by {STANDARD_ERRORS:g} standard errors"
    return Verdict(False, f"{how} version {version} {evidence}{enough}", evidence)


def weigh(
    own: Sequence[Mapping[str, float]],
    champion: Sequence[Mapping[str, float]],
    objectives: Sequence[str],
    rule: str,
) -> Evidence | None:
    """Hold seeds against seeds; None where one of them has not measured what the rule looks at.

    The spread of seeds is pooled over both, so that a champion of one seed, which was registered before any was
    confirmed, counts with the error that a single seed of the other one has. That one seed was the best of many, which
    is in the champion's favour.
    """
    scores = [[score(metrics, objectives, rule) for metrics in seeds] for seeds in (own, champion)]
    if not all(math.isfinite(value) for values in scores for value in values):
        return None
    held = [Seeds(index, tuple((value,) for value in values)) for index, values in enumerate(scores)]
    noise = deviations(held)
    error = math.inf if noise is None else noise[0] * math.sqrt(sum(1 / len(values) for values in scores))
    (mine,), (rival,) = (each.means for each in held)
    return Evidence(rival - mine, error, len(own), len(champion))


def _lacking(seeds: Sequence[Mapping[str, float]], objectives: Sequence[str], rule: str) -> list[str]:
    """The metrics that a score by this rule looks at and that some seed has not."""
    names = {"first_objective": objectives[:1]}.get(rule, objectives) if rule in RULES else [rule]
    return [name for name in names if not all(math.isfinite(metrics.get(name, math.nan)) for metrics in seeds)]


def evidence_tags(seeds: Sequence[Mapping[str, float]], study: settings.StudySettings) -> dict[str, str]:
    """What a version keeps of its new seeds, and of rule and constraints by which they are held against others."""
    kept = [dict(sorted(choice_metrics(metrics, study).items())) for metrics in seeds]
    tags = {RULE: study.select, CONSTRAINTS: json.dumps(list(study.constraints))}
    return tags | ({EVIDENCE: json.dumps(kept)} if kept else {})


def promotion_rule(policy: str, rule: str | None) -> str:
    """What `tracking.promotion` asks for before a version takes the place of a champion."""
    by = "" if rule is None else f" by study.select={rule}"
    return {
        NEVER: "tracking.promotion=never: the champion is moved by hand",
        BETTER: f"tracking.promotion=better: better{by}",
        EVIDENCE: f"tracking.promotion=evidence: better{by} on new seeds, by more than {STANDARD_ERRORS:g} standard "
        "errors of the difference",
    }[policy]


def policy_of(chosen: settings.Settings) -> str:
    """The value of `tracking.promotion`, or what stands for none."""
    confirmed = chosen.study.confirm.finalists > 0
    return chosen.tracking.promotion or (EVIDENCE if confirmed else BETTER)


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
    names = compared(study)
    return {name: value for name, value in metrics.items() if name in names}


def _kept_to(tags: Mapping[str, str], objectives: Sequence[str]) -> dict[str, float]:
    """The metrics of a version that are held against constraints: means over its new seeds, where it has some."""
    seeds = json.loads(tags.get(EVIDENCE, "[]"))
    return means(seeds) if seeds else _metrics(tags, objectives)


def _metrics(tags: Mapping[str, str], objectives: Sequence[str]) -> dict[str, float]:
    """The metrics of a version; of one that was registered before they were kept, the objectives alone."""
    if CHOICE_METRICS in tags:
        return dict(json.loads(tags[CHOICE_METRICS]))
    values = json.loads(tags["objective_values"])
    return {name: METRICS[name].sign * value for name, value in zip(objectives, values, strict=True)}
