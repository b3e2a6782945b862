"""python -m aae_ray.reconstruct: pictures beside what a model makes of them. Needs no Ray.

python -m aae_ray.reconstruct a.png b.jpg --model aae-faces-decoder --out pairs.png
python -m aae_ray.reconstruct photo.jpg --model runs/STUDY data.size=32x32 data.channels=1
"""

import os
from pathlib import Path
from typing import Annotated

import typer

from aae_ray.cli import ModelName, ModelVersion, TrackingUri, check_out, main
from aae_ray.errors import UserError


def reconstruct(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE... [KEY=VALUE]...",
            help="picture files, then settings of data.* that say how they are read, e.g. data.size=28x28",
        ),
    ],
    model: ModelName = "",
    out: Annotated[Path, typer.Option(help="PNG file to write")] = Path("reconstructions.png"),
    label: Annotated[
        str | None, typer.Option(help="class of all pictures, by name or number, where the decoder is told it")
    ] = None,
    version: ModelVersion = "champion",
    tracking_uri: TrackingUri = None,
) -> None:
    """Write each picture above its reconstruction, as one sheet, and print the squared error per pixel of each."""
    if not model:
        raise UserError("--model is missing: name a registered model, such as aae-digits-decoder, or a study's folder")
    check_out(out, ".png")
    files = [Path(argument) for argument in arguments if "=" not in argument or os.path.exists(argument)]
    overrides = [argument for argument in arguments if Path(argument) not in files]
    if not files:
        raise UserError("name at least one picture file")
    from aae_ray.evaluation.encoding import reconstruct_pictures
    from aae_ray.study.inputs import read_pictures
    from aae_ray.study.loading import load_model
    from aae_ray.tracking import address as server

    loaded = load_model(model, version=version, uri=server.tracking_uri(tracking_uri))
    found = reconstruct_pictures(loaded, read_pictures(files, overrides, loaded), label)
    try:
        out.write_bytes(found.sheet)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror or error}") from None
    for file, error_of_file in zip(files, found.errors, strict=True):
        print(f"{file}: squared error per pixel {error_of_file:.4f}")
    print(f"{out}: originals above their reconstructions by {loaded}")


if __name__ == "__main__":
    main(reconstruct, "reconstruct")
