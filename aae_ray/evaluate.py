"""python -m aae_ray.evaluate: what a registered decoder, or a trial of a study, is worth on the test images.

python -m aae_ray.evaluate aae-digits-decoder                              the champion's samples
python -m aae_ray.evaluate runs/STUDY/trials/TRIAL/epoch_00027       samples, codes and reconstructions
python -m aae_ray.evaluate runs/STUDY                                the same of the best trial
"""

from pathlib import Path
from typing import Annotated

import typer

from aae_ray.cli import ModelVersion, TrackingUri, check_out, main
from aae_ray.errors import UserError


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            help="registered model, or folder of a study, of an exported model or of a checkpoint", metavar="MODEL"
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="data.* say where the data are, e.g. data.path=FOLDER, and study.folder where the record goes",
        ),
    ] = None,
    version: ModelVersion = "champion",
    out: Annotated[Path, typer.Option(help="sheet of samples beside their nearest training images")] = Path(
        "nearest.png"
    ),
    any_data: Annotated[
        bool, typer.Option("--any-data", help="evaluate on data that the model was not trained on")
    ] = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Measure a model by one protocol with fixed seeds, and record the figures in MLflow."""
    check_out(out, ".png")
    from aae_ray.datasets.dataset import class_names
    from aae_ray.evaluation.final_evaluation import CONFUSION_SHEET
    from aae_ray.reporting.console import console_for
    from aae_ray.reporting.tables import metrics_table
    from aae_ray.reporting.text import bullet, shell_path
    from aae_ray.study.standalone_evaluation import measure, record
    from aae_ray.tracking import address as server

    console, uri = console_for(), server.tracking_uri(tracking_uri)
    found = measure(model, overrides or [], version=version, uri=uri, any_data=any_data)
    try:
        out.write_bytes(found.result.nearest_sheet)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}") from None
    console.print(metrics_table(found.name, found.result.metrics), "")
    if found.result.class_shares:
        names = class_names(found.dataset)
        shares = ", ".join(f"{name}: {share:.1%}" for name, share in zip(names, found.result.class_shares, strict=True))
        console.print(bullet("classes", f"of the samples {shares}"), soft_wrap=True)
    if found.result.confusion:
        for line in found.result.confusion.lines():
            console.print(bullet("errors", f"of class {line}"), soft_wrap=True)
    for remark in found.result.remarks:
        console.print(bullet("note", remark), soft_wrap=True)
    console.print(bullet("sheet", str(out)))
    recorded = record(found, uri)
    if found.result.has_confusion_sheet:
        console.print(bullet("confusion", str(recorded.folder / CONFUSION_SHEET)), soft_wrap=True)
    told = f"run {found.run_name} in MLflow"
    if recorded.unsent:
        told = f"not yet, MLflow is unreachable; later: python -m aae_ray.tune --sync {shell_path(recorded.folder)}"
    console.print(bullet("recorded", told), soft_wrap=True)
    for message in recorded.refused:
        console.print(bullet("MLflow", f"refused a record: {message}"), soft_wrap=True)


if __name__ == "__main__":
    main(evaluate, "evaluate")
