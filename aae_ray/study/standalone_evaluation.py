"""An evaluation outside of a study, of whatever names a model, recorded as an MLflow run of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aae_ray.autoencoder.kinds import ExampleKind, recorded_kind
from aae_ray.autoencoder.phases import TASKS
from aae_ray.autoencoder.published import Published, some_names
from aae_ray.datasets.dataset import Dataset, class_names, load, split_digest
from aae_ray.datasets.sources import cache_folder
from aae_ray.errors import UserError
from aae_ray.evaluation.final_evaluation import (
    CONFUSION_SHEET,
    FinalEvaluation,
    evaluate_encoder,
    evaluate_model,
    evaluate_samples,
    final_evaluation_tags,
    name_illnesses,
)
from aae_ray.evaluation.held_out import sample_generator
from aae_ray.evaluation.judge import Judge, judge_if_any
from aae_ray.reading import Entry, read_overrides
from aae_ray.search import events
from aae_ray.search.journal import Journal
from aae_ray.search.store import local_root
from aae_ray.secrets import redact
from aae_ray.settings import Settings, dotted_fields, replace, setting
from aae_ray.study.inputs import columns_as, standardised_as
from aae_ray.study.loading import checkpoint_of, checkpoint_state, load_model, recorded_settings
from aae_ray.tracking import registry
from aae_ray.tracking.mapping import trial_params
from aae_ray.tracking.provenance import provenance, unique_timestamp
from aae_ray.tracking.sender import Tracker
from aae_ray.training.loop import Training

SEND_SECONDS = 60
PLACES = ("data.", "study.folder")  # where the data are, and where the record goes
SPLIT = ("data.split_seed", "data.validation_fraction", "data.test_fraction", "data.split_column")
SOURCES = ("data.path", "data.test_path")  # which may give the same images in other parts


@dataclass(frozen=True)
class StandaloneEvaluation:
    """What was measured of what, and on which data."""

    name: str
    run: Settings
    dataset: Dataset
    judge: Judge | None
    result: FinalEvaluation
    params: Mapping[str, Any]  # the settings that are known: of a checkpoint all, of a decoder those of its data

    @property
    def run_name(self) -> str:
        return f"evaluate-{self.name}"


def measure(model: str, overrides: Sequence[str], *, version: str, uri: str, any_data: bool) -> StandaloneEvaluation:
    """Evaluate what `load_model` takes: the folder of a checkpoint, of an exported model or of a study, whose best
    trial is meant, or a registered decoder by name; overrides say where its data are. Of a checkpoint more can be
    measured, so a study that has kept it is evaluated by it.

    Raises UserError when there is no such thing, when the data are others or split otherwise, unless `any_data`, or
    when they do not fit: of another shape, or of other classes than a checkpoint with label heads.
    """
    changes = read_overrides(overrides)
    if foreign := [key for key in changes if key in dotted_fields() and not key.startswith(PLACES)]:
        raise UserError(
            f"{', '.join(foreign)}: a model is evaluated as it was trained; give {' and '.join(PLACES)} alone"
        )
    if (folder := checkpoint_of(model)) is not None:
        return _checkpoint(folder, changes, any_data)
    try:
        found = load_model(model, version=version, uri=uri)
    except registry.NoPartner:
        found = load_model(model, version=version, uri=uri, encoder=False)
    return _published(found, changes, any_data)


def _checkpoint(folder: Path, changes: Mapping[str, Entry], any_data: bool) -> StandaloneEvaluation:
    state = checkpoint_state(folder)
    kind = recorded_kind(state["shape"], state.get("rows"))
    run = recorded_settings(state["settings"], _of_other_data(kind, changes, str(folder)), str(folder))
    dataset = standardised_as(load(run.data), kind, str(folder))
    _same_data(str(folder), state["data_digest"], kind.shape, dataset, any_data)
    _same_split(str(folder), state["settings"], state.get("split", ""), run, dataset, any_data)
    own, names = tuple(state.get("class_names") or ()), class_names(dataset)
    if TASKS[run.task].y == "classes" and own != names and len(own) == len(names):
        raise UserError(
            f"{folder} was trained on the classes {some_names(own)}, in this order, and data.name {dataset.name} has "
            f"{some_names(names)}: one would be taken for another"
        )
    training = Training(run, dataset)
    try:
        training.load_state_dict(state | {"data_digest": dataset.digest})
    except (RuntimeError, KeyError):
        raise UserError(
            f"{folder} was trained with task {run.task} on {state.get('classes', 'other')} classes, and data.name "
            f"{dataset.name} has {dataset.classes or 'none'}: its weights do not fit"
        ) from None
    judge = judge_if_any(dataset, cache_folder(run.data))
    result = evaluate_model(training.evaluation, judge, training.history[-1] if training.history else {})
    return StandaloneEvaluation(checkpoint_name(folder), run, dataset, judge, result, trial_params(run))


def checkpoint_name(folder: Path) -> str:
    """STUDY/TRIAL/CHECKPOINT where it lies in a study's folder, as each trial of each study has an epoch_00027."""
    *_, study, trials, trial, name = ("", "", "", *folder.resolve().parts)
    return f"{study}/{trial}/{name}" if trials == "trials" else name


def _published(found: Published, changes: Mapping[str, Entry], any_data: bool) -> StandaloneEvaluation:
    what = str(found)
    about = {key: value for key, value in found.settings.items() if key.startswith("data.")}
    run = recorded_settings(about, _of_other_data(found.kind, changes, what), what)
    dataset = standardised_as(load(run.data), found.kind, what)
    _same_data(what, found.data_digest, found.shape, dataset, any_data)
    _same_split(what, about, found.split, run, dataset, any_data)
    judge = judge_if_any(dataset, cache_folder(run.data))
    result = evaluate_samples(
        lambda count: dataset.kind.from_published(found.draw(count, sample_generator())), dataset, judge
    )
    if found.encoder is not None:
        evaluate_encoder(result, found, dataset)
    name_illnesses(result, {}, run)
    params = {key: value for key, value in trial_params(run).items() if key.startswith("data.")}
    name = f"{found.name}-{found.version}" if found.version else Path(found.name).resolve().name
    return StandaloneEvaluation(name, run, dataset, judge, result, params)


def _of_other_data(kind: ExampleKind | None, changes: Mapping[str, Entry], what: str) -> Mapping[str, Entry]:
    """The changes, with the model's own columns where they name another table."""
    return {**columns_as(kind, what), **changes} if "data.path" in changes else changes


def _same_data(what: str, digest: str, shape: tuple[int, ...], dataset: Dataset, any_data: bool) -> None:
    if shape != dataset.shape:
        told, own = ("x".join(map(str, some)) for some in (shape, dataset.shape))
        raise UserError(f"{what} makes {dataset.kind.noun} of {told}, and those of data.name {dataset.name} are {own}")
    if digest != dataset.digest and not any_data:
        raise UserError(
            f"{what} was trained on data with digest {digest}, and data.name {dataset.name} has {dataset.digest}; "
            "name its own data with data.name and data.path, or give --any-data"
        )


def _same_split(
    what: str, recorded: Mapping[str, Any], split: str, run: Settings, dataset: Dataset, any_data: bool
) -> None:
    """The images are the same, but those to test on may be some that the model was trained on. `split` is the digest of
    the model's own split, empty where it was not recorded: then its settings have to do."""
    if any_data or split == split_digest(dataset):
        return
    own = recorded_settings(recorded, {}, what)
    other = {
        key: setting(own, key) for key in SPLIT + (SOURCES if split else ()) if setting(own, key) != setting(run, key)
    }
    if not other and not split:
        return
    changes = (f"{key}={_shown(setting(run, key))} instead of {_shown(value)}" for key, value in other.items())
    told, mend = ", ".join(changes), "leave that setting out, or give --any-data"
    before = _split_as(replace(run, other), split, dataset)
    if before is None:
        told = told or f"the source of data.name {dataset.name} gives other parts than it did"
        raise UserError(f"{told}: {what} may have been trained on images that would test it; {mend}")
    if shared := len(np.intersect1d(dataset.test, before.train)):
        raise UserError(
            f"{told}: {what} was trained on {shared} of the {len(dataset.test)} images that would test it; {mend}"
        )


def _split_as(run: Settings, split: str, dataset: Dataset) -> Dataset | None:
    """The same images, split as a model's own were; None where their source is not there any more, or has changed."""
    try:
        before = load(run.data)
    except UserError:
        return None
    return before if before.digest == dataset.digest and split in ("", split_digest(before)) else None


def _shown(value: Any) -> str:
    return "none given" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


class Recorded(NamedTuple):
    """What became of an evaluation's records: where they are kept, how many wait there, what MLflow refused."""

    folder: Path
    unsent: int
    refused: list[str]


def record(found: StandaloneEvaluation, uri: str) -> Recorded:
    """Write an evaluation to MLflow as a run of its own, with its figures."""
    folder = local_root(found.run.study.folder) / f"evaluation-{unique_timestamp()}"
    folder.mkdir(parents=True)
    for name, content in found.result.sheets.items():  # of their own: they may be sent when the user's file is another
        (folder / name).write_bytes(content)
    tags = {
        "aae.study_id": folder.name,
        "aae.run_kind": "evaluation",
        "aae.evaluated": found.name,
        "aae.data_digest": found.dataset.digest,
        **final_evaluation_tags(found.result, found.judge),
        **provenance(),
    }
    journal = Journal.create(folder)
    journal.append(
        events.Evaluated(
            run_name=found.run_name,
            experiment=events.default_experiment(found.dataset.name),
            params=dict(found.params),
            metrics=dict(found.result.metrics),
            tags={key: redact(str(value)) for key, value in tags.items() if value},
            data=events.DataRecord.of(found.dataset),
            sheet=found.result.sheet_name,
            confusion=CONFUSION_SHEET if found.result.has_confusion_sheet else None,
        )
    )
    tracker = Tracker(folder, journal.history, uri)
    unsent = tracker.close(SEND_SECONDS)
    return Recorded(folder, unsent, tracker.parked)
