"""The figures of a trial: reconstructions, samples, and the codes against their prior.

A worker only collects the data behind the figures, which is cheap. Whoever keeps the records draws them, once a trial
pauses or has ended, off the path of the training.

Shapes: N images, rows or codes, C channels, H height, W width, D columns, Z code.
"""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from aae_ray.autoencoder.kinds import RowKind
from aae_ray.autoencoder.phases import TASKS
from aae_ray.evaluation import drawing as figures
from aae_ray.evaluation.drawing_rows import column_histograms, column_scatters
from aae_ray.evaluation.held_out import HeldOutMetrics, some_of

COUNT = 64  # images in a picture
CODES = 2000  # points in the scatter
FILE = "figure_data.npz"
ROWS = 500  # of numbers, whose spread is shown
STYLES = 8  # rows of the sheet of styles
FIGURES = ("reconstructions.png", "samples.png", "codes.png")
STYLE_SHEET = "styles.png"  # where the decoder is given a label: a style a row, a label a column

FigureData = Mapping[str, NDArray[np.generic]]


def figure_data(evaluation: HeldOutMetrics) -> FigureData:
    """The data behind the figures of a model: images as uint8, or rows in their own units; the first two coordinates of
    held-out codes."""
    model, dataset = evaluation.settings.model, evaluation.dataset
    labels_N = dataset.labels_N
    inputs_NZ = evaluation.decoder_inputs("val")
    shown = some_of(np.arange(len(inputs_NZ)), CODES)
    codes_NZ = inputs_NZ[torch.from_numpy(shown)]
    what = "codes W y + z" if "cluster_heads" in evaluation.model.networks else "codes"
    task = evaluation.settings.task.replace("_", " ")
    title = f"{task}: held-out {what}\n{model.posterior} posterior, {model.prior.replace('_', ' ')} prior"
    if model.latent_dim > 2:
        title += f", first two of {model.latent_dim} coordinates"
    kind = dataset.kind
    data: dict[str, NDArray[np.generic]] = {
        **(_rows(evaluation, kind) if isinstance(kind, RowKind) else _images(evaluation)),
        "codes": codes_NZ[:, :2].float().numpy(),
        "prior": evaluation.prior(len(codes_NZ))[:, :2].float().numpy(),
        "title": np.array(title),
    }
    if labels_N is not None:
        data["labels"] = np.asarray(labels_N)[dataset.val[shown]]
    if dataset.class_names:
        data["class_names"] = np.array(dataset.class_names)
    if evaluation.model.classes and not isinstance(kind, RowKind):
        data["styles"] = _bytes(evaluation.styles(STYLES))
        if dataset.class_names and TASKS[evaluation.settings.task].y == "classes":
            data["style_names"] = np.array(dataset.class_names)
    return data


def _images(evaluation: HeldOutMetrics) -> dict[str, NDArray[np.generic]]:
    originals_NCHW, answers_NCHW = evaluation.reconstructions("val", COUNT // 2)
    return {
        "originals": _bytes(originals_NCHW),
        "answers": _bytes(answers_NCHW),
        "samples": _bytes(evaluation.samples(COUNT)),
    }


def _rows(evaluation: HeldOutMetrics, kind: RowKind) -> dict[str, NDArray[np.generic]]:
    originals_ND, answers_ND = evaluation.reconstructions("val", ROWS)
    parts = {"originals": originals_ND, "answers": answers_ND, "samples": evaluation.samples(len(originals_ND))}
    rows = {name: kind.to_published(kind.finite(part_ND)).numpy() for name, part_ND in parts.items()}
    return {**rows, "columns": np.array(kind.columns)}


def save(data: FigureData, folder: Path) -> None:
    np.savez(folder / FILE, allow_pickle=False, **data)


def load(content: bytes) -> FigureData:
    """The figure data in the content of a file."""
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def draw(data: FigureData) -> dict[str, bytes]:
    """File name and PNG of each figure, those that every trial has at the end."""
    sheets: dict[str, bytes] = {}
    if "styles" in data:
        images_NCHW = _pixels(data["styles"])
        headings = data["style_names"].tolist() if "style_names" in data else ()
        sheets[STYLE_SHEET] = figures.samples(images_NCHW, len(images_NCHW) // STYLES, headings)
    scatter = figures.code_scatter(
        torch.tensor(data["codes"]),
        data.get("labels"),
        torch.tensor(data["prior"]),
        title=str(data["title"]),
        names=data["class_names"].tolist() if "class_names" in data else None,
    )
    if "columns" in data:
        columns, real_ND = data["columns"].tolist(), data["originals"].astype(np.float64)
        series = {"held-out rows": real_ND, "samples": data["samples"].astype(np.float64)}
        answers_ND = data["answers"].astype(np.float64)
        reconstructions = column_scatters(real_ND, answers_ND, columns, "held-out values and their reconstructions")
        samples = column_histograms(series, columns, "rows decoded from the prior")
    else:
        reconstructions = figures.reconstructions(_pixels(data["originals"]), _pixels(data["answers"]))
        samples = figures.samples(_pixels(data["samples"]))
    return sheets | dict(zip(FIGURES, (reconstructions, samples, scatter), strict=True))


def _bytes(x_NCHW: torch.Tensor) -> NDArray[np.generic]:
    pixels: NDArray[np.generic] = x_NCHW.nan_to_num().clamp(0, 1).mul(255).round().to(torch.uint8).numpy()
    return pixels


def _pixels(x_NCHW: NDArray[np.generic]) -> torch.Tensor:
    return torch.tensor(x_NCHW) / 255
