"""What is recorded of a study and its trials, and under which names: the parent run, the children, the best decoder."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aae_ray.datasets.dataset import Dataset, cache_folder
from aae_ray.evaluation.final_evaluation import NEAREST_SHEET, FinalEvaluation, evaluate_model, final_evaluation_tags
from aae_ray.evaluation.judge import judge_if_any
from aae_ray.reporting import report
from aae_ray.reporting.cards import best_config, model_card, summary
from aae_ray.search.ledger import Ledger, TrialRecord
from aae_ray.search.space import Plan
from aae_ray.settings import Settings, flatten, replace
from aae_ray.tracking import registry
from aae_ray.tracking.provenance import provenance
from aae_ray.tracking.sender import STUDY, Tracker
from aae_ray.training.loop import Training

STATUS = {"complete": "FINISHED", "stopped": "KILLED", "failed": "FAILED", "running": "RUNNING"}
ABOUT = ("task", "prior", "prior_scale", "prior_components", "latent_dim", "classes", "image_shape", "data.digest")
FIGURES = "figures"  # of trials, in the study's folder
STUDY_KEYS = ("study.", "tracking.")  # settings of the study, not of a trial


class Records:
    """Turns events of a study into runs, params, metrics, tags and artifacts of MLflow."""

    def __init__(self, tracker: Tracker, plan: Plan, study_id: str, dataset: Dataset) -> None:
        self.tracker, self.plan, self.study_id, self.dataset = tracker, plan, study_id, dataset
        self.tags = {
            "aae.study_id": study_id,
            "aae.seed": plan.settings.seed,
            "aae.data_digest": dataset.digest,
            **provenance(),
        }

    # ------------------------------------------------------------------------------------------------------ the parent

    def study_began(self) -> None:
        run = self.plan.settings
        self.tracker.create_run(STUDY, f"study-{self.study_id}", self.tags | {"aae.run_kind": "study"}, time.time())
        searched = {f"space.{key}": str(distribution) for key, distribution in self.plan.space.items()}
        self.tracker.log_params(
            STUDY,
            {key: value for key, value in flatten(run).items() if key not in self.plan.space} | searched,
        )
        self._log_dataset(STUDY)

    def plots(self, pages: Sequence[Path]) -> None:
        for page in pages:
            self.tracker.log_artifact(STUDY, page, "plots")

    def study_ended(self, ledger: Ledger, status: str) -> None:
        self.tracker.set_tags(STUDY, {"mlflow.note.content": summary(ledger)})
        self.tracker.end_run(STUDY, status, time.time())

    # ---------------------------------------------------------------------------------------------------- the children

    def trial_began(self, record: TrialRecord) -> None:
        if record.attempts > 1:
            self.tracker.set_tags(record.name, {"aae.attempt": record.attempts})
            return
        run = replace(self.plan.settings, record.params)
        told = report.describe(record.params)
        tags = self.tags | {
            "aae.seed": run.seed,
            "aae.run_kind": "trial",
            "aae.trial_id": record.trial_id,
            "aae.attempt": 1,
        }
        self.tracker.create_run(record.name, f"{record.name}-{told}".rstrip("-"), tags, record.started)
        self.tracker.log_params(record.name, trial_params(run))
        self._log_dataset(record.name)

    def trial_epoch(self, record: TrialRecord, metrics: Mapping[str, float]) -> None:
        finite = {name: value for name, value in metrics.items() if name != "epoch" and math.isfinite(value)}
        self.tracker.log_metrics(record.name, finite, int(metrics["epoch"]))

    def trial_picture(self, record: TrialRecord, picture: Path) -> None:
        self.tracker.log_artifact(record.name, picture, "figures")

    def trial_ended(self, record: TrialRecord, ledger: Ledger) -> None:
        best = {f"best/{name}": value for name, (value, _) in record.best.items()}
        if ledger.objectives[0] in record.best:
            best["best/epoch"] = float(record.best[ledger.objectives[0]][1])
        if best:
            self.tracker.log_metrics(record.name, best, 0)
        self.tracker.set_tags(record.name, {"aae.stop_reason": record.stop_reason, "aae.message": record.message})
        self.tracker.end_run(record.name, STATUS[record.state], record.ended or time.time())
        self._progress(ledger)

    def _progress(self, ledger: Ledger) -> None:
        complete = ledger.complete()
        ended = sum(record.ended is not None for record in ledger.records)
        metrics = {f"study/trials_{state}": float(ledger.count(state)) for state in ("complete", "stopped", "failed")}
        if complete:
            metrics["study/front_size"] = float(len(ledger.front()))
            for index, name in enumerate(ledger.objectives):
                best = min(complete, key=lambda record: ledger.values(record)[index])
                metrics[f"study/best_{name.partition('/')[2]}"] = best.metrics[name]
        self.tracker.log_metrics(STUDY, metrics, ended)

    def _log_dataset(self, run: str) -> None:
        data = self.dataset
        sizes = {
            "train": len(data.train),
            "val": len(data.val),
            "test": len(data.test),
            "shape": list(data.shape),
        }
        self.tracker.log_dataset(run, data.name, data.digest, "train", sizes)

    # --------------------------------------------------------------------------------------------------------- the best

    def finalist(self, record: TrialRecord, training: Training) -> FinalEvaluation:
        """What a trial is worth on the test images, that no choice has seen, and what its samples are worth."""
        judge = judge_if_any(training.dataset, cache_folder(training.settings.data))
        assessment = evaluate_model(training.evaluation, judge)
        self.tracker.set_tags(record.name, final_evaluation_tags(assessment, judge))
        finite = {name: value for name, value in assessment.metrics.items() if math.isfinite(value)}
        self.tracker.log_metrics(record.name, finite, 0)
        folder = self.tracker.spool.path.parent / FIGURES / record.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / NEAREST_SHEET).write_bytes(assessment.nearest_sheet)
        self.trial_picture(record, folder / NEAREST_SHEET)
        return assessment

    def best(
        self,
        record: TrialRecord,
        training: Training,
        assessment: FinalEvaluation,
        folder: Path,
        ledger: Ledger,
        *,
        register: bool,
    ) -> None:
        """The winner: its settings, and its decoder for the registry."""
        self.tracker.set_tags(STUDY, {"aae.best_trial": record.name})
        self.tracker.log_artifact(STUDY, best_config(training.settings, folder / "best_config.yaml"))
        if not register:
            return
        tags = self._version_tags(record, training, ledger, assessment.metrics)
        name = training.settings.tracking.model_name or f"aae-{training.settings.data.name}-decoder"
        card = model_card(name, record, training.settings, training.model.classes, assessment, self.study_id)
        about = {key: tags[key] for key in ABOUT}
        exported = registry.export(training.model, folder, about)
        (folder / "model_card.md").write_text(card, encoding="utf-8")
        self.tracker.log_artifact(record.name, folder / "model_card.md")
        self.tracker.register(
            record.name,
            {
                "name": name,
                "folder": str(exported),
                "tags": tags,
                "card": card,
                "description": f"Decoders of autoencoders of {training.settings.data.name}: codes in, images out.",
                "front": [ledger.values(member) for member in ledger.front()],
                "rule": training.settings.study.select,
            },
        )

    def _version_tags(
        self, record: TrialRecord, training: Training, ledger: Ledger, test: Mapping[str, float]
    ) -> dict[str, str]:
        run = training.settings
        tags = {
            "aae.trial": f"{self.study_id}/{record.trial_id}/{record.epoch}",
            **{key: value for key, value in flatten(run).items() if key.startswith("data.") and value is not None},
            "data.digest": self.dataset.digest,
            "data.split": f"seed {run.data.split_seed}, validation {run.data.validation_fraction:g}, "
            f"test {run.data.test_fraction:g}",
            "image_shape": "x".join(map(str, self.dataset.shape)),
            "task": run.task,
            "posterior": run.model.posterior,
            "prior": run.model.prior,
            "prior_scale": run.model.prior_scale,
            "prior_components": run.model.prior_components,
            "classes": training.model.classes,
            "latent_dim": run.model.latent_dim,
            "objectives": ",".join(ledger.objectives),
            "objective_values": json.dumps(ledger.values(record)),
            **{name: record.metrics[name] for name in ledger.objectives},
            **{name: value for name, value in test.items() if name in ("test/reconstruction_mse", "test/jsd_nats")},
        }
        return {key: str(value) for key, value in tags.items()}


def trial_params(run: Settings) -> dict[str, Any]:
    """Every setting of a trial under its dotted key, constants too, so that runs compare."""
    return {key: value for key, value in flatten(run).items() if not key.startswith(STUDY_KEYS)}
