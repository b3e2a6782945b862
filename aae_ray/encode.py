"""python -m aae_ray.encode: codes, probabilities and anomaly scores of a data set's images, as Parquet. Needs no Ray.

python -m aae_ray.encode digits --model aae-digits-decoder --out codes.parquet
python -m aae_ray.encode pictures/ --model runs/STUDY --out codes.parquet data.size=8x8
"""

from pathlib import Path
from typing import Annotated

import typer

from aae_ray.cli import ModelName, ModelVersion, TrackingUri, check_out, file_and_overrides, main
from aae_ray.errors import UserError


def encode(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DATA] [KEY=VALUE]...",
            help="name or path of the set, that of the model's training if none; then settings of data.* to change",
        ),
    ] = None,
    model: ModelName = "",
    out: Annotated[Path, typer.Option(help="Parquet file to write")] = Path("codes.parquet"),
    version: ModelVersion = "champion",
    tracking_uri: TrackingUri = None,
) -> None:
    """Write a row for each image or row of a set: its code, what classes or clusters it may be of, how well it is
    reconstructed, how far its code is from the prior, and from both a score that is high for anomalies."""
    if not model:
        raise UserError("--model is missing: name a registered model, such as aae-digits-decoder, or a study's folder")
    check_out(out, ".parquet")
    data, overrides = file_and_overrides(arguments or [])
    from aae_ray.evaluation.encoding import write_codes
    from aae_ray.study.inputs import read_data
    from aae_ray.study.loading import load_model
    from aae_ray.tracking import address as server

    loaded = load_model(model, version=version, uri=server.tracking_uri(tracking_uri))
    dataset = read_data(data, overrides, loaded)
    count = write_codes(loaded, dataset, out)
    print(f"{out}: codes and scores of {dataset.kind.noun} of {dataset.name} ({count}), by {loaded}")


if __name__ == "__main__":
    main(encode, "encode")
