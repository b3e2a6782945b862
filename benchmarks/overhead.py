"""python benchmarks/overhead.py: trials per hour of a study of small trials, against three other ways to run them."""

import argparse
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when PyTorch is imported, and handed on to Ray's workers
if not __package__:  # run as a file: its neighbours are found from the root, by Ray's workers too
    sys.path.insert(0, str(Path(__file__).parents[1]))
    os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], os.environ.get("PYTHONPATH", "")])
os.environ.setdefault("RAY_worker_niceness", "0")  # else Ray's workers yield to whatever runs, and a loop does not

import numpy as np
import ray
import torch
from rich.console import Console
from rich.table import Table

from aae_ray.datasets.dataset import load
from aae_ray.execution.capacity import gangs_that_fit
from aae_ray.execution.ray_cluster import ENVIRONMENT
from aae_ray.settings import Settings, replace
from benchmarks import arms
from benchmarks.arms import CLOCK, Ends, Point
from benchmarks.timing import (
    CALIBRATION_SECONDS,
    Row,
    Spread,
    Target,
    calibrate,
    drift,
    interleave,
    json_file,
    machine,
    paired,
    plain_table,
    print_rows,
    ratio_of_medians,
    spread,
    write_json,
)

HOUR = 3600
TARGETS = {
    "ratio_documented": Target(62),
    "ratio_class_trainable": Target(0.95),
    "ratio_serial": Target(0.75),
    "overhead_seconds": Target(0.25, at_least=False),
}
CASES = {
    "ratio_documented": "ours / a TorchTrainer per trial, trials per hour",
    "ratio_class_trainable": "ours / a Trainable that trains by itself",
    "ratio_serial": "ours / a serial loop times the number of gangs",
    "overhead_seconds": "of a warm trial, not spent in training",
}


class Block(NamedTuple):
    """Trials that one arm ran in a row."""

    cycles: list[float]  # seconds from end to end of successive trials in the same place
    results: list[dict[str, Any]]  # of the trials that ended these cycles
    cold: dict[str, float]  # the same run seen from its start

    def rate(self, slots: int) -> float:
        """Trials per hour of all places together."""
        return HOUR * slots / float(np.mean(self.cycles))


def settings_for(epochs: int, folder: Path) -> Settings:
    """Small trials on the digits that end when their budget ends, and never before."""
    return replace(Settings(), {
        "data.cache": str(folder / "cache"), "study.folder": str(folder / "trials"), "study.pruner.type": "none",
        "model.hidden": "64-32", "model.discriminator_hidden": "64-32",
        "train.epochs": epochs, "train.batch_size": 50, "train.device": "cpu", "health.stop": False,
    })  # fmt: skip


def random_points(count: int) -> list[Point]:
    """The same configurations for every arm and block."""
    generator = np.random.default_rng(0)
    rates = ("optim.reconstruction_lr", "optim.discrimination_lr", "optim.regularization_lr")
    return [
        {name: float(10 ** generator.uniform(-4, -2.5)) for name in rates}
        | {"model.latent_dim": int(generator.integers(2, 17))}
        for _ in range(count)
    ]


@contextmanager
def own_ray(folder: Path, environment: Mapping[str, str], **options: Any) -> Iterator[float]:
    """A Ray of this benchmark alone, with these variables where the user has set none; yields its seconds to start."""
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the new one prints a table at any verbosity
    warnings.filterwarnings("ignore", module=r"ray\..*")
    start = time.monotonic()
    ray.init(address="local", log_to_driver=False, logging_level=logging.ERROR, **options)
    logger = logging.getLogger("ray")
    logger.handlers, logger.propagate = [logging.FileHandler(folder / "ray.log", delay=True)], False
    try:
        yield time.monotonic() - start
    finally:
        ray.shutdown()


def warm_block(ends: Ends) -> Block:
    """Cycles of each warm process: from the time when the slowest of them has ended its first trial."""
    by_process: dict[int, list[tuple[float, dict[str, Any]]]] = {}
    for at, result in zip(ends.at, ends.results, strict=True):
        by_process.setdefault(result["pid"], []).append((at, result))
    warm = max(history[0][0] for history in by_process.values())
    cycles = [
        (after - before, result)
        for history in by_process.values()
        for (before, _), (after, result) in pairwise(history)
        if before >= warm
    ]
    if not cycles:
        raise SystemExit("no trial began after all gangs were warm; give a larger --trials-per-gang")
    return Block([seconds for seconds, _ in cycles], [result for _, result in cycles], _cold(ends))


def cold_block(ends: Ends, slots: int) -> Block:
    """Cycles where every trial starts from nothing; the first round is left out when there is another."""
    ready = [ends.began] * slots + ends.at
    seconds = [after - before for before, after in zip(ready, ends.at, strict=False)]
    return Block(seconds[slots:] or seconds, ends.results[slots:] or ends.results, _cold(ends))


def _cold(ends: Ends) -> dict[str, float]:
    return {
        "first_trial_seconds": ends.at[0] - ends.began,
        "trials_per_hour": HOUR * len(ends.at) / (ends.at[-1] - ends.began),
    }


def where_time_goes(blocks: Sequence[Block]) -> dict[str, float]:
    """Mean seconds of a warm trial by part; they add up to its cycle."""
    clocks: dict[str, list[float]] = {}
    for block in blocks:
        for result in block.results:
            for name in result:
                if name.startswith(CLOCK):
                    clocks.setdefault(name.removeprefix(CLOCK), []).append(result[name])
    mean = {name: float(np.mean(seconds)) for name, seconds in clocks.items()}
    cycle = float(np.mean([seconds for block in blocks for seconds in block.cycles]))
    return {
        "training": mean["training"],
        "building the networks, state and pictures": mean["worker"] - mean["training"],
        "writing the state": mean["save"],
        "messages, and Ray Tune between its calls": cycle - mean["worker"] - mean["save"],
    }


def measure_documented(base: Settings, trials: int, slots: int, folder: Path) -> tuple[Block, float]:
    """Ray's documented pattern with Ray's defaults, in a Ray of its own, and the seconds that this took to start."""
    with own_ray(folder, {}, resources={arms.DRIVER: 1}) as started:
        trainable = arms.documented(base, folder / "documented")
        ends = arms.run_tune(trainable, random_points(trials), slots, folder / "tune", reuse=False)
        return cold_block(ends, slots), started


def measure_warm(
    base: Settings, points: Sequence[Point], slots: int, rounds: int, folder: Path
) -> dict[str, list[Block]]:
    """Blocks of the arms that stay warm, side by side in time: the loop, ours, a plain Trainable."""
    dataset = load(base.data)

    def serial() -> Block:
        return Block(arms.run_serially(points[: len(points) // slots], base, dataset), [], {})

    def ours() -> Block:
        return warm_block(arms.run_study(base, points, slots, folder / "studies"))

    def plain() -> Block:
        return warm_block(arms.run_tune(arms.plain(base), points, slots, folder / "tune", reuse=True))

    serial()  # loads what PyTorch loads on first use
    return interleave({"serial": serial, "ours": ours, "plain": plain}, rounds)


def overhead(block: Block) -> float:
    """Mean seconds of a warm trial in which its worker did not train."""
    trained = [result[f"{CLOCK}training"] for result in block.results]
    return float(np.mean(block.cycles) - np.mean(trained))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python benchmarks/overhead.py", description=__doc__)
    parser.add_argument("--gangs", type=int, default=os.cpu_count(), help="at a time; as many as cores when not given")
    parser.add_argument("--trials-per-gang", type=int, default=30, help="in a block; each gang's first is not counted")
    parser.add_argument("--epochs", type=int, default=5, help="of a trial")
    parser.add_argument("--rounds", type=int, default=6, help="blocks of each arm")
    parser.add_argument("--documented-trials", type=int, default=6, help="of Ray's documented pattern; 0 leaves it out")
    parser.add_argument(
        "--calibration-seconds", type=float, default=CALIBRATION_SECONDS, help="of each operation, before and after"
    )
    parser.add_argument("--json", type=json_file, metavar="FILE", help="write the ratios there")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    console = Console(highlight=False, width=120)
    info, before, ray_start = machine(), calibrate(arguments.calibration_seconds), {}
    found: dict[str, list[Block]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base, slots = settings_for(arguments.epochs, folder), arguments.gangs
        load(base.data)  # prepared once, before anything is timed
        if arguments.documented_trials:
            console.print(f"measuring {arguments.documented_trials} trials of Ray's documented pattern")
            block, ray_start["documented"] = measure_documented(base, arguments.documented_trials, slots, folder)
            found["documented"] = [block]
        with own_ray(folder, ENVIRONMENT) as ray_start["ours"]:
            slots = min(slots, gangs_that_fit(base))
            points = random_points(slots * arguments.trials_per_gang)
            console.print(f"measuring {arguments.rounds} rounds of {len(points)} trials, {slots} at a time")
            found |= measure_warm(base, points, slots, arguments.rounds, folder)
    after = calibrate(arguments.calibration_seconds)

    rates = {name: [block.rate(slots) for block in blocks] for name, blocks in found.items()}
    spreads = {
        "ratio_class_trainable": paired(rates["ours"], rates["plain"]),
        "ratio_serial": paired(rates["ours"], rates["serial"]),
        "overhead_seconds": spread([overhead(block) for block in found["ours"]]),
    }
    if "documented" in found:
        each = [HOUR * slots / seconds for seconds in found["documented"][0].cycles]
        spreads["ratio_documented"] = ratio_of_medians(rates["ours"], each)
        rates["documented"] = each
    parts = where_time_goes(found["ours"])
    warm = {name: spread(values) for name, values in rates.items()}
    cold = {
        name: {key: float(np.median([block.cold[key] for block in blocks])) for key in blocks[0].cold}
        for name, blocks in found.items()
        if blocks[0].cold
    }
    console.print(trials_table(warm, cold))
    console.print(parts_table(parts))
    rows = [Row(key, CASES[key], spreads[key], target) for key, target in TARGETS.items() if key in spreads]
    print_rows(console, "Small trials", rows, drift(before, after))
    write_json(arguments.json, {
        **{key: spreads[key]._asdict() if key in spreads else None for key in TARGETS},
        "warm_trials_per_hour": {name: found._asdict() for name, found in warm.items()},
        "cold": cold,
        "ray_start_seconds": ray_start,
        "seconds_of_a_warm_trial": parts,
        "machine": info,
        "calibration": {"before": before, "after": after, "drift": drift(before, after)},
    })  # fmt: skip


def trials_table(warm: Mapping[str, Spread], cold: Mapping[str, Mapping[str, float]]) -> Table:
    """Trials per hour of each arm, with and without its start; for the loop, times the number of gangs."""
    table = plain_table("Trials per hour", ("arm", "warm", "95 % interval", "from the start", "first trial after"))
    for name, found in warm.items():
        begun = cold.get(name)
        start = (f"{begun['trials_per_hour']:.0f}", f"{begun['first_trial_seconds']:.1f} s") if begun else ()
        table.add_row(name, f"{found.median:.0f}", f"{found.low:.0f} - {found.high:.0f}", *start)
    return table


def parts_table(parts: Mapping[str, float]) -> Table:
    table = plain_table("A warm trial of ours", ("part", "seconds"))
    for name, seconds in parts.items():
        table.add_row(name, f"{seconds:.3f}")
    return table


if __name__ == "__main__":
    main()
