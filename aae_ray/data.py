"""python -m aae_ray.data: prepare a data set and say what is in it.

python -m aae_ray.data                                           the digits that ship with scikit-learn
python -m aae_ray.data mnist                                     downloaded once
python -m aae_ray.data faces --path faces.parquet data.image_column=pixels
"""

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, TaskID

from aae_ray import reading, settings
from aae_ray.cli import main
from aae_ray.datasets.dataset import Dataset, load, prepared_folder
from aae_ray.errors import UserError


def prepare(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME] [KEY=VALUE]...",
            help="name of the set (digits if none), then settings to change, e.g. data.split_seed=1",
        ),
    ] = None,
    path: Annotated[str | None, typer.Option(help="folder of IDX files, or Parquet file or folder; data.path")] = None,
    cache: Annotated[str | None, typer.Option(help="folder of prepared data; data.cache")] = None,
) -> None:
    """Prepare a data set, once, and say what is in it."""
    name = next((word for word in arguments or [] if "=" not in word), None)
    entries = reading.read_overrides(word for word in arguments or [] if word != name)
    for key, value in {"data.name": name, "data.path": path, "data.cache": cache}.items():
        if value is not None and key in entries:
            raise UserError(f"{key} is given twice: {value} and {entries[key].value}")
        if value is not None:
            entries[key] = reading.Entry(value, "command line")
    if foreign := [key for key in entries if key in settings.dotted_fields() and not key.startswith("data.")]:
        raise UserError(f"{', '.join(foreign)}: data are prepared by settings of data.* alone")
    data = reading.build(entries).data
    progress = _Progress()
    with progress.bars:
        dataset = load(data, progress)
    print(_describe(data, dataset))


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


def _describe(data: settings.Data, dataset: Dataset) -> str:
    parts = {"training": dataset.train, "validation": dataset.val, "test": dataset.test}
    rows = {
        "name": dataset.name,
        "images": len(dataset.images_NCHW),
        "shape": "{} x {} x {} (channels x height x width)".format(*dataset.shape),
        "classes": dataset.classes or "no labels",
        "parts": ", ".join(f"{name} {len(part)}" for name, part in parts.items()),
        "digest": dataset.digest,
        "folder": prepared_folder(data),
    }
    return "\n".join(f"{key:<8} {value}" for key, value in rows.items())


if __name__ == "__main__":
    main(prepare, "data")
