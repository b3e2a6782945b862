"""What settings must fulfil together, where each of them is right by itself."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import BaseModel

from aae_ray.errors import Kind, Problem
from aae_ray.settings.sections import Pruner, Sampler, Section, setting


@dataclass(frozen=True)
class Rule:
    """What values of several keys must fulfil together, where each of them is right by itself."""

    keys: tuple[str, ...]  # no two rules have the same
    holds: Callable[..., bool]  # of the values of the keys, in their order
    text: str  # when it is broken; `{prior}` stands for the value of model.prior, which is one of the keys


def _plain_address(folder: str) -> bool:
    """Whether a host or bucket, and a port, is all that stands before the path of a URI. A secret may hold a slash."""
    _, remote, rest = folder.partition("://")
    return not remote or re.match(r"[^@:/?#]*(:\d*)?([/?#]|$)", rest) is not None


def largest_population(trials: int) -> int:
    """The population of nsga2 with which a budget of trials has five generations; two of it are needed at least."""
    return max(trials // 5, 2)


# Settings that not all types take, each with those that do.
SAMPLER_SETTINGS: dict[str, tuple[str, ...]] = {
    "n_startup_trials": ("tpe", "gp"),
    "n_ei_candidates": ("tpe",),
    "gamma": ("tpe",),
    "multivariate": ("tpe",),
    "group": ("tpe",),
    "constant_liar": ("tpe",),
    "population_size": ("nsga2",),
    "qmc_type": ("qmc",),
    "scramble": ("qmc",),
}
PRUNER_SETTINGS: dict[str, tuple[str, ...]] = {
    "reduction_factor": ("asha", "median", "none"),  # with none, trials are still measured in full at the rungs
    "quantile": ("pbt",),
    "mutation_factor": ("pbt",),
    "mutate": ("pbt",),
}


WITHOUT_CONDITIONS = ("gp", "nsga2")  # types that learn only from parameters that all trials have


def _taken(section: type[Section], name: str, types: tuple[str, ...]) -> Rule:
    """A setting of the sampler or pruner has its default where its type does not take it."""
    of = f"study.{section.__name__.lower()}"
    key, kind, default = f"{of}.{name}", f"{of}.type", section.model_fields[name].default
    return Rule(
        (kind, key),
        lambda chosen, value: chosen in types or value == default,
        f"{key} is a setting of {kind} {' and '.join(types)}, and not of {{type}}; remove it, got {{{name}}}",
    )


_WITH_CLASSES = ("supervised", "semi_supervised", "semi_supervised_reduction")
WITH_CLUSTERS = ("clustering", "reduction")

RULES: tuple[Rule, ...] = (
    Rule(
        ("data.path", "data.test_path"),
        lambda path, test_path: path is not None or test_path is None,
        "data.test_path is the test part of the images in data.path; give that, too, got {test_path}",
    ),
    Rule(
        ("data.kind", "data.columns"),
        lambda kind, columns: kind != "images" or columns is None,
        "data.columns names columns of rows of numbers, and data.kind is images; remove one of them, or name the "
        "column of images with data.image_column",
    ),
    Rule(
        ("data.kind", "data.image_column"),
        lambda kind, column: kind != "rows" or column is None,
        "data.image_column names a column of images, and data.kind is rows; remove one of them, got {image_column}",
    ),
    Rule(
        ("data.columns", "data.image_column"),
        lambda columns, column: columns is None or column is None,
        "data.columns names columns of rows of numbers, and data.image_column one of images; remove one of them, got "
        "{image_column}",
    ),
    Rule(
        ("data.scale", "data.test_path"),
        lambda scale, test_path: scale != "observed" or test_path is None,
        "data.scale=observed takes another black and white from data.test_path than from data.path, and their images "
        "could not be compared; give the values that are black and white in both, data.scale=LOW:HIGH",
    ),
    Rule(
        ("data.validation_fraction", "data.test_fraction"),
        lambda validation, test: validation + test < 1,
        "data.validation_fraction and data.test_fraction leave no images to train on; their sum must be below 1, "
        "got {validation_fraction:g} and {test_fraction:g}",
    ),
    Rule(
        ("data.labels",),
        lambda labels: labels is None or labels < 1 or labels == int(labels),
        "data.labels must be a whole number or a fraction below 1, got {labels:g}",
    ),
    Rule(
        ("data.size", "data.crop"),
        lambda size, crop: size is not None or crop == "center",
        "data.crop is a matter of data.size, which is not given; give it, or remove data.crop",
    ),
    Rule(
        ("data.size", "data.resample"),
        lambda size, resample: size is not None or resample == "lanczos",
        "data.resample is the filter of data.size, which is not given; give it, or remove data.resample",
    ),
    Rule(
        ("task", "model.posterior", "model.prior"),
        lambda task, posterior, prior: task != "vae" or (posterior == "gaussian" and prior in ("gaussian", "mixture")),
        "task vae needs model.posterior gaussian and model.prior gaussian or mixture (its KL term takes their "
        "densities), got {posterior} and {prior}",
    ),
    Rule(
        ("task", "model.prior"),
        lambda task, prior: task != "label_informed" or prior in ("mixture", "swiss_roll"),
        "task label_informed needs model.prior mixture or swiss_roll, whose parts belong to the classes, got {prior}",
    ),
    Rule(
        ("task", "model.clusters", "train.batch_size"),
        lambda task, clusters, batch_size: task not in WITH_CLUSTERS or clusters <= batch_size,
        "model.clusters is more than train.batch_size can fill: each cluster should have an image in a batch, "
        "got {clusters} and {batch_size}",
    ),
    Rule(
        ("model.normalization", "train.batch_size"),
        lambda normalization, batch_size: normalization != "batch" or batch_size >= 2,
        "model.normalization batch needs a train.batch_size of at least 2, because one image alone does not differ "
        "from its mean, got {batch_size}",
    ),
    Rule(
        ("task", "model.normalization", "train.labelled_batch_size"),
        lambda task, normalization, batch_size: (
            normalization != "batch" or "semi_supervised" not in task or batch_size >= 2
        ),
        "model.normalization batch needs a train.labelled_batch_size of at least 2, because one image alone does not "
        "differ from its mean, got {labelled_batch_size}",
    ),
    Rule(
        ("train.mixed_precision", "train.dtype"),
        lambda mixed, dtype: not mixed or dtype != "float64",
        "train.mixed_precision computes products of float32 in bfloat16 and leaves train.dtype float64 alone; "
        "remove one of them",
    ),
    Rule(
        ("task", "data.labels"),
        lambda task, labels: task != "supervised" or labels is None,
        "task supervised needs the label of every image, and data.labels leaves some out; remove data.labels, "
        "got {labels:g}",
    ),
    Rule(
        ("task", "model.label_prior"),
        lambda task, shares: (
            shares == "uniform" or task in _WITH_CLASSES or (task in WITH_CLUSTERS and shares != "labels")
        ),
        "task {task} has no labels of which model.label_prior could be the distribution; let it be uniform, "
        "got {label_prior}",
    ),
    Rule(
        ("task", "model.clusters", "model.label_prior"),
        lambda task, clusters, shares: (
            task not in WITH_CLUSTERS or not isinstance(shares, tuple) or len(shares) == clusters
        ),
        "model.label_prior must have a share for each of model.clusters, got {label_prior} and {clusters}",
    ),
    Rule(
        ("study.folder",),
        _plain_address,
        "study.folder must have no user and no password in its address, as they would be written to the journal; "
        "use the environment's AWS credentials",
    ),
    *(
        Rule(
            (key,),
            lambda address: address is None or _plain_address(address),
            f"{key} must have no user and no password in its address, as they would be written to the journal; use the "
            "environment's AWS credentials",
        )
        for key in ("data.path", "data.test_path", "data.shared")
    ),
    Rule(
        ("study.pruner.type", "study.confirm.finalists"),
        lambda kind, finalists: kind != "pbt" or not finalists,
        "study.pruner.type pbt changes settings under way, so that finalists cannot be trained again alike; "
        "let study.confirm.finalists be 0, got {finalists}",
    ),
    *(_taken(Sampler, name, types) for name, types in SAMPLER_SETTINGS.items()),
    *(_taken(Pruner, name, types) for name, types in PRUNER_SETTINGS.items()),
    Rule(
        ("study.sampler.gamma",),
        lambda gamma: gamma < 1 or gamma == int(gamma),
        "study.sampler.gamma must be a whole number of trials or a fraction below 1, got {gamma:g}",
    ),
    Rule(
        ("study.sampler.type", "study.sampler.multivariate", "study.sampler.group"),
        lambda kind, multivariate, group: kind != "tpe" or multivariate or not group,
        "study.sampler.group needs study.sampler.multivariate; give study.sampler.multivariate=true as well",
    ),
    Rule(
        ("study.sampler.population_size", "study.budget.trials"),
        lambda size, trials: size is None or size <= largest_population(trials),
        "study.sampler.population_size is more than a fifth of study.budget.trials, so that there are too few "
        "generations to learn in, got {population_size} of {trials}",
    ),
)


class BrokenRules(ValueError):
    """Settings that break rules; pydantic makes a ValidationError of it, and keeps this one in its details."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        self.problems = problems
        super().__init__(problems)

    def __str__(self) -> str:
        return "\n".join(problem.text for problem in self.problems)


def broken_rules(settings: BaseModel) -> tuple[Problem, ...]:
    """A problem for every rule that these values break."""
    problems = []
    for rule in RULES:
        values = [setting(settings, key) for key in rule.keys]
        if not rule.holds(*values):
            names = (key.rpartition(".")[2] for key in rule.keys)
            text = rule.text.format(**dict(zip(names, values, strict=True)))
            problems.append(Problem(rule.keys, Kind.RULE, "settings", text))
    return tuple(problems)
