"""How fast a search finds what there is: python -m benchmarks.search {table,seeds,replay,contest} --help

`table` keeps the learning curves of finished studies as Parquet, and `seeds` writes the study that trains the best of
them with further seeds. `replay` runs samplers and pruners on that table, against those of others. `contest` runs real
searches by the clock on the wall.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when PyTorch is imported, and handed on to all processes
if not __package__:  # run as a file: its neighbours are found from the root
    sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import yaml
from optuna.distributions import CategoricalDistribution
from rich.console import Console
from rich.progress import track

from aae_ray.errors import MISTAKE, UserError
from aae_ray.reading import read_overrides
from aae_ray.search.distributions import spec_of
from aae_ray.search.space import read_plan
from aae_ray.settings import dotted_fields, setting
from benchmarks.contest import race
from benchmarks.replay import Trace, replay
from benchmarks.rivals import RIVALS, Pair
from benchmarks.search_table import TOP, Surrogate, best_configurations, read_studies, read_table, write_table
from benchmarks.timing import (
    CALIBRATION_SECONDS,
    Spread,
    Target,
    calibrate,
    drift,
    json_file,
    machine,
    plain_table,
    print_drift,
    ratio_of_medians,
    spread,
    write_json,
)

TABLE = Path(__file__).parent / "search_table.parquet"
STUDY = Path(__file__).parents[1] / "search_spaces" / "digits.yaml"
FIGURE = Path(__file__).parents[1] / "docs" / "search.png"
QUARTER = 0.25  # of its time, after which ours should have what Ray's documented pattern ends with
RUNGS = ("study.pruner.grace_period", "study.pruner.reduction_factor")
OURS, BASELINE = "ours", "random"
PLATFORM = ("random+asha", "tpe+none", "nsga2+asha")  # other pairs of the platform, beside that of the study's file
TARGET = Target(4)  # of random's epochs to the top over those of ours


# ------------------------------------------------------------------------------------------------------------- table


def make_table(arguments: argparse.Namespace) -> None:
    table, left_out = read_studies(arguments.folders)
    write_table(table, arguments.file)
    size = arguments.file.stat().st_size / 1e6
    seeds = sum(len(curves) > 1 for curves in table.by_configuration)
    print(
        f"{arguments.file}: {len(table.curves)} curves of {len(table.by_configuration)} configurations, {seeds} of "
        f"them with further seeds, up to epoch {table.settings.train.epochs}, {size:.2f} MB; {left_out} trials without "
        f"an end are not in it"
    )


def write_seeds(arguments: argparse.Namespace) -> None:
    """A study's file whose start points are the best configurations, once for each further seed."""
    table, _ = read_studies([arguments.folder])
    settings = table.settings
    seeds = [settings.seed + step for step in range(1, arguments.seeds + 1)]
    start = [{**params, "seed": seed} for params in best_configurations(table, arguments.best) for seed in seeds]
    space = {**table.space, "seed": CategoricalDistribution(seeds)}
    shaping = [
        key for key in dotted_fields() if key not in space and not key.startswith(("tracking.", "study.budget."))
    ]
    changed = {key: setting(settings, key) for key in shaping if setting(settings, key) != dotted_fields()[key].default}
    changed |= {"study.name": f"{settings.study.name}-seeds", "study.budget.trials": len(start)}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in changed.items()}
    study = {key.removeprefix("study."): value for key, value in plain.items() if key.startswith("study.")}
    run = {key: value for key, value in plain.items() if not key.startswith("study.")}
    specs = {name: spec_of(distribution) for name, distribution in space.items()}
    print(yaml.safe_dump({"study": study, "run": run, "space": specs, "start": start}, sort_keys=False), end="")


# ------------------------------------------------------------------------------------------------------------ replay


class Task(NamedTuple):
    """A replay, for a process that has its own copy of the table."""

    file: Path
    pair: str
    seed: int
    budget: int  # epochs
    most: int


@cache
def surrogate_of(file: Path) -> Surrogate:
    return Surrogate(read_table(file))


def pair_of(name: str) -> Pair:
    """A rival by its name, `ours` for what the study's file says, or a SAMPLER+PRUNER of the platform; those of the
    platform may be followed by settings: `tpe+asha,study.pruner.grace_period=9`."""
    if name in RIVALS:
        return RIVALS[name]
    name, *changes = name.split(",")
    changed = {key: entry.value for key, entry in read_overrides(changes).items()}
    settings = read_plan(str(STUDY)).settings
    if name == OURS:
        keys = [key for key in dotted_fields() if key.startswith(("study.sampler.", "study.pruner."))]
        return Pair({key: setting(settings, key) for key in keys} | changed)
    sampler, plus, pruner = name.partition("+")
    if not plus:
        known = ", ".join([OURS, *RIVALS])
        raise UserError(f"--pairs: {name} is no pair; give SAMPLER+PRUNER such as tpe+asha, or one of {known}")
    levels = {key: setting(settings, key) for key in RUNGS}  # the same for all pairs of the platform
    return Pair({"study.sampler.type": sampler, "study.pruner.type": pruner, **levels, **changed})


def run_task(task: Task) -> Trace:
    return replay(surrogate_of(task.file), pair_of(task.pair), task.seed, task.budget, task.most)


def run_replays(
    file: Path, pairs: Sequence[str], seeds: int, budget: int, most: int, jobs: int
) -> dict[str, list[Trace]]:
    """The traces of each pair, one for each seed. A process holds the table once, and runs one replay at a time."""
    tasks = [Task(file, pair, seed, budget, most) for pair in pairs for seed in range(seeds)]
    progress = partial(track, description="replays", total=len(tasks), console=Console(stderr=True))
    if jobs == 1:
        traces = list(progress(map(run_task, tasks)))
    else:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            traces = list(progress(pool.map(run_task, tasks)))
    return {pair: traces[index * seeds : (index + 1) * seeds] for index, pair in enumerate(pairs)}


def summary(traces: Sequence[Trace], baseline: Sequence[Trace], budget: int) -> dict[str, Any]:
    """The keys of one pair: medians over seeds with their intervals; a replay that did not reach the target counts
    with all the epochs that it had."""
    epochs, others = ([float(trace.epochs_to_target) for trace in some] for some in (traces, baseline))
    return {
        "epochs_to_top_2_percent": spread(epochs)._asdict(),
        "reached": sum(trace.reached for trace in traces) / len(traces),
        "ratio_to_random": ratio_of_medians(others, epochs)._asdict(),
        "hypervolume_at_budget": spread([trace.hypervolume_at(budget) for trace in traces])._asdict(),
        "trials": float(np.median([trace.trials for trace in traces])),
    }


def measure_replays(arguments: argparse.Namespace) -> None:
    surrogate = surrogate_of(arguments.file)
    table = surrogate.table
    epochs, pairs = table.settings.train.epochs, list(dict.fromkeys([BASELINE, *arguments.pairs]))
    budget, most = arguments.budget * epochs, arguments.most * epochs
    correlation = surrogate.rank_correlation(min(10, len(table.by_configuration)))
    found = run_replays(arguments.file, pairs, arguments.seeds, budget, most, arguments.jobs)
    rows = {pair: summary(traces, found[BASELINE], budget) for pair, traces in found.items()}
    console = Console(highlight=False, width=120)
    print_summary(console, rows, arguments)
    console.print(
        f"the surrogate's rank correlation with configurations that it was not shown: reconstruction "
        f"{correlation[0]:.2f}, divergence {correlation[1]:.2f}"
    )
    write_json(arguments.json, {
        "pairs": rows,
        "configurations": len(table.by_configuration),
        "epochs_of_a_training": epochs,
        "budget_epochs": budget,
        "most_epochs": most,
        "seeds": arguments.seeds,
        "top_distance_from_ideal": surrogate.top,
        "reference": table.reference,
        "spread_of_seeds": table.spread_of_seeds,
        "rank_correlation_of_surrogate": correlation,
        "machine": machine(),
    })  # fmt: skip


def print_summary(console: Console, rows: Mapping[str, Mapping[str, Any]], arguments: argparse.Namespace) -> None:
    """A line for each pair, the quickest first."""
    title = f"Epochs until a configuration of the best {TOP:.0%} was trained, {arguments.seeds} seeds"
    columns = ("pair", "epochs", "95 % interval", "reached", "random / pair", "95 % interval", "hypervolume at budget")
    table = plain_table(title, columns)
    for pair, row in sorted(rows.items(), key=lambda item: item[1]["epochs_to_top_2_percent"]["median"]):
        epochs, ratio, volume = (
            Spread(**row[key]) for key in ("epochs_to_top_2_percent", "ratio_to_random", "hypervolume_at_budget")
        )
        table.add_row(
            pair,
            f"{epochs.median:.0f}",
            f"{epochs.low:.0f} - {epochs.high:.0f}",
            f"{row['reached']:.0%}",
            f"{ratio.median:.2f}",
            f"{ratio.low:.2f} - {ratio.high:.2f}",
            f"{volume.median:.3f} ({volume.low:.3f} - {volume.high:.3f})",
        )
    console.print(table)
    if OURS in rows:
        ratio = Spread(**rows[OURS]["ratio_to_random"])
        console.print(f"random / {OURS} {TARGET}: {'met' if TARGET.met(ratio) else 'not met'}")


# ----------------------------------------------------------------------------------------------------------- contest


def measure_contest(arguments: argparse.Namespace) -> None:
    info, before = machine(), calibrate(arguments.calibration_seconds)
    with tempfile.TemporaryDirectory() as folder:
        contest = race.Contest.prepare(Path(folder), arguments.seconds, arguments.overrides)
        runs = race.race(contest, arguments.seeds)
    after = calibrate(arguments.calibration_seconds)
    found = race.results(runs, arguments.seconds)
    race.draw(found["curves"], arguments.seconds, arguments.figure)
    console = Console(highlight=False, width=120)
    print_contest(console, found, arguments)
    print_drift(console, drift(before, after))
    write_json(arguments.json, {
        **found,
        "machine": info,
        "calibration": {"before": before, "after": after, "drift": drift(before, after)},
    })  # fmt: skip


def print_contest(console: Console, found: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    title = f"What a search has after {arguments.seconds:g} s from the command, {arguments.seeds} seeds"
    columns = ("search", "hypervolume", "95 % interval", "trials", "ours ahead by", "ours had as much after", "target")
    table = plain_table(title, columns)
    for name, row in found["hypervolume"].items():
        volume, trials = Spread(**row), f"{found['trials'][name]:g}"
        against = found["against"].get(name)
        cells = [name, f"{volume.median:.3f}", f"{volume.low:.3f} - {volume.high:.3f}", trials]
        if against:
            gain, reached = Spread(**against["gain"]), Spread(**against["seconds_to_reach"])
            cells += [f"{gain.median:+.3f}", f"{reached.median:.0f} s, {against['reached']:.0%} of seeds"]
            cells.append("ahead" if name == race.SCRIPT else f"at most {arguments.seconds * QUARTER:g} s")
        table.add_row(*cells)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="{table,seeds,replay,contest}")

    table = commands.add_parser("table", help="keep the curves of finished studies as a table")
    table.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="of a study, with its journal")
    table.add_argument("--file", type=Path, default=TABLE)
    table.set_defaults(run=make_table)

    seeds = commands.add_parser("seeds", help="print the study that trains the best configurations with further seeds")
    seeds.add_argument("folder", type=Path, metavar="FOLDER", help="of a study, with its journal")
    seeds.add_argument("--best", type=int, default=30, help="configurations")
    seeds.add_argument("--seeds", type=int, default=2, help="further seeds of each")
    seeds.set_defaults(run=write_seeds)

    again = commands.add_parser("replay", help="samplers and pruners on the table")
    again.add_argument("--file", type=Path, default=TABLE)
    again.add_argument(
        "--pairs",
        nargs="+",
        default=[OURS, *PLATFORM, *RIVALS],
        help="names of rivals, and SAMPLER+PRUNER[,KEY=VALUE...] of ours",
    )
    again.add_argument("--seeds", type=int, default=50)
    again.add_argument("--budget", type=int, default=24, help="trainings to the end, whose epochs each pair may spend")
    again.add_argument("--most", type=int, default=100, help="the same, after which a replay is given up")
    again.add_argument("--jobs", type=int, default=2, help="processes")
    again.add_argument("--json", type=json_file, metavar="FILE")
    again.set_defaults(run=measure_replays)

    contest = commands.add_parser("contest", help="real searches by the clock on the wall")
    contest.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of the study to change")
    contest.add_argument("--seconds", type=float, default=120, help="of each search, from its command")
    contest.add_argument("--seeds", type=int, default=5)
    contest.add_argument("--figure", type=Path, default=FIGURE, help="of hypervolume over time")
    contest.add_argument(
        "--calibration-seconds", type=float, default=CALIBRATION_SECONDS, help="of each operation, before and after"
    )
    contest.add_argument("--json", type=json_file, metavar="FILE")
    contest.set_defaults(run=measure_contest)

    arguments = parser.parse_args()
    try:
        arguments.run(arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(MISTAKE)


if __name__ == "__main__":
    main()
