"""What a study leaves behind to be read: the best trial's settings, the model card, the summary on the parent run."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from aae_ray.autoencoder.kinds import ExampleKind, RowKind
from aae_ray.evaluation.final_evaluation import FinalEvaluation
from aae_ray.evaluation.metrics import METRICS
from aae_ray.reporting.tables import objective_value, outcome_counts, searched_keys, trials_text, values_of
from aae_ray.reporting.text import counted, heading, number
from aae_ray.search.ledger import Ledger
from aae_ray.search.outcomes import StudyEnd
from aae_ray.search.space import Plan
from aae_ray.search.trial_record import TrialRecord
from aae_ray.secrets import without_userinfo
from aae_ray.settings import Settings, dotted_fields, setting

SAMPLE_SHEET = "samples.png"  # among a trial's figures


def best_config(settings: Settings, path: Path) -> Path:
    """A file that `python -m aae_ray.train` takes: every setting that shapes the trial, what it was chosen by, and the
    name that its decoder was registered under, if it had one of its own."""
    values = {}
    for key in dotted_fields():
        if not key.startswith(("study.", "tracking.")):
            value = setting(settings, key)
            values[key] = list(value) if isinstance(value, tuple) else value
    if settings.tracking.model_name:
        values["tracking.model_name"] = settings.tracking.model_name
    study = {"name": f"{settings.study.name}-best", "objectives": list(settings.study.objectives)}
    text = yaml.safe_dump({"study": study, "run": values}, sort_keys=False)
    path.write_text(f"# python -m aae_ray.train {path.name}\n{text}", encoding="utf-8")
    return path


def model_card(
    name: str,
    encoder: str,
    trial: TrialRecord,
    settings: Settings,
    label_shares: Sequence[float],
    result: FinalEvaluation,
    study_id: str,
    kind: ExampleKind,
) -> str:
    """Markdown: what decoder and encoder are, how good they are on what no choice has seen, and how to use them.

    `label_shares` are p(y) of the label that the decoder is given, none where there is no label.
    """
    model, classes = settings.model, len(label_shares)
    codes = f"{classes} + {model.latent_dim}: a one-hot label, then a style" if classes else model.latent_dim
    rows = [
        f"| {metric} | {value:.4f} | {METRICS[metric].unit} |"
        for metric, value in result.metrics.items()
        if metric in METRICS
    ]
    return "\n".join(
        [
            f"# {name}",
            "",
            f"Decoder and encoder of trial {trial.name} of study {study_id}: task {settings.task}, {model.posterior} "
            f"posterior, {model.latent_dim}-dimensional {model.prior} "
            f"prior of scale {model.prior_scale:g}, trained on {settings.data.name} for "
            f"{counted(trial.epoch, 'epoch')}.",
            *([f"Labels are drawn from p(y) = {_shares(label_shares)}."] if classes else []),
            "",
            f"| metric on the test {kind.noun} | value | unit |",
            "|---|---:|---|",
            *rows,
            "",
            *([f"Columns of a row: {', '.join(kind.columns)}.", ""] if isinstance(kind, RowKind) else []),
            *(f"* {remark}" for remark in result.remarks),
            *([""] if result.remarks else []),
            "```python",
            "import mlflow, torch",
            f'decoder = mlflow.pytorch.load_model("models:/{name}@champion")     # needs torch and mlflow alone',
            f"{kind.noun} = decoder(codes)  # codes (B, {codes}) in, {_out(kind)} out",
            f'encoder = mlflow.pytorch.load_model("models:/{encoder}@champion")',
            f'code = encoder({kind.noun})["code"]  # and its "sigma" and "probabilities", where the model has them',
            "```",
            "",
        ]
    )


def _out(kind: ExampleKind) -> str:
    if isinstance(kind, RowKind):
        return f"rows (B, {kind.size}) of doubles, in the units of the data,"
    return "images (B, C, H, W) in [0, 1]"


def _shares(shares: Sequence[float]) -> str:
    if len(set(shares)) == 1:
        return f"1 / {len(shares)} each"
    return ", ".join(f"{share:.3g}" for share in shares)


def summary(ledger: Ledger) -> str:
    """Markdown for the parent run: the front as a table, and how the trials ended."""
    keys = searched_keys(ledger)
    head = ["trial", *map(heading, ledger.objectives), *keys]
    rows = [
        [
            trial.name,
            *(objective_value(ledger, trial, name) for name in ledger.objectives),
            *(number(values[key]) if key in values else "" for key in keys),
        ]
        for trial in ledger.front()
        for values in [values_of(trial, keys)]
    ]
    table = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    counts = ", ".join(f"{count} {what}" for what, count in outcome_counts(ledger).items())
    lines = [f"{trials_text(ledger)}: {counts}."]
    if ledger.end is not None and ledger.end is not StudyEnd.PLANNED:
        lines.append(f"Stopped before its planned end: {ledger.end_message or ledger.end}.")
    return "\n".join([*lines, "", "Pareto front:", "", *table])


def resolved(plan: Plan) -> str:
    """The whole study as the text of a study's file, with every default spelled out, and no user or password of an
    address."""
    values = {key: setting(plan.settings, key) for key in dotted_fields()}
    if values["tracking.uri"] is not None:
        values["tracking.uri"] = without_userinfo(values["tracking.uri"])
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    return yaml.safe_dump(
        {
            "study": {key.removeprefix("study."): value for key, value in plain.items() if key.startswith("study.")},
            "run": {
                key: value
                for key, value in plain.items()
                if not key.startswith("study.") and (key not in plan.space or key in plan.conditions)
            },
            "space": {key: plan.spec(key) for key in plan.space},
            "start": [dict(point) for point in plan.start],
        },
        sort_keys=False,
    )
