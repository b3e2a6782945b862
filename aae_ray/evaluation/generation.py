"""Images or rows that a published model's decoder makes of chosen codes, as a sheet, an array or a table.

Shapes: N examples, X numbers of one in its own shape, S steps, Z code, K classes or clusters.
"""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aae_ray.autoencoder.kinds import ExampleKind, RowKind
from aae_ray.autoencoder.priors import sample_code
from aae_ray.autoencoder.published import Published, join
from aae_ray.errors import UserError
from aae_ray.evaluation import drawing
from aae_ray.evaluation.encoding import as_images

PARALLEL = 0.9995  # cosine of two directions between which there is no telling which way round is shorter


class Generated(NamedTuple):
    """Images or rows with the codes and labels that they were decoded from, and what they are, for people."""

    x_NX: Tensor
    z_NZ: Tensor
    y_NK: Tensor | None
    text: str
    columns: int | None = None  # of a sheet; None for as many as rows
    headings: tuple[str, ...] = ()  # over the columns
    kind: ExampleKind | None = None
    label_names: tuple[str, ...] = ()

    @property
    def noun(self) -> str:
        return "images" if self.kind is None else self.kind.noun


def samples(model: Published, count: int, seed: int, label: str | None) -> Generated:
    """Draws of the priors, of one label where it is given. Raises UserError for a label that there is not."""
    text = f"codes from its {model.prior.latent_dim}-dimensional {model.prior.name} prior"
    generator = torch.Generator().manual_seed(seed)
    if label is None:
        return _decoded(model, *sample_code(model.prior, model.label_shares_K, count, generator), text)
    y_NK = model.one_hot(label, count)
    return _decoded(model, model.prior.sample(count, generator), y_NK, f"label {label}, {text}")


def styles(model: Published, count: int, seed: int) -> Generated:
    """So many draws of the style, a row each, with every label, a column each (section 4 of the paper).

    Raises UserError where the decoder is told no label.
    """
    if not model.labels:
        raise UserError(f"--style: {model} is of task {model.task}, and its decoder is told no label to go through")
    z_SZ = model.prior.sample(count, torch.Generator().manual_seed(seed))
    z_NZ, y_NK = z_SZ.repeat_interleave(model.labels, 0), torch.eye(model.labels).repeat(count, 1)
    return _decoded(model, z_NZ, y_NK, "a style a row, a label a column", model.labels, model.label_names)


def prior_walk(model: Published, side: int, label: str | None) -> Generated:
    """The prior from end to end, in two dimensions or along its parts, as `Prior.walk`.

    Raises UserError where the decoder is told a label and none is given.
    """
    if model.labels and label is None:
        raise UserError(f"--grid: the decoder of {model} is told a label; give one with --label")
    z_NZ = model.prior.walk(side)
    y_NK = None if label is None else model.one_hot(label, len(z_NZ))
    told = "" if label is None else f"label {label}, "
    return _decoded(model, z_NZ, y_NK, f"{told}{model.prior.walk_text}", side)


def interpolation(model: Published, ends_2CHW: NDArray[np.uint8], steps: int, label: str | None) -> Generated:
    """From the code of one image to that of another, both ends included.

    Under a Gaussian prior along the great circle, with the radius changing evenly: a straight line would pass through
    radii that the prior does not draw (White 2016, section 2.1). Under the other priors along the straight line.
    Probabilities of labels change evenly. Raises UserError where a label is missing, or is known from the images.
    """
    encoded = model.encode(as_images(ends_2CHW))
    if label is not None and encoded.y_NK is not None:
        raise UserError(f"--label {label}: the encoder of {model} finds the labels of both images itself")
    if label is None and model.labels and encoded.y_NK is None:
        raise UserError(f"--interpolate: the decoder of {model} is told a label; give one with --label")
    t_S1 = torch.linspace(0, 1, steps).unsqueeze(1)
    (from_Z, to_Z), y_NK = encoded.z_NZ, None
    between, way = _PATHS.get(model.prior.name, (_straight, "a straight line"))
    if encoded.y_NK is not None:
        y_NK = _straight(encoded.y_NK[0], encoded.y_NK[1], t_S1)
    elif label is not None:
        y_NK = model.one_hot(label, steps)
    text = f"from one to the other in {steps} steps along {way} between their codes"
    return _decoded(model, between(from_Z, to_Z, t_S1), y_NK, text, steps)


def _straight(from_Z: Tensor, to_Z: Tensor, t_S1: Tensor) -> Tensor:
    return from_Z + t_S1 * (to_Z - from_Z)


def _great_circle(from_Z: Tensor, to_Z: Tensor, t_S1: Tensor) -> Tensor:
    """Directions along the great circle, and radii evenly; straight where a direction is missing or both are one."""
    radii = from_Z.norm(), to_Z.norm()
    if min(radii) == 0:
        return _straight(from_Z, to_Z, t_S1)
    cosine = (from_Z / radii[0]) @ (to_Z / radii[1])
    if abs(cosine) > PARALLEL:
        return _straight(from_Z, to_Z, t_S1)
    angle = torch.arccos(cosine)
    directions_SZ: Tensor = (
        torch.sin((1 - t_S1) * angle) * from_Z / radii[0] + torch.sin(t_S1 * angle) * to_Z / radii[1]
    ) / torch.sin(angle)
    radius_S1: Tensor = radii[0] + t_S1 * (radii[1] - radii[0])
    return directions_SZ * radius_S1


# prior -> the way from code to code, and what it is called
_PATHS: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Tensor], str]] = {
    "gaussian": (_great_circle, "the great circle"),
}


def _decoded(
    model: Published,
    z_NZ: Tensor,
    y_NK: Tensor | None,
    text: str,
    columns: int | None = None,
    headings: tuple[str, ...] = (),
) -> Generated:
    x_NX = model.decode(join(z_NZ, y_NK))
    return Generated(x_NX, z_NZ, y_NK, text, columns, headings, model.kind, model.label_names)


# --------------------------------------------------------------------------------------------------------------- files


def _png(images: Generated) -> bytes:
    return drawing.samples(images.x_NX, images.columns, images.headings)


def _npy(made: Generated) -> bytes:
    """Images (N, C, H, W) as float32 in [0, 1], or rows (N, D) as float64 in their own units."""
    buffer = io.BytesIO()
    np.save(buffer, made.x_NX.numpy())
    return buffer.getvalue()


def _row_columns(rows: Generated) -> dict[str, Any]:
    """The columns of rows by name, and behind them as they were told `label`, by name, or `label_probabilities`."""
    import pyarrow as pa

    assert isinstance(rows.kind, RowKind)
    columns = {name: pa.array(x_N.numpy()) for name, x_N in zip(rows.kind.columns, rows.x_NX.T, strict=True)}
    if rows.y_NK is None:
        return columns
    if (rows.y_NK.amax(1) == 1).all():
        labels = pa.array([rows.label_names[label] for label in rows.y_NK.argmax(1).tolist()], pa.string())
        return columns | {_free("label", columns): labels}
    return columns | {_free("label_probabilities", columns): _lists(rows.y_NK)}


def _free(name: str, columns: Mapping[str, Any]) -> str:
    """This name, longer where a column of the data has it."""
    while name in columns:
        name += "_"
    return name


def _csv(rows: Generated) -> bytes:
    """A line of names, and a line for each row; doubles in the fewest digits that give them back."""
    import pyarrow as pa
    from pyarrow import csv

    buffer, table = io.BytesIO(), pa.table(_row_columns(rows))
    csv.write_csv(table, buffer)
    return buffer.getvalue()


def _row_parquet(rows: Generated) -> bytes:
    """The same columns as in CSV, and `code`."""
    columns = _row_columns(rows)
    return _table(columns | {_free("code", columns): _lists(rows.z_NZ)})


def _table(columns: Mapping[str, Any]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table(dict(columns)), buffer)
    return buffer.getvalue()


def _parquet(images: Generated) -> bytes:
    """A row an image: `image`, the bytes of a PNG file, and as it was told `label` or `label_probabilities`; `code`."""
    import pyarrow as pa

    columns = {"image": pa.array([drawing.picture(x_CHW) for x_CHW in images.x_NX], pa.binary())}
    if images.y_NK is not None:
        certain = bool((images.y_NK.amax(1) == 1).all())
        labels = pa.array([images.label_names[label] for label in images.y_NK.argmax(1).tolist()], pa.string())
        columns |= {"label": labels} if certain else {"label_probabilities": _lists(images.y_NK)}
    return _table(columns | {"code": _lists(images.z_NZ)})


def _lists(rows_NX: Tensor) -> Any:
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(rows_NX.flatten().numpy()), rows_NX.shape[1])


FORMATS: dict[str, Callable[[Generated], bytes]] = {"png": _png, "npy": _npy, "parquet": _parquet}
FORMATS_OF_ROWS: dict[str, Callable[[Generated], bytes]] = {"csv": _csv, "npy": _npy, "parquet": _row_parquet}


def formats_of(kind: ExampleKind | None) -> Mapping[str, Callable[[Generated], bytes]]:
    """In which formats examples of this kind are written, the one first that is taken where none is named."""
    return FORMATS_OF_ROWS if isinstance(kind, RowKind) else FORMATS


def check_format(model: Published, kind: str) -> None:
    """Raises UserError where what a model makes is not written in this format."""
    if kind not in (known := formats_of(model.kind)):
        noun = "images" if model.kind is None else model.kind.noun
        raise UserError(f"--format {kind}: {model} makes {noun}, which are written as {', '.join(known)}")


def write(made: Generated, out: Path, kind: str) -> None:
    """Raises UserError where the file cannot be written."""
    try:
        out.write_bytes(formats_of(made.kind)[kind](made))
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror or error}") from None
