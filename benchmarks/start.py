"""python benchmarks/start.py: seconds from the command to the first trained epoch, beside the least that Ray needs."""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import NamedTuple

if not __package__:  # run as a file: its neighbours are found from the root
    sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console

from aae_ray.datasets.dataset import load
from aae_ray.search.events import Reported
from aae_ray.search.journal import read_events
from aae_ray.search.space import read_plan
from benchmarks.timing import (
    CALIBRATION_SECONDS,
    calibrate,
    drift,
    interleave,
    json_file,
    machine,
    paired,
    plain_table,
    print_drift,
    spread,
    write_json,
)

ROOT = Path(__file__).parents[1]
STUDY = ROOT / "search_spaces" / "digits.yaml"
TRIALS = 2
LONGEST = 300  # seconds of a run; a study that hangs is no measurement


class Start(NamedTuple):
    """Seconds since the command."""

    first_epoch: float
    end: float


def run(module: str, arguments: list[str], folder: Path, trained: Callable[[], float]) -> Start:
    """A command as a user types it, in a folder of its own; `trained` finds the time of its first epoch."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    began = time.time()
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LONGEST,
    )
    ended = time.time()
    if done.returncode:
        raise SystemExit(f"{module} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return Start(trained() - began, ended - began)


def settings_for(folder: Path) -> list[str]:
    """Trials of one epoch that no pruner ends, and data that are prepared once."""
    return [f"data.cache={folder / 'cache'}", "train.epochs=1", "study.pruner.type=none"]


def ours(folder: Path, name: str) -> Start:
    """A study of two trials. Its folder is new, its MLflow database that of the earlier ones, as in a user's folder."""
    runs = folder / "runs" / name

    def trained() -> float:
        (journal,) = runs.glob("*/journal.jsonl")
        return next(event.time for event in read_events(journal.parent) if isinstance(event, Reported))

    budget = [f"study.folder={runs}", f"study.budget.trials={TRIALS}"]
    return run("aae_ray.tune", [str(STUDY), *settings_for(folder), *budget], folder, trained)


def bare(folder: Path, name: str) -> Start:
    place = folder / "bare" / name
    place.mkdir(parents=True)
    arguments = [str(STUDY), str(place), *settings_for(folder)]
    return run("benchmarks.bare", arguments, folder, lambda: float((place / "trained").read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python benchmarks/start.py", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="runs of each arm, after one that is not counted")
    parser.add_argument(
        "--calibration-seconds", type=float, default=CALIBRATION_SECONDS, help="of each operation, before and after"
    )
    parser.add_argument("--json", type=json_file, metavar="FILE", help="write the ratio and the seconds there")
    arguments = parser.parse_args()

    console = Console(highlight=False, width=120)
    info, before = machine(), calibrate(arguments.calibration_seconds)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        load(read_plan(str(STUDY), settings_for(folder)).settings.data)  # prepared once, before anything is timed
        names = (f"run{number}" for number in count())
        arms = {"ours": lambda: ours(folder, next(names)), "bare": lambda: bare(folder, next(names))}
        console.print(f"measuring {arguments.rounds} rounds of a study of {TRIALS} trials, and of a bare script")
        uncounted = {name: starts[0] for name, starts in interleave(arms, 1).items()}  # files read, database made
        found = interleave(arms, arguments.rounds)
    after = calibrate(arguments.calibration_seconds)

    ratio = paired([each.first_epoch for each in found["ours"]], [each.first_epoch for each in found["bare"]])
    seconds = {
        arm: {field: spread([getattr(each, field) for each in starts]) for field in Start._fields}
        for arm, starts in found.items()
    }
    table = plain_table("Seconds from the command", ("arm", "to", "median", "95 % interval", "uncounted first run"))
    table.columns[1].justify = "left"
    for arm, spreads in seconds.items():
        for field, each in spreads.items():
            first = f"{getattr(uncounted[arm], field):.2f}"
            told = field.replace("_", " ")
            table.add_row(arm, told, f"{each.median:.2f}", f"{each.low:.2f} - {each.high:.2f}", first)
    console.print(table)
    console.print(f"ratio_bare, first epoch, ours / bare: {ratio.median:.2f} ({ratio.low:.2f} - {ratio.high:.2f})")
    print_drift(console, drift(before, after))
    write_json(arguments.json, {
        "ratio_bare": ratio._asdict(),
        "seconds": {
            arm: {field: each._asdict() for field, each in spreads.items()} for arm, spreads in seconds.items()
        },
        "uncounted_first_run": {arm: start._asdict() for arm, start in uncounted.items()},
        "runs": {arm: [each._asdict() for each in starts] for arm, starts in found.items()},
        "machine": info,
        "calibration": {"before": before, "after": after, "drift": drift(before, after)},
    })  # fmt: skip


if __name__ == "__main__":
    main()
