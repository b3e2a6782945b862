"""A model by whatever names it: a registered name, a study's folder, an exported model's folder, or a checkpoint's."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aae_ray.autoencoder.kinds import recorded_kind
from aae_ray.autoencoder.model import build_model
from aae_ray.autoencoder.published import Decoder, Encoder, Published
from aae_ray.datasets.dataset import load
from aae_ray.datasets.labels import known_shares
from aae_ray.errors import UserError
from aae_ray.reading import Entry, build
from aae_ray.search.journal import JOURNAL
from aae_ray.search.store import TRIALS, read_ledger
from aae_ray.search.trial_record import TrialRecord
from aae_ray.settings import Settings, dotted_fields, flatten
from aae_ray.tracking import registry
from aae_ray.training import checkpoint
from aae_ray.training.averaging import WeightAverage

DESCRIPTION = "MLmodel"  # the file by which MLflow knows a model's folder


def load_model(
    model: str, *, version: str | int = registry.CHAMPION, uri: str = "sqlite:///mlflow.db", encoder: bool = True
) -> Published:
    """A model's decoder and, unless it is not asked for, its encoder.

    `model` is the folder of a checkpoint, of an exported model or of a study, whose best trial is meant; else the name
    of a registered model at `uri`. Raises UserError where there is no such thing, or it has no encoder.
    """
    if not model.strip():
        raise UserError("a model without a name: give that of a registered one, or the folder of a study")
    folder = Path(model)
    if _holds(folder, checkpoint.FILE):
        return from_checkpoint(folder)
    if _holds(folder, DESCRIPTION):
        return registry.load_exported(folder, encoder=encoder)
    if _holds(folder, JOURNAL):
        return _of_study(folder, encoder)
    if os.path.isdir(folder):
        raise UserError(
            f"{model} holds no model: there is no {checkpoint.FILE} of a checkpoint, no {DESCRIPTION} of an exported "
            f"model and no {JOURNAL} of a study in it"
        )
    if os.path.exists(folder):
        raise UserError(f"{model} is a file; name a registered model, or the folder of a checkpoint or a study")
    if "@" in model:  # as MLflow writes it
        if version != registry.CHAMPION:
            raise UserError(f"{model} names a version, and --version {version} another; give one of them")
        model, version = registry.name_and_version(model)
    return registry.load(model, uri, version, encoder=encoder)


def _holds(folder: Path, name: str) -> bool:
    """Whether there is such a file in it; the name of a model may be too long for one, at which a Path would raise."""
    return os.path.exists(folder / name)


def checkpoint_of(model: str) -> Path | None:
    """The folder of a checkpoint: the one that `model` names, or that of the best trial of the study which it names.

    None where it names something else, or the study has its best trial as an exported model alone. Raises UserError
    where the study has not chosen it yet.
    """
    folder = Path(model)
    if _holds(folder, checkpoint.FILE):
        return folder
    if _holds(folder, DESCRIPTION) or not _holds(folder, JOURNAL):
        return None
    trial, _ = _best(folder)
    kept = None if trial.checkpoint is None else folder / trial.checkpoint
    return kept if kept is not None and _holds(kept, checkpoint.FILE) else None


def _best(folder: Path) -> tuple[TrialRecord, str | None]:
    """The best trial of a study, and the folder in the study's that its decoder was exported to, if it was."""
    chosen = (ledger := read_ledger(folder)).chosen
    if chosen is None:
        raise UserError(
            f"{folder} has not chosen its best trial yet: go on with it, python -m aae_ray.tune --resume {folder}"
            + (f"; or name the folder of a checkpoint in {folder}/{TRIALS}" if os.path.isdir(folder / TRIALS) else "")
        )
    return ledger.trials[chosen.number], None if chosen.registration is None else chosen.registration["folder"]


def _of_study(folder: Path, encoder: bool) -> Published:
    trial, exported = _best(folder)
    if exported is not None:
        return registry.load_exported(folder / exported, encoder=encoder)
    if trial.checkpoint is None:
        raise UserError(f"{folder} has kept no checkpoint of its best trial, {trial.name}")
    return from_checkpoint(folder / trial.checkpoint)


def checkpoint_state(folder: Path) -> dict[str, Any]:
    """The state in a checkpoint's folder. Raises UserError where it is none of a training."""
    state = checkpoint.load(folder)
    if not {"settings", "data_digest", "shape", "networks"} <= state.keys():
        held = ", ".join(map(str, list(state)[:9]))
        raise UserError(f"{folder / checkpoint.FILE} is not a checkpoint of aae_ray: it holds {held or 'nothing'}")
    return state


def recorded_settings(recorded: Mapping[str, Any], changes: Mapping[str, Entry], where: str) -> Settings:
    """The settings that were kept with a model, as far as this release knows them, with changes of the user's."""
    known = dotted_fields()
    values = {
        key: Entry(value, where)
        for key, value in recorded.items()
        if key in known and value is not None and not key.startswith(("study.", "tracking."))
    }
    return build(values | dict(changes))


def from_checkpoint(folder: Path) -> Published:
    """The model of a checkpoint: the average of its weights, where it has one, as a study would publish it."""
    state = checkpoint_state(folder)
    run = recorded_settings(state["settings"], {}, str(folder))
    shares = known_shares(load(run.data), run) if run.model.label_prior == "labels" else None
    model = build_model(
        run, recorded_kind(state["shape"], state.get("rows")), classes=state.get("classes"), known_shares=shares
    )
    try:
        for name, network in model.networks.items():
            network.load_state_dict(state["networks"][name])
        if run.train.ema_decay:
            average = WeightAverage(model, run.train.ema_decay)
            average.load_state_dict(state.get("average"))
            model = average.model
    except (RuntimeError, KeyError):
        raise UserError(f"{folder}: its weights do not fit the settings that stand beside them") from None
    history = state.get("history") or [{}]
    return Published(
        name=str(folder),
        version="",
        decoder=registry.on_the_cpu(Decoder(model)),
        encoder=registry.on_the_cpu(Encoder(model)),
        task=run.task,
        prior=model.prior,
        label_shares_K=model.label_shares_K,
        data_digest=state["data_digest"],
        split=state.get("split", ""),
        kind=model.kind,
        settings={key: value for key, value in flatten(run).items() if key.startswith("data.") and value is not None},
        class_names=tuple(state.get("class_names") or ()),
        value_range=None if (ends := state.get("value_range")) is None else (ends[0], ends[1]),
        reconstruction_mse=history[-1].get(registry.RECONSTRUCTION),
    )
