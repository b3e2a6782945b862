"""The end of a study: what is complete is chosen from, measured on the test images, exported, registered."""

import json
from pathlib import Path
from typing import Any

from aae_ray.autoencoder.kinds import RowKind
from aae_ray.datasets.dataset import Dataset, class_names, split_digest
from aae_ray.datasets.sources import cache_folder
from aae_ray.errors import UserError
from aae_ray.evaluation.constants import Constants
from aae_ray.evaluation.final_evaluation import FinalEvaluation, evaluate_model, final_evaluation_tags
from aae_ray.evaluation.judge import judge_if_any
from aae_ray.reporting.cards import best_config, model_card
from aae_ray.search import events
from aae_ray.search.choice import select
from aae_ray.search.conductor import Conductor
from aae_ray.search.constraints import constraints_of, violation
from aae_ray.search.ledger import Ledger
from aae_ray.search.promotion import choice_metrics, choice_tags, evidence_tags, policy_of
from aae_ray.search.store import Store
from aae_ray.search.trial_record import TrialRecord
from aae_ray.settings import flatten, replace
from aae_ray.study.files import FIGURES
from aae_ray.tracking import registry
from aae_ray.training import checkpoint
from aae_ray.training.loop import Training

# Tags that an exported model keeps with it, with those of its data: what its codes are drawn from, and how well it
# reconstructs.
ABOUT = (
    "task",
    "prior",
    "prior_scale",
    "prior_components",
    "latent_dim",
    "classes",
    "label_shares",
    "image_shape",
    registry.RECONSTRUCTION,
)


def choose(ledger: Ledger, rule: str) -> TrialRecord | None:
    """The best trial by the rule of `study.select`: of the finalists that were confirmed, by their new seeds, among
    those that violate study.constraints least, and where none were, of the front."""
    if confirmed := ledger.confirmed():
        constraints = constraints_of(ledger.current_plan.settings.study)
        beyond = [violation(constraints, metrics) for _, metrics in confirmed]
        left = [each for each, amount in zip(confirmed, beyond, strict=True) if amount == min(beyond)]
        return left[select([metrics for _, metrics in left], ledger.objectives, rule)][0]
    front = ledger.front()
    return front[select([ledger.judged(trial) for trial in front], ledger.objectives, rule)] if front else None


def finalists(ledger: Ledger, best: TrialRecord | None, which: str) -> list[TrialRecord]:
    """The trials that `study.finalists` names, the best one first: an interruption must not cost it."""
    if best is None:
        return []
    others = {"all": ledger.complete(), "front": ledger.front(), "best": [best]}[which]
    return [best, *(trial for trial in others if trial is not best)]


def rebuild(dataset: Dataset, trial: TrialRecord, store: Store, constants: Constants) -> Training:
    """A trial's training from its checkpoint, on the CPU. Raises UserError when there is none that can be read."""
    settings = replace(trial.plan.settings, {**trial.params, "train.device": "cpu"})
    training = Training(settings, dataset, constants=constants)
    training.load_state_dict(checkpoint.load(last_checkpoint(trial, store)))
    return training


def last_checkpoint(trial: TrialRecord, store: Store) -> Path:
    """The folder of a trial's last checkpoint, on this machine. Raises UserError when there is none."""
    if trial.checkpoint is None:
        raise UserError(f"{trial.name} has no checkpoint")
    try:
        return store.fetch(trial.checkpoint)
    except OSError as error:
        raise UserError(f"the checkpoint of {trial.name} cannot be read: {error}") from None


def measure(
    conductor: Conductor, dataset: Dataset, trial: TrialRecord, store: Store, constants: Constants
) -> tuple[Training, FinalEvaluation]:
    """What a trial is worth on the test images, which no choice has seen, and what its samples are worth."""
    training, folder = rebuild(dataset, trial, store, constants), store.local
    judge = judge_if_any(dataset, cache_folder(training.settings.data))
    result = evaluate_model(training.evaluation, judge, training.history[-1])
    sheets = {Path(FIGURES, trial.name, name): content for name, content in result.sheets.items()}
    for path, content in sheets.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    conductor.record(
        events.Measured(
            number=trial.number,
            metrics=dict(result.metrics),
            remarks=tuple(result.remarks),
            tags=final_evaluation_tags(result, judge),
        ),
        *(events.FileWritten(number=trial.number, path=str(path), folder=FIGURES) for path in sheets),
    )
    return training, result


def publish(
    conductor: Conductor,
    trial: TrialRecord,
    training: Training,
    result: FinalEvaluation,
    folder: Path,
    *,
    register: bool,
) -> None:
    """Write the best trial's settings, its encoder and decoder and its card, and ask for their registration."""
    ledger, settings = conductor.ledger, replace(trial.plan.settings, trial.params)
    assert ledger.started is not None
    best_config(settings, folder / "best_config.yaml")
    conductor.record(events.FileWritten(number=None, path="best_config.yaml", folder=None))
    request: dict[str, Any] | None = None
    study = ledger.current_plan.settings.study
    if register:
        name = settings.tracking.model_name or f"aae-{settings.data.name}-decoder"
        tags = version_tags(trial, training, ledger, result) | evidence_tags(ledger.evidence(trial), study)
        shares_K = training.model.label_shares_K
        shares = [] if shares_K is None else shares_K.tolist()
        encoder = registry.encoder_name(name)
        card = model_card(
            name, encoder, trial, settings, shares, result, ledger.started.study_id, training.dataset.kind
        )
        about = {key: value for key, value in tags.items() if key in ABOUT or key.startswith("data.")}
        about[registry.CLASS_NAMES] = json.dumps(class_names(training.dataset))
        if isinstance(training.dataset.kind, RowKind):
            about[registry.ROWS] = json.dumps(training.dataset.kind.record())
        noun = training.dataset.kind.noun
        exported = {}
        for kind in (registry.DECODER, registry.ENCODER):
            exported[kind] = f"{kind}/{trial.name}_epoch_{trial.epoch:05d}"  # an extended study may choose another
            registry.export(training.evaluation.model, folder / exported[kind], about, kind)
        (folder / "model_card.md").write_text(card, encoding="utf-8")
        conductor.record(events.FileWritten(number=trial.number, path="model_card.md", folder=None))
        request = {
            "name": name,
            "folder": exported[registry.DECODER],
            "tags": tags,
            "card": card,
            "description": f"Decoders of autoencoders of {settings.data.name}: codes in, {noun} out.",
            "encoder": {
                "name": encoder,
                "folder": exported[registry.ENCODER],
                "card": card,
                "description": f"Encoders of autoencoders of {settings.data.name}: {noun} in, codes out.",
            },
            "front": [choice_metrics(ledger.judged(member), study) for member in _front_with(trial, ledger)],
            "constraints": list(study.constraints),
            "rule": settings.study.select,
            "policy": policy_of(ledger.current_plan.settings),
        }
    conductor.record(events.Chosen(number=trial.number, registration=request))


def _front_with(best: TrialRecord, ledger: Ledger) -> list[TrialRecord]:
    """The front, with the best trial, which new seeds may have chosen and taken off it."""
    front = ledger.front()
    return front if best in front else [best, *front]


def version_tags(trial: TrialRecord, training: Training, ledger: Ledger, result: FinalEvaluation) -> dict[str, str]:
    """What is known of a registered version: where it comes from, its prior, its values."""
    settings, data = training.settings, training.dataset
    assert ledger.started is not None
    kept = {*ledger.objectives, registry.RECONSTRUCTION}
    test = ("test/reconstruction_mse", "test/jsd_nats")
    tags = {
        "aae.trial": f"{ledger.started.study_id}/{trial.name}/{trial.epoch}",
        **{key: value for key, value in flatten(settings).items() if key.startswith("data.") and value is not None},
        "data.digest": data.digest,
        "data.split": f"seed {settings.data.split_seed}, validation {settings.data.validation_fraction:g}, "
        f"test {settings.data.test_fraction:g}, digest {split_digest(data)}",
        registry.SPLIT_DIGEST: split_digest(data),
        registry.VALUE_RANGE: json.dumps(data.value_range),
        "image_shape": "x".join(map(str, data.shape)),
        "task": settings.task,
        "posterior": settings.model.posterior,
        "prior": settings.model.prior,
        "prior_scale": settings.model.prior_scale,
        "prior_components": settings.model.prior_components,
        "classes": training.model.classes,
        "label_shares": _recorded_shares(training),
        "latent_dim": settings.model.latent_dim,
        **choice_tags(ledger.judged(trial), ledger.current_plan.settings.study),
        **{name: value for name, value in trial.metrics.items() if name in kept},
        **{name: value for name, value in result.metrics.items() if name in test},
    }
    return {key: str(value) for key, value in tags.items()}


def _recorded_shares(training: Training) -> str:
    """p(y) where it is not uniform, which the number of classes alone does not tell."""
    shares_K = training.model.label_shares_K
    if shares_K is None or training.settings.model.label_prior == "uniform":
        return ""
    return ",".join(map(repr, shares_K.tolist()))
