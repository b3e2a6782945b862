"""python -m aae_ray.generate: images, or rows of numbers, that a model decodes from codes of your choice. Needs no Ray.

python -m aae_ray.generate aae-digits-decoder --count 64 --out samples.png
python -m aae_ray.generate aae-digits-decoder --label 3 --format npy
python -m aae_ray.generate aae-wine-decoder --count 1000 --out rows.csv
python -m aae_ray.generate runs/STUDY --style 8
python -m aae_ray.generate aae-faces-decoder --interpolate a.png b.png
"""

import math
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from aae_ray.cli import TrackingUri, main
from aae_ray.errors import UserError

MOST = 100_000
DRAWN, STEPS = 64, 10  # images where no number is given: of draws and of a grid, and on the way between two


class Format(StrEnum):
    """What is written: a sheet of images, an array (N, C, H, W) or (N, D), a table of images or rows and codes, or of
    rows alone."""

    png = "png"
    npy = "npy"
    parquet = "parquet"
    csv = "csv"


def generate(
    name: Annotated[
        str,
        typer.Argument(
            help="registered model, e.g. aae-digits-decoder, or folder of a study, of an exported model or a checkpoint"
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="data.* say how the images of --interpolate are read, e.g. data.size=28x28"
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST, help=f"images: {DRAWN} if none; a square of them in a grid; {STEPS} steps between two"
        ),
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="class or cluster, by name or number, where the decoder is told it")
    ] = None,
    style: Annotated[int | None, typer.Option(min=1, max=1000, help="so many styles, each with every label")] = None,
    interpolate: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A B", help="two pictures: from the code of one to that of the other"),
    ] = None,
    grid: Annotated[
        bool, typer.Option("--grid", help="the prior from end to end: a plane, the mixture's rays, or along the roll")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="file to write, samples.png or, of rows, samples.csv if none")
    ] = None,
    format_: Annotated[
        Format | None,
        typer.Option(
            "--format",
            help="png, npy or parquet of images, csv, npy or parquet of rows; by the ending of --out if none",
        ),
    ] = None,
    version: Annotated[str, typer.Option(help="alias or version of the model")] = "champion",
    seed: Annotated[int | None, typer.Option(min=0, help="of the draws from the prior; 0 if none")] = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Decode codes, drawn from the prior that the model was trained with or chosen, and write the images or rows."""
    kind = _kind(out, format_)
    ways = {"--style": style is not None, "--interpolate": interpolate is not None, "--grid": grid}
    chosen = [option for option, given in ways.items() if given]
    if len(chosen) > 1:
        raise UserError(f"{' and '.join(chosen)} exclude each other: each says which codes are decoded")
    if style is not None and (label is not None or count is not None):
        raise UserError("--style N makes N images of every label; leave out --label and --count")
    if interpolate is not None and any(str(picture).startswith("--") for picture in interpolate):
        raise UserError("--interpolate needs two pictures, from the code of one to that of the other")
    if overrides and interpolate is None:
        raise UserError(f"{', '.join(overrides)}: settings of data.* are for the pictures of --interpolate")
    if seed is not None and (grid or interpolate is not None):
        raise UserError(f"--seed {seed}: {chosen[0]} draws nothing; leave it out")
    if interpolate is not None and count == 1:
        raise UserError("--count 1: from one picture to the other there are at least 2, which are the ends")
    side = math.isqrt(count or DRAWN)
    if grid and side * side != (count or DRAWN):
        raise UserError(f"--count {count}: a grid has as many rows as columns; give {side**2} or {(side + 1) ** 2}")
    from aae_ray.evaluation import generation
    from aae_ray.study.inputs import read_pictures
    from aae_ray.study.loading import load_model
    from aae_ray.tracking import address as server

    uri = server.tracking_uri(tracking_uri)
    model = load_model(name, version=version, uri=uri, encoder=interpolate is not None)
    kind = kind or Format(next(iter(generation.formats_of(model.kind))))
    generation.check_format(model, kind)
    out = out or Path(f"samples.{kind}")
    if style is not None:
        images = generation.styles(model, style, seed or 0)
    elif interpolate is not None:
        ends_2CHW = read_pictures(interpolate, overrides or [], model)
        images = generation.interpolation(model, ends_2CHW, count or STEPS, label)
    elif grid:
        images = generation.prior_walk(model, side, label)
    else:
        images = generation.samples(model, count or DRAWN, seed or 0, label)
    generation.write(images, out, kind)
    print(f"{out}: {len(images.x_NX)} {images.noun} of {model}, {images.text}")


def _kind(out: Path | None, kind: Format | None) -> Format | None:
    """The format, by the name of the file where it is not given; None where neither is."""
    if out is None:
        return kind
    ending = out.suffix.lower().removeprefix(".")
    if not os.path.isdir(out.absolute().parent):
        raise UserError(f"--out {out}: there is no folder {out.absolute().parent}")
    if kind is None and ending not in list(Format):
        raise UserError(f"--out {out}: give a name that ends in .png, .npy, .parquet or .csv")
    if kind is not None and ending in list(Format) and ending != kind:
        raise UserError(f"--format {kind} and --out {out} contradict each other; leave one of them out")
    return kind or Format(ending)


if __name__ == "__main__":
    main(generate, "generate")
