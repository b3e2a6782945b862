"""What a published model makes of images: codes and scores of a whole set as a table, pictures beside reconstructions.

Shapes: N images, B images of a block, C channels, H height, W width, X numbers of a column.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aae_ray.autoencoder.model import DECODED
from aae_ray.autoencoder.phases import TASKS
from aae_ray.autoencoder.published import Encoded, Published, some_names
from aae_ray.datasets.classes import UNKNOWN
from aae_ray.datasets.dataset import Dataset, class_names
from aae_ray.datasets.image_stream import PART_NAMES
from aae_ray.datasets.images import given_examples
from aae_ray.errors import UserError
from aae_ray.evaluation import drawing
from aae_ray.evaluation.anomaly import Scores, scores


def as_images(pixels_NCHW: NDArray[np.uint8]) -> Tensor:
    """Bytes as a model takes them, in [0, 1]."""
    return torch.from_numpy(pixels_NCHW).float().div_(255)


def own_labels(model: Published, dataset: Dataset) -> Tensor | None:
    """The labels of a set as numbers of the model's own classes, (N,): sets may have the same classes in another order.

    UNKNOWN is the label of images without one, and of those whose class the model does not know. None without labels.
    Where the model does not say how its classes are called, labels stay as they are.
    """
    if dataset.labels_N is None:
        return None
    labels_N = torch.from_numpy(np.array(dataset.labels_N))
    if not model.class_names:
        return labels_N
    place = {name: label for label, name in enumerate(model.class_names)}
    own_K = torch.tensor([*(place.get(name, UNKNOWN) for name in class_names(dataset)), UNKNOWN])
    return own_K[labels_N]  # UNKNOWN, -1, is the last one


# ---------------------------------------------------------------------------------------------------------- the table


def write_codes(model: Published, dataset: Dataset, out: Path) -> int:
    """A row for each example of the set, in its order, as Parquet; returns how many. The file is there when all is.

    Columns: index, part, label and class where the set has labels, code, and as the model has them sigma,
    class_probabilities or cluster_probabilities and the representation W y + z; reconstruction_error, prior_distance
    and anomaly_score as `anomaly.scores` says. The metadata name the classes: those of the label, which are the set's,
    and those of the probabilities, which are the model's. Raises UserError.
    """
    import pyarrow.parquet as pq

    _check_classes(model, dataset)
    partial = out.with_name(f"{out.name}.partial")
    tables, count = _tables(model, dataset), 0
    try:
        first = next(tables)
        with partial.open("wb") as file, pq.ParquetWriter(file, first.schema) as writer:
            for table in chain([first], tables):
                writer.write_table(table)
                count += len(table)
        partial.rename(out)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):  # it cannot have been written where its name is too long
            partial.unlink(missing_ok=True)
    return count


def _check_classes(model: Published, dataset: Dataset) -> None:
    """A decoder that is told the class of each image must know them all. Raises UserError where it does not."""
    labels_N = own_labels(model, dataset)
    if labels_N is None or not _is_told_labels(model):
        return
    foreign_N = (labels_N == UNKNOWN) & (torch.from_numpy(np.array(dataset.labels_N)) != UNKNOWN)
    if foreign_N.any():
        names = class_names(dataset)
        foreign = [names[label] for label in np.unique(np.asarray(dataset.labels_N)[foreign_N.numpy()])]
        raise UserError(
            f"data.name {dataset.name} has {dataset.kind.noun} of class {some_names(foreign)}, and the decoder of "
            f"{model}, which is told the class of each {dataset.kind.one}, knows {some_names(model.class_names)}"
        )


def _is_told_labels(model: Published) -> bool:
    """Whether the decoder is told labels that the encoder does not find by itself."""
    return model.labels > 0 and TASKS[model.task].labels == "all"


def _tables(model: Published, dataset: Dataset) -> Iterator[Any]:
    import pyarrow as pa

    parts_N = np.empty(len(dataset.examples_NX), np.int8)
    for number, rows in enumerate((dataset.train, dataset.val, dataset.test)):
        parts_N[rows] = number
    about = {"model": str(model), "task": model.task, "prior": model.prior.name, "data": dataset.name}
    about |= {"data.digest": dataset.digest, "class_names": json.dumps(class_names(dataset))}
    about |= {"model.class_names": json.dumps(model.class_names)}
    own_N = own_labels(model, dataset)
    for start in range(0, len(parts_N), DECODED):
        rows = np.arange(start, min(start + DECODED, len(parts_N)))
        x_BX = given_examples(dataset, rows)
        labels_B = None if dataset.labels_N is None else torch.from_numpy(np.asarray(dataset.labels_N)[rows])
        own_B = None if own_N is None else own_N[rows]
        encoded = model.encode(x_BX)
        columns = {
            "index": pa.array(rows),
            "part": pa.DictionaryArray.from_arrays(pa.array(parts_N[rows]), pa.array(PART_NAMES)),
            **_label_columns(dataset, labels_B),
            **_code_columns(model, encoded),
            **{name: pa.array(values_B.numpy()) for name, values_B in _scores(model, x_BX, encoded, own_B)},
        }
        yield pa.table(columns).replace_schema_metadata(about)


def _label_columns(dataset: Dataset, labels_B: Tensor | None) -> Mapping[str, Any]:
    import pyarrow as pa

    if labels_B is None:
        return {}
    unknown_B = (labels_B == UNKNOWN).numpy()
    columns = {"label": pa.array(labels_B.numpy(), mask=unknown_B)}
    if dataset.class_names:
        names_B = np.array(dataset.class_names, dtype=object)[labels_B.numpy()]
        columns["class"] = pa.array(names_B, pa.string(), mask=unknown_B)
    return columns


def _code_columns(model: Published, encoded: Encoded) -> Mapping[str, Any]:
    import pyarrow as pa

    kind = "cluster" if TASKS[model.task].y == "clusters" else "class"
    columns = {
        "code": encoded.z_NZ,
        "sigma": encoded.sigma_NZ,
        f"{kind}_probabilities": encoded.y_NK,
        "representation": encoded.representation_NZ,
    }
    return {
        name: pa.FixedSizeListArray.from_arrays(pa.array(rows_BX.flatten().numpy()), rows_BX.shape[1])
        for name, rows_BX in columns.items()
        if rows_BX is not None
    }


def _scores(model: Published, x_BX: Tensor, encoded: Encoded, labels_B: Tensor | None) -> Iterator[tuple[str, Tensor]]:
    found = scores(model, x_BX, encoded, labels_B)
    yield from ((name.removesuffix("_N"), values_N) for name, values_N in zip(Scores._fields, found, strict=True))


class Pairs(NamedTuple):
    """Pictures beside their reconstructions, as PNG, and the squared error per pixel of each."""

    sheet: bytes
    errors: tuple[float, ...]


def reconstruct_pictures(model: Published, pixels_NCHW: NDArray[np.uint8], label: str | None) -> Pairs:
    """What the model makes of images; where its decoder is told their class, and does not know it from its encoder,
    `label` does. Raises UserError where it is missing, or known."""
    x_NCHW = as_images(pixels_NCHW)
    encoded = model.encode(x_NCHW)
    labels_N = None if label is None else torch.full((len(x_NCHW),), model.label_index(label))
    if label is not None and encoded.y_NK is not None:
        raise UserError(f"--label {label}: the encoder of {model} finds the label of each image itself")
    if label is None and model.labels and encoded.y_NK is None:
        raise UserError(
            f"{model} is of task {model.task}, and its decoder is told the class of each image: give --label"
        )
    answer_NCHW = model.reconstruct(encoded, labels_N)
    errors_N = (answer_NCHW - x_NCHW).square().flatten(1).mean(1)
    return Pairs(drawing.reconstructions(x_NCHW, answer_NCHW), tuple(errors_N.tolist()))
