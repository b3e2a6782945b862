"""python -m aae_ray.generate: images from a registered decoder, by name. Needs no Ray."""

from pathlib import Path
from typing import Annotated

import typer

from aae_ray.cli import main
from aae_ray.errors import UserError

MOST = 100_000


def generate(
    name: Annotated[str, typer.Argument(help="registered model, e.g. aae-digits-decoder")],
    count: Annotated[int, typer.Option(min=1, max=MOST, help="images to draw")] = 64,
    out: Annotated[Path, typer.Option(help="PNG file to write")] = Path("samples.png"),
    version: Annotated[str, typer.Option(help="alias or version of the model")] = "champion",
    seed: Annotated[int, typer.Option(min=0, help="of the draws from the prior")] = 0,
    tracking_uri: Annotated[
        str | None,
        typer.Option(help="MLflow server or database; MLFLOW_TRACKING_URI or sqlite:///mlflow.db if none"),
    ] = None,
) -> None:
    """Draw codes from the prior a decoder was trained with, and write its images as one sheet."""
    from aae_ray.evaluation.drawing import image_sheet
    from aae_ray.tracking import address as server
    from aae_ray.tracking import registry

    if not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.absolute().parent}")
    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: the sheet is a PNG; give a name that ends in .png")
    decoder = registry.load(name, server.tracking_uri(tracking_uri), version)
    sheet = image_sheet(decoder.sample(count, seed))
    try:
        sheet.save(out)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror or error}") from None
    prior = f"{decoder.prior.latent_dim}-dimensional {decoder.prior.name} prior"
    print(f"{out}: {count} images of {name} version {decoder.version}, codes from its {prior}")


if __name__ == "__main__":
    main(generate, "generate")
