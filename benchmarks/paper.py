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
from aae_ray.mistakes import UserError
from aae_ray.settings import Settings, flatten, replace
from aae_ray.study.report import console_for
from aae_ray.study.space import Plan, read_plan
from aae_ray.study.study import Outcome, run_study
from benchmarks.timing import machine

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PER_CENT = 100
SEEDS = [0, 1, 2]


class Table(NamedTuple):
    """A row of the page: what the paper reports, and the study that stands for it."""

    title: str
    section: str
    paper: str  # the paper's number as it is quoted, in the unit of the metric
    file: str  # in search_spaces/
    metric: str
    overrides: tuple[str, ...] = ()
    point: int = 0  # of the file's start points; the first is the paper's own
    beside: tuple[str, ...] = ()  # metrics without which this one cannot be read
    aim: float | None = None  # the error, in per cent, that is to be reached at least with some days of two cores


ERROR = "test/classification_error"
PARZEN = "quality/parzen_nats"
WARPED = "images warped, which the paper does not do"
CLUSTERING = ("model.discriminator_hidden=512-512",)  # beside the file's fourth point, which was found with it
CLUSTERS = ("test/hungarian_accuracy", "test/nmi", "test/ari", "test/clusters_used")  # beside the paper's own rule
TABLES = {
    "semi_supervised_100": Table(
        "semi-supervised, 100 labels",
        "5, table 2",
        "1.90 ± 0.10; 3.40 at 50 epochs",
        "semi_supervised",
        ERROR,
        aim=3.4,
    ),
    "semi_supervised_100_warped": Table(
        f"semi-supervised, 100 labels, {WARPED}",
        "5, table 2",
        "1.90 ± 0.10; 3.40 at 50 epochs",
        "semi_supervised",
        ERROR,
        point=1,
        aim=1.9,
    ),
    "semi_supervised_all": Table(
        "semi-supervised, all labels", "5, table 2", "0.85 ± 0.02", "semi_supervised", ERROR, ("data.labels=null",)
    ),
    "semi_supervised_1000": Table(
        "semi-supervised, 1000 labels",
        "5, table 2",
        "1.60 ± 0.08; 2.40 at 50 epochs",
        "semi_supervised",
        ERROR,
        ("data.labels=1000",),
        aim=2.2,
    ),
    "clustering_16": Table(
        f"clustering, 16 clusters, {WARPED}",
        "6",
        "9.55 ± 2.05",
        "clustering",
        ERROR,
        ("model.clusters=16", *CLUSTERING),
        point=3,
        beside=CLUSTERS,
        aim=20,
    ),
    "clustering_30": Table(
        f"clustering, 30 clusters, {WARPED}",
        "6",
        "4.10 ± 1.13",
        "clustering",
        ERROR,
        ("model.clusters=30", *CLUSTERING),
        point=3,
        beside=CLUSTERS,
    ),
    "reduction_1000": Table(
        "reduction to 2 dimensions, 1000 labels",
        "7, figure 11",
        "4.20 (recalled)",
        "semi_supervised_reduction",
        ERROR,
        ("data.labels=1000",),
        aim=8,
    ),
    "reduction_100": Table(
        "reduction to 2 dimensions, 100 labels",
        "7, figure 11",
        "6.08 (recalled)",
        "semi_supervised_reduction",
        ERROR,
        ("data.labels=100",),
    ),
    "reduction_20": Table(
        "reduction to 2 dimensions, 20 clusters, no labels",
        "7, figure 11",
        "13.95 (recalled)",
        "reduction",
        ERROR,
        ("model.clusters=20",),
        beside=CLUSTERS,
    ),
    "likelihood": Table(
        "likelihood, 8 dimensions, prior of standard deviation 5, 10,000 samples",
        "3, table 1",
        "340 ± 2",
        "paper_likelihood",
        PARZEN,
        beside=(
            "quality/parzen_anchor_nats",
            "quality/parzen_sigma",
            "quality/fid_local",
            "quality/fid_local_floor",
            "quality/coverage",
            "test/sliced_wasserstein",
        ),
    ),
}


def plan_for(table: Table, seeds: Sequence[int], overrides: Sequence[str]) -> Plan:
    """One of the file's start points, once for each seed; what is given on the command line wins."""
    path = ROOT / "search_spaces" / f"{table.file}.yaml"
    start = read_plan(str(path)).start
    point = start[table.point] if start else {}  # a file that searches nothing is a point itself
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
        raise UserError(
            f"{path} searches {', '.join(plan.space)} without a value in the point that is run; give each one"
        )
    return Plan(plan.settings, {"seed": CategoricalDistribution(list(seeds))}, tuple({"seed": seed} for seed in seeds))


COMPARISON = "aae_vs_vae"
TRAINED_ON = ("train/kl_nats", "adv/encoder_loss_nats")  # in the last epoch: what imposes the prior
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


def compare(overrides: Sequence[str], seeds: Sequence[int], command: str) -> dict[str, Any]:
    """The AAE beside the VAE on one protocol: a study of four trials a seed, and one picture of all their codes."""
    path = str(ROOT / "search_spaces" / "aae_vs_vae_2d.yaml")
    four = read_plan(path, overrides)
    space = {**four.space, "seed": CategoricalDistribution(list(seeds))}
    points = list({tuple(point.items()): point for point in four.start}.values())  # fewer where one key is given
    start = tuple({**point, "seed": seed} for seed in seeds for point in points)
    budget = {} if any(change.startswith("study.budget") for change in overrides) else {"trials": len(start)}
    run = replace(four.settings, {f"study.budget.{key}": value for key, value in budget.items()})
    began = time.monotonic()
    outcome = run_study(Plan(run, space, start), console_for())
    hours = (time.monotonic() - began) / 3600
    rows: dict[str, dict[str, list[float]]] = {}
    pictures: dict[str, Image.Image] = {}  # of the first seed that came to its end
    trials = [(record, replace(run, record.params)) for record in outcome.ledger.records]
    for record, each in sorted(trials, key=lambda trial: (trial[1].model.prior, trial[1].task, trial[1].seed)):
        if record.name not in outcome.tests:
            continue
        told = f"{'AAE' if each.task == 'unsupervised' else 'VAE'}, {each.model.prior} prior"
        found = outcome.tests[record.name].metrics | {
            name: record.metrics[name] for name in TRAINED_ON if name in record.metrics
        }
        for name in (*TRAINED_ON, *COMPARED):
            if name in found:
                rows.setdefault(told, {}).setdefault(name, []).append(found[name])
        if told not in pictures:
            pictures[told] = Image.open(outcome.folder / "figures" / record.name / "codes.png").convert("RGB")
    if not pictures:
        raise UserError(f"no trial came to its end; the study is kept in {outcome.folder}")
    width, height = next(iter(pictures.values())).size
    sheet = Image.new("RGB", (2 * width, (len(pictures) + 1) // 2 * height), "white")
    for index, picture in enumerate(pictures.values()):
        sheet.paste(picture, (index % 2 * width, index // 2 * height))
    sheet.save(DOCS / f"{COMPARISON}.png", optimize=True)
    return {
        "command": command,
        "rows": rows,
        "data": run.data.name,
        "epochs": run.train.epochs,
        "seeds": list(seeds),
        "settings": {key: value for key, value in shaping(run).items() if key not in four.space},
        "hours": hours,
        "date": date.today().isoformat(),
        "machine": machine(),
    }


def comparison_lines(found: Mapping[str, Any]) -> list[str]:
    names = [name for name in (*TRAINED_ON, *COMPARED) if any(name in row for row in found["rows"].values())]
    seeds = found["seeds"]
    return [
        "",
        "## The VAE beside the adversarial autoencoder",
        "",
        f"Two-dimensional codes of {found['data']}, {found['epochs']} epochs, the same networks and Gaussian",
        f"posterior, one protocol; mean ± standard deviation over seeds {', '.join(map(str, seeds))}",
        f"({found['date']}; `{found.get('command', f'python benchmarks/paper.py {COMPARISON}')}`).",
        "The VAE's loss, the negative ELBO, weighs",
        "for every image the KL of its own posterior from the prior, `train/kl_nats`; in its place the AAE has the",
        "adversarial match of all codes together, `adv/encoder_loss_nats`, 0.693 where the discriminator cannot tell",
        "codes from prior. FID and KID are local ones, by a judge trained on the same data. A Parzen score above its",
        "anchor, that of as many real images, is no praise.",
        "",
        *(
            [
                f"{told_machine(found['machine'])}, {found['hours']:.2f} hours. What differs from the defaults: "
                f"{told_settings(found['settings'])}",
                "",
            ]
            if "machine" in found
            else []
        ),
        f"| metric | {' | '.join(found['rows'])} |",
        f"|---|{'---|' * len(found['rows'])}",
        *(
            f"| `{name}` | {' | '.join(_told_short(row.get(name, [])) for row in found['rows'].values())} |"
            for name in names
        ),
        "",
        f"![codes of both on both priors, seed {seeds[0]}]({COMPARISON}.png)",
    ]


def _told_short(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{np.mean(values):.3g} ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else f"{values[0]:.3g}"


def result(table: Table, plan: Plan, outcome: Outcome, seconds: float, command: str) -> dict[str, Any]:
    """What is kept of the runs: every seed's metrics on the test images, and all that shaped them."""
    tests = {
        str(record.params["seed"]): outcome.tests[record.name].metrics
        for record in sorted(outcome.ledger.records, key=lambda record: int(record.params["seed"]))
        if record.name in outcome.tests
    }
    if not tests:
        raise UserError(f"no run of {table.title} came to its end; the study is kept in {outcome.folder}")
    return {
        "metric": table.metric,
        "command": command,
        "tests": tests,
        "settings": shaping(plan.settings),
        "hours": seconds / 3600,
        "date": date.today().isoformat(),
        "machine": machine(),
    }


def shaping(run: Settings) -> dict[str, Any]:
    """Every setting that shapes a trial, but its seed; where its data lie and where records go does not."""
    return {
        key: value
        for key, value in flatten(run).items()
        if not key.startswith(("study.", "tracking.")) and key not in ("seed", "data.path", "data.cache")
    }


def told_settings(settings: Mapping[str, Any]) -> str:
    """Those that differ from the defaults."""
    defaults = flatten(Settings())
    return ", ".join(
        f"`{key}={value}`"
        for key, value in settings.items()
        if key in defaults and value != defaults[key] and value not in (None, "")
    )


def told_machine(info: Mapping[str, Any]) -> str:
    return f"{info['cores']} cores of {info['processor']}, torch {info['torch']}"


def page(results: Mapping[str, Mapping[str, Any]], comparison: Mapping[str, Any] | None = None) -> str:
    """docs/paper.md: the paper's numbers beside ours; a table that was not run has no number."""
    columns = "`TABLE` | section | paper | our aim | ours | seeds | epochs | hours | date |"
    lines = [
        "# The paper's tables, measured",
        "",
        "The paper's numbers (Makhzani et al. 2015) on MNIST beside ours, as the mean and standard deviation over",
        "seeds, which also draw the labels, and in brackets every seed. `python benchmarks/paper.py TABLE` reproduces",
        "a row by confirm runs of the platform and writes this page; a row that was not run says so. Our aims are for",
        "some days of two CPU cores; the paper trained for thousands of epochs, and a mean above its number misses it.",
        "",
        "## Errors on the test images, in per cent",
        "",
        f"| table | {columns}",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(_row(name, results.get(name), PER_CENT) for name, table in TABLES.items() if table.metric == ERROR),
        "",
        "## Likelihood of the test images under samples, in nats",
        "",
        "Parzen windows by the paper's protocol. Beside the score stands its anchor, that of as many real images: a",
        "score above the anchor is no praise, for blurred samples score higher than real ones.",
        "",
        f"| table | {columns}",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(_row(name, results.get(name), 1) for name, table in TABLES.items() if table.metric != ERROR),
    ]
    for name, found in results.items():
        lines += ["", f"## {name}", ""]
        beside = [key for key in TABLES[name].beside if any(key in test for test in found["tests"].values())]
        if beside:
            lines += ["| metric | mean and seeds |", "|---|---|"]
            lines += [f"| `{key}` | {_told(_values(found, key), 4)} |" for key in beside]
            lines += [""]
        lines += [
            f"{told_machine(found['machine'])}. What differs from the defaults (all",
            f"settings are in [paper/{name}.json](paper/{name}.json)):",
            "",
            told_settings(found["settings"]),
        ]
        if found.get("remark"):  # written by hand: what a reader must know of how it ran
            lines += ["", found["remark"]]
        if found.get("command"):
            lines += ["", f"    {found['command']}"]
    if comparison:
        lines += comparison_lines(comparison)
    return "\n".join(lines) + "\n"


def _row(name: str, found: Mapping[str, Any] | None, scale: float) -> str:
    table = TABLES[name]
    told = f"| {table.title} | `{name}` | {table.section} | {table.paper} |"
    aim = "" if table.aim is None else f" at most {table.aim:g}"
    if not found:
        return f"{told}{aim} | not run | | | | |"
    values = [scale * value for value in _values(found, found["metric"])]
    missing = len(found["tests"]) - len(values)  # a Parzen score is refused where its window is at the grid's edge
    seeds = ", ".join(found["tests"]) + (f"; {missing} without a score" if missing else "")
    if table.aim is not None and values:
        aim += ": reached" if np.mean(values) <= table.aim else ": missed"
    return (
        f"{told}{aim} | {_told(values)} | {seeds} | "
        f"{found['settings']['train.epochs']} | {found['hours']:.1f} | {found['date']} |"
    )


def _values(found: Mapping[str, Any], metric: str) -> list[float]:
    return [test[metric] for test in found["tests"].values() if metric in test]


def _told(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation (every value)."""
    if not values:
        return "no score"
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread} ({', '.join(f'{value:.{digits}f}' for value in values)})"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python benchmarks/paper.py", description=__doc__)
    parser.add_argument(
        "table", choices=[*TABLES, COMPARISON, "page"], help="`page` writes docs/paper.md again and runs nothing"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings to change, e.g. data.path=FOLDER")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, metavar="SEED")
    arguments = parser.parse_args()

    folder = DOCS / "paper"
    folder.mkdir(parents=True, exist_ok=True)
    places = ("data.path", "data.cache", "study.", "tracking.")
    own = [change for change in arguments.overrides if not change.startswith(places)]
    own += [] if arguments.seeds == SEEDS else ["--seeds", *map(str, arguments.seeds)]
    command = " ".join(["python benchmarks/paper.py", arguments.table, *own])
    if arguments.table == COMPARISON:
        _keep(folder / f"{COMPARISON}.json", compare(arguments.overrides, arguments.seeds, command))
    elif arguments.table != "page":
        table, began = TABLES[arguments.table], time.monotonic()
        plan = plan_for(table, arguments.seeds, arguments.overrides)
        outcome = run_study(plan, console_for())
        found = result(table, plan, outcome, time.monotonic() - began, command)
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
