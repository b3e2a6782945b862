"""python benchmarks/paper.py TABLE: reproduce a table of the paper by confirm runs of the platform, into docs/paper.md.

A confirm run is a study whose only searched key is the seed: the same configuration, once for each seed, recorded in
MLflow like any study. What comes of it is kept in docs/paper/TABLE.json; docs/paper.md is written from all of these.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:  # run as a file: its neighbours are found from the root, by Ray's workers too
    sys.path.insert(0, str(Path(__file__).parents[1]))
    os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], os.environ.get("PYTHONPATH", "")])

import numpy as np
from optuna.distributions import CategoricalDistribution
from PIL import Image

from aae_ray.console import MISTAKE
from aae_ray.settings import UserError, flatten
from aae_ray.study.report import console_for
from aae_ray.study.space import Plan, read_plan
from aae_ray.study.study import Outcome, run_study
from benchmarks.timing import machine

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PER_CENT = 100


class Table(NamedTuple):
    """A row of the page: what the paper reports, and the study that stands for it."""

    title: str
    section: str
    paper: str  # the paper's number as it is quoted, in the unit of the metric
    file: str  # in search_spaces/
    metric: str
    overrides: tuple[str, ...] = ()


ERROR = "test/classification_error"
TABLES = {
    "semi_supervised_100": Table(
        "semi-supervised, 100 labels", "5, table 2", "1.90 ± 0.10; 3.40 at 50 epochs", "semi_supervised", ERROR
    ),
    "semi_supervised_1000": Table(
        "semi-supervised, 1000 labels",
        "5, table 2",
        "1.60 ± 0.08; 2.40 at 50 epochs",
        "semi_supervised",
        ERROR,
        ("data.labels=1000",),
    ),
    "clustering_16": Table("clustering, 16 clusters", "6", "9.55 ± 2.05", "clustering", ERROR, ("model.clusters=16",)),
    "clustering_30": Table("clustering, 30 clusters", "6", "4.10 ± 1.13", "clustering", ERROR, ("model.clusters=30",)),
    "reduction_1000": Table(
        "reduction to 2 dimensions, 1000 labels",
        "7, figure 11",
        "4.20 (recalled)",
        "semi_supervised_reduction",
        ERROR,
        ("data.labels=1000",),
    ),
}


def plan_for(table: Table, seeds: Sequence[int], overrides: Sequence[str]) -> Plan:
    """The file's first point, once for each seed; what is given on the command line wins."""
    path = ROOT / "search_spaces" / f"{table.file}.yaml"
    point = read_plan(str(path)).start[0]
    changes = [f"{key}={value}" for key, value in point.items()] + list(table.overrides)
    plan = read_plan(
        str(path),
        [
            *changes,
            f"study.name=paper-{table.file.replace('_', '-')}",
            f"study.budget.trials={len(seeds)}",
            "study.pruner.type=none",
            "study.sampler.type=random",
            "study.finalists=all",
            "health.stop=false",  # a confirm run answers what was asked, whatever it looks like on the way
            "tracking.register_model=false",
            *overrides,
        ],
    )
    if plan.space:
        raise UserError(f"{path} searches {', '.join(plan.space)} without a value in its first point; give each one")
    return Plan(plan.settings, {"seed": CategoricalDistribution(list(seeds))}, tuple({"seed": seed} for seed in seeds))


COMPARISON = "aae_vs_vae"
COMPARED = (
    "test/reconstruction_mse",
    "test/jsd_nats",
    "test/sliced_wasserstein",
    "quality/imq_mmd",
    "quality/fid_local",
    "quality/kid_local",
    "quality/coverage",
    "quality/parzen_nats",
    "quality/parzen_anchor_nats",
)


def compare(overrides: Sequence[str]) -> dict[str, Any]:
    """The AAE beside the VAE on the same protocol: a study of four trials, and one picture of all their codes."""
    plan = read_plan(str(ROOT / "search_spaces" / "aae_vs_vae_2d.yaml"), overrides)
    outcome = run_study(plan, console_for())
    rows = {}
    pictures = []
    for record in sorted(
        outcome.ledger.records, key=lambda record: (record.params["model.prior"], record.params["task"])
    ):
        told = f"{'AAE' if record.params['task'] == 'unsupervised' else 'VAE'}, {record.params['model.prior']} prior"
        if record.name in outcome.tests:
            rows[told] = {
                name: outcome.tests[record.name][name] for name in COMPARED if name in outcome.tests[record.name]
            }
            pictures.append(Image.open(outcome.folder / "figures" / record.name / "codes.png").convert("RGB"))
    if not rows:
        raise UserError(f"no trial came to its end; the study is kept in {outcome.folder}")
    width, height = pictures[0].size
    sheet = Image.new("RGB", (2 * width, (len(pictures) + 1) // 2 * height), "white")
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % 2 * width, index // 2 * height))
    sheet.save(DOCS / f"{COMPARISON}.png", optimize=True)
    run = plan.settings
    return {"rows": rows, "data": run.data.name, "epochs": run.train.epochs, "date": date.today().isoformat()}


def comparison_lines(found: Mapping[str, Any]) -> list[str]:
    names = [name for name in COMPARED if any(name in row for row in found["rows"].values())]
    return [
        "",
        "## The VAE beside the adversarial autoencoder",
        "",
        f"Two-dimensional codes of {found['data']}, {found['epochs']} epochs, the same networks and Gaussian",
        f"posterior, one protocol, one seed ({found['date']}; `python benchmarks/paper.py {COMPARISON}`). The VAE",
        "weighs its KL term for every image, the adversarial match sees only the codes of all images together. FID",
        "and KID are local ones, by a judge trained on the same data. A Parzen score above its anchor, that of as many",
        "real images, is no praise.",
        "",
        f"| | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
        *(
            f"| {told} | {' | '.join(f'{row[name]:.4g}' if name in row else 'refused' for name in names)} |"
            for told, row in found["rows"].items()
        ),
        "",
        f"![codes of both on both priors]({COMPARISON}.png)",
    ]


def result(table: Table, plan: Plan, outcome: Outcome, seconds: float) -> dict[str, Any]:
    """What is kept of the runs: every seed's metrics on the test images, and all that shaped them."""
    tests = {
        str(record.params["seed"]): outcome.tests[record.name]
        for record in outcome.ledger.records
        if record.name in outcome.tests
    }
    if not tests:
        raise UserError(f"no run of {table.title} came to its end; the study is kept in {outcome.folder}")
    settings = {
        key: value
        for key, value in flatten(plan.settings).items()
        if not key.startswith(("study.", "tracking.")) and key not in ("seed", "data.path", "data.cache")
    }
    return {
        "metric": table.metric,
        "tests": tests,
        "settings": settings,
        "hours": seconds / 3600,
        "date": date.today().isoformat(),
        "machine": machine(),
    }


def page(results: Mapping[str, Mapping[str, Any]], comparison: Mapping[str, Any] | None = None) -> str:
    """docs/paper.md: the paper's numbers beside ours; a table that was not run has no number."""
    lines = [
        "# The paper's tables, measured",
        "",
        "Test errors in per cent on MNIST: the paper's (Makhzani et al. 2015) beside ours, as the mean and standard",
        "deviation over seeds, which also draw the labels. `python benchmarks/paper.py TABLE` reproduces a row by",
        "confirm runs of the platform and writes this page; a row that was not run says so.",
        "",
        "| table | `TABLE` | section | paper | ours | seeds | epochs | hours | date |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, table in TABLES.items():
        found = results.get(name)
        if not found:
            lines.append(f"| {table.title} | `{name}` | {table.section} | {table.paper} | not run | | | | |")
            continue
        values = [PER_CENT * test[found["metric"]] for test in found["tests"].values()]
        spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
        lines.append(
            f"| {table.title} | `{name}` | {table.section} | {table.paper} | {np.mean(values):.2f}{spread} "
            f"({', '.join(f'{value:.2f}' for value in values)}) | {', '.join(found['tests'])} | "
            f"{found['settings']['train.epochs']} | {found['hours']:.1f} | {found['date']} |"
        )
    for name, found in results.items():
        info = found["machine"]
        told = ", ".join(f"`{key}={value}`" for key, value in found["settings"].items() if value not in (None, ""))
        lines += [
            "",
            f"## {name}",
            "",
            f"{info['cores']} cores of {info['processor']}, torch {info['torch']}.",
            "",
            told,
        ]
    if comparison:
        lines += comparison_lines(comparison)
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python benchmarks/paper.py", description=__doc__)
    parser.add_argument(
        "table", choices=[*TABLES, COMPARISON, "page"], help="`page` writes docs/paper.md again and runs nothing"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings to change, e.g. data.path=FOLDER")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED")
    arguments = parser.parse_args()

    folder = DOCS / "paper"
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.table == COMPARISON:
        _keep(folder / f"{COMPARISON}.json", compare(arguments.overrides))
    elif arguments.table != "page":
        table, began = TABLES[arguments.table], time.monotonic()
        plan = plan_for(table, arguments.seeds, arguments.overrides)
        outcome = run_study(plan, console_for())
        found = result(table, plan, outcome, time.monotonic() - began)
        _keep(folder / f"{arguments.table}.json", found)
    kept = {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}
    results = {name: kept[name] for name in TABLES if name in kept}
    (DOCS / "paper.md").write_text(page(results, kept.get(COMPARISON)), encoding="utf-8")


def _keep(file: Path, found: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(MISTAKE)
