"""python -m aae_ray.export: a model's encoder and decoder as ONNX files, for programs without PyTorch. Needs no Ray.

python -m aae_ray.export aae-digits-decoder --onnx digits_onnx
python -m aae_ray.export runs/STUDY --onnx best_onnx
"""

import os
from pathlib import Path
from typing import Annotated

import typer

from aae_ray.cli import ModelVersion, TrackingUri, main
from aae_ray.errors import UserError


def export(
    model: Annotated[
        str, typer.Argument(help="registered model, or folder of a study, of an exported model or of a checkpoint")
    ],
    onnx: Annotated[Path | None, typer.Option(metavar="FOLDER", help="where encoder.onnx and decoder.onnx go")] = None,
    version: ModelVersion = "champion",
    tracking_uri: TrackingUri = None,
) -> None:
    """Write encoder and decoder as ONNX, run them, and say how far their answers are from the model's."""
    if onnx is None:
        raise UserError("--onnx is missing: name the folder that the files go to")
    if not os.path.isdir(onnx.absolute().parent) or (os.path.exists(onnx) and not os.path.isdir(onnx)):
        raise UserError(f"--onnx {onnx}: give a folder, in one that exists")
    from aae_ray.evaluation.onnx_files import write_onnx
    from aae_ray.study.loading import load_model
    from aae_ray.tracking import address as server

    loaded = load_model(model, version=version, uri=server.tracking_uri(tracking_uri))
    for file in write_onnx(loaded, onnx):
        signature = f"{', '.join(file.inputs)} in, {', '.join(file.outputs)} out"
        print(f"{file.path}: {signature}; at most {file.difference:.1e} from {loaded}")


if __name__ == "__main__":
    main(export, "export")
