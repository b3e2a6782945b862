"""What a command brings to a model that was trained before: a data set, or single pictures.

Shapes: N images, C channels, H height, W width.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aae_ray.autoencoder.kinds import ExampleKind, RowKind
from aae_ray.autoencoder.published import Published
from aae_ray.datasets.dataset import Dataset, load
from aae_ray.datasets.pictures import decode
from aae_ray.datasets.pixels import PixelFault
from aae_ray.datasets.sources import PIXEL_SETTINGS, looks_like_path, name_for
from aae_ray.errors import UserError
from aae_ray.reading import COMMAND_LINE, Entry, build, read_overrides
from aae_ray.search.journal import JOURNAL
from aae_ray.settings import Data, dotted_fields
from aae_ray.study.loading import recorded_settings

PIXELS = tuple(f"data.{name}" for name in PIXEL_SETTINGS)  # whatever the images come from


def read_data(data: str | None, overrides: Sequence[str], model: Published) -> Dataset:
    """The set that a command names: a path, or the name of a set; none for the one that the model was trained on, which
    is then read and split as it was. Pixels of another set are read as those that the model was trained on, but for
    what the overrides say.

    Raises UserError where it cannot be read, or its images are not of the model's shape.
    """
    changes = _data_overrides(overrides)
    if data is not None and os.path.isfile(os.path.join(data, JOURNAL)):
        raise UserError(
            f"{data} is a study, and no data: name a set or a path, or nothing for the set that the model was trained "
            "on; --model is where a study goes"
        )
    if data is None and "data.path" in changes and "data.name" not in changes:
        data = str(changes.pop("data.path").value)
    if data is None or (data == model.settings.get("data.name") and not os.path.exists(data)):
        about = {key: value for key, value in model.settings.items() if key.startswith("data.")}
        dataset = load(recorded_settings(about, changes, str(model)).data)
    else:
        given = looks_like_path(data)
        key = "data.path" if given else "data.name"
        if key in changes:
            raise UserError(f"{key} is given twice: {data} and {changes[key].value}")
        entries = {key: Entry(data, COMMAND_LINE)}
        if given:
            entries["data.name"] = Entry(name_for(data), COMMAND_LINE)
        dataset = load(build(entries | _pixels_as(model, changes)).data, to_train=False)
    dataset = standardised_as(dataset, model.kind, str(model))
    if model.shape and dataset.shape != model.shape:
        own, taken = ("x".join(map(str, shape)) for shape in (dataset.shape, model.shape))
        raise UserError(
            f"data.name {dataset.name} has images of {own}, and {model} takes {taken}; {_mend(model, dataset.shape)}"
        )
    return dataset


def standardised_as(dataset: Dataset, kind: ExampleKind | None, what: str) -> Dataset:
    """A set for a model of this kind of examples: rows standardised as those of the model's training were.

    Raises UserError where one is of rows and the other of images, or the columns are others.
    """
    rows = kind if isinstance(kind, RowKind) else None
    if dataset.rows is None and rows is None:
        return dataset
    if dataset.rows is None or rows is None:
        raise UserError(f"data.name {dataset.name} holds {dataset.kind.noun}, and {what} takes {_other(dataset)}")
    if dataset.rows.columns != rows.columns:
        own = ", ".join(dataset.rows.columns)
        raise UserError(f"data.name {dataset.name} has the columns {own}, and {what} takes {', '.join(rows.columns)}")
    return replace(dataset, rows=rows)


def columns_as(kind: ExampleKind | None, what: str) -> dict[str, Entry]:
    """Settings by which another table is read as that of a model's training: its columns, in their order."""
    if not isinstance(kind, RowKind):
        return {}
    return {"data.kind": Entry("rows", what), "data.columns": Entry(kind.columns, what)}


def _other(dataset: Dataset) -> str:
    return "rows of numbers" if dataset.rows is None else "images"


def _data_overrides(overrides: Sequence[str]) -> dict[str, Entry]:
    changes = dict(read_overrides(overrides))
    if foreign := [key for key in changes if key in dotted_fields() and not key.startswith("data.")]:
        raise UserError(f"{', '.join(foreign)}: a model is used as it was trained; give settings of data.* alone")
    return changes


def _pixels_as(model: Published, changes: Mapping[str, Entry]) -> dict[str, Entry]:
    """Changes of the user's, and the settings by which the pixels that the model was trained on were read.

    A scale that was observed is that of the model's own data. Raises UserError where its ends are not known.
    """
    if isinstance(model.kind, RowKind):
        return columns_as(model.kind, str(model)) | dict(changes)
    recorded = {key: model.settings[key] for key in PIXELS if model.settings.get(key) is not None}
    if recorded.get("data.scale") == "observed" and "data.scale" not in changes:
        if model.value_range is None:
            raise UserError(
                f"{model} was trained with data.scale=observed, and does not say which values it observed; give "
                "data.scale=LOW:HIGH"
            )
        recorded["data.scale"] = ":".join(map(repr, model.value_range))
    return {key: Entry(value, str(model)) for key, value in recorded.items()} | dict(changes)


def _mend(model: Published, shape: Sequence[int]) -> str:
    """The settings by which images of another shape become those of the model."""
    channels, height, width = model.shape
    ways = []
    if tuple(shape[1:]) != (height, width):
        ways.append(f"data.size={height}x{width} resizes them")
    if shape[0] != channels:
        ways.append(f"data.channels={channels} makes them {'grey' if channels == 1 else 'coloured'}")
    return " and ".join(ways)


def read_pictures(files: Sequence[Path], overrides: Sequence[str], model: Published) -> NDArray[np.uint8]:
    """Picture files as images (N, C, H, W), read as those that the model was trained on were, but for what
    the overrides say. Raises UserError by file.
    """
    if isinstance(model.kind, RowKind):
        raise UserError(
            f"{files[0]}: {model} takes rows of numbers, and no pictures; python -m aae_ray.encode has the "
            "reconstruction error of each row of a table"
        )
    data = build(_pixels_as(model, _data_overrides(overrides))).data
    return np.stack([_picture(file, data, model) for file in files])


def _picture(file: Path, data: Data, model: Published) -> NDArray[np.uint8]:
    try:
        image_CHW = decode(file, data).transpose(2, 0, 1)
    except PixelFault as fault:
        raise UserError(f"{file} {fault}") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from None
    if model.shape and image_CHW.shape != model.shape:
        own, taken = ("x".join(map(str, shape)) for shape in (image_CHW.shape, model.shape))
        raise UserError(f"{file} is an image of {own}, and {model} takes {taken}; {_mend(model, image_CHW.shape)}")
    return image_CHW
