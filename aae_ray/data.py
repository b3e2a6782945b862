"""python -m aae_ray.data: prepare a data set and say what is in it.

python -m aae_ray.data                                           the digits that ship with scikit-learn
python -m aae_ray.data mnist                                     downloaded once; docs/data.md lists the others
python -m aae_ray.data faces.parquet                             your own, which it calls faces; or a folder
python -m aae_ray.data faces --path 2026/all.parquet data.image_column=pixels
python -m aae_ray.data faces.parquet --preview faces.png         a sheet of images with their labels
"""

import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress, TaskID

from aae_ray import reading, settings
from aae_ray.cli import main
from aae_ray.datasets.classes import UNKNOWN
from aae_ray.datasets.contents import MOST_CLASSES, contents_of
from aae_ray.datasets.dataset import Dataset, class_names, load, prepared_folder
from aae_ray.datasets.sources import looks_like_path, name_for
from aae_ray.errors import UserError

COLUMNS, SHOWN = 10, 100  # of the preview: in a row, and in all


def prepare(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME or FILE or FOLDER] [KEY=VALUE]...",
            help="name of the set (digits if none), or where your own lies, then settings to change, e.g. "
            "data.split_seed=1",
        ),
    ] = None,
    path: Annotated[str | None, typer.Option(help="file or folder of images or rows; data.path")] = None,
    cache: Annotated[str | None, typer.Option(help="folder of prepared data; data.cache")] = None,
    preview: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png", help="draw a sheet of images with their labels, or how the columns of rows are spread"
        ),
    ] = None,
) -> None:
    """Prepare a data set, once, and say what is in it."""
    name = next((word for word in arguments or [] if "=" not in word), None)
    entries = reading.read_overrides(word for word in arguments or [] if word != name)
    if path is None and name is not None and "data.path" not in entries and looks_like_path(name):
        name, path = None if "data.name" in entries else name_for(name), name
    for key, value in {"data.name": name, "data.path": path, "data.cache": cache}.items():
        if value is not None and key in entries:
            raise UserError(f"{key} is given twice: {value} and {entries[key].value}")
        if value is not None:
            entries[key] = reading.Entry(value, "command line")
    if foreign := [key for key in entries if key in settings.dotted_fields() and not key.startswith("data.")]:
        raise UserError(f"{', '.join(foreign)}: data are prepared by settings of data.* alone")
    data = reading.build(entries).data
    if preview is not None and preview.suffix.lower() != ".png":
        raise UserError(f"--preview {preview}: the sheet is a PNG picture; call it {preview.with_suffix('.png').name}")
    if preview is not None and not preview.absolute().parent.is_dir():
        raise UserError(f"--preview {preview} cannot be written: there is no folder {preview.absolute().parent}")
    progress = _Progress()
    with progress.bars:
        dataset = load(data, progress)
    told = {
        "name": dataset.name,
        **contents_of(dataset).rows(),
        "digest": dataset.digest,
        "folder": str(prepared_folder(data)),
    }
    width = max(map(len, told))
    print("\n".join(f"{key:<{width}} {value}" for key, value in told.items()))
    if preview is not None:
        try:
            preview.write_bytes(sheet(dataset))
        except OSError as error:
            raise UserError(f"--preview {preview} cannot be written: {error.strerror}") from None
        print(f"{'preview':<{width}} {preview}")


class _Progress:
    """Bars on a terminal; elsewhere a plain line at each tenth of the way."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.bars = Progress(console=self.console, transient=True, disable=not self.console.is_terminal)
        self.tasks: dict[str, TaskID] = {}
        self.tenths: dict[str, int] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if self.console.is_terminal:
            if what not in self.tasks:
                self.tasks[what] = self.bars.add_task(what)
            self.bars.update(self.tasks[what], completed=done, total=total or None)
            return
        tenth = 10 * done // max(total, 1)
        if tenth != self.tenths.get(what):
            self.tenths[what] = tenth
            print(f"{what}: {done} of {total}", file=sys.stderr)


def sheet(dataset: Dataset) -> bytes:
    """Some images of all classes, class by class, each below its label; of rows, how each column is spread in each
    class; as PNG."""
    from aae_ray.datasets.images import examples, given_examples
    from aae_ray.evaluation import drawing
    from aae_ray.evaluation.drawing_rows import column_histograms

    if dataset.rows is not None:
        spread = {
            name: given_examples(dataset, rows).numpy() for name, rows in _rows_of_classes(dataset).items() if len(rows)
        }
        return column_histograms(spread, dataset.rows.columns, f"{dataset.name}: columns, in their own units")

    rows, names = _some_of_each_class(dataset), class_names(dataset)
    labels_N = None if dataset.labels_N is None else np.asarray(dataset.labels_N)[rows]
    captions = []
    for label in [] if labels_N is None else labels_N:
        captions.append("no label" if label == UNKNOWN else drawing.written(names[label], label))
    return drawing.captioned(examples(dataset, rows), captions, COLUMNS)


def _rows_of_classes(dataset: Dataset) -> dict[str, NDArray[np.int64]]:
    """All rows, and those of each class."""
    everything = {"all rows": np.arange(len(dataset.examples_NX))}
    if dataset.labels_N is None:
        return everything
    labels_N, names = np.asarray(dataset.labels_N), class_names(dataset)[:MOST_CLASSES]
    return everything | {name: np.flatnonzero(labels_N == label) for label, name in enumerate(names)}


def _some_of_each_class(dataset: Dataset) -> NDArray[np.int64]:
    """Images of the set, as many of one class as of another where there are as many, sorted by class."""
    count = len(dataset.examples_NX)
    labels_N = np.zeros(count, np.int64) if dataset.labels_N is None else np.asarray(dataset.labels_N)
    shuffled = np.random.RandomState(0).permutation(count)
    by_class = shuffled[np.argsort(labels_N[shuffled], kind="stable")]
    _, sizes = np.unique(labels_N, return_counts=True)
    rank = np.arange(count) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    chosen = by_class[np.argsort(rank, kind="stable")[:SHOWN]]
    return chosen[np.argsort(labels_N[chosen], kind="stable")]


if __name__ == "__main__":
    main(prepare, "data")
