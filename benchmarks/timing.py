"""Timing on a machine that is not ours alone: interleaved blocks, a ratio for each pair of them, bootstrap intervals.

Numbers of two runs, or of two machines, are never compared: a ratio is taken between blocks that ran side by side.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

RESAMPLES = 10_000
CALIBRATION_SECONDS = 5  # of each operation: a neighbour's burst of a second is not what a run is judged by
QUIET = 0.10  # a run counts when its calibrations, before and after, differ by no more
Floats = NDArray[np.float64]
Result = TypeVar("Result")


class Spread(NamedTuple):
    """A median with its 95 % bootstrap interval."""

    median: float
    low: float
    high: float


class Target(NamedTuple):
    """What a ratio should reach; judged by the worse edge of its interval."""

    value: float
    at_least: bool = True

    def met(self, spread: Spread) -> bool:
        return spread.low >= self.value if self.at_least else spread.high <= self.value

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.value:g}"


class Row(NamedTuple):
    """A line of the printed table."""

    key: str
    case: str
    spread: Spread
    target: Target


def spread(values: Sequence[float]) -> Spread:
    """The median of values and its interval: the values are drawn again, with replacement, many times."""
    return _interval(np.median(values), np.median(_redrawn(values, seed=0), axis=1))


def ratio_of_medians(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Median over median, for values that were not taken in pairs; both sides are drawn again."""
    drawn = np.median(_redrawn(above, seed=0), axis=1) / np.median(_redrawn(below, seed=1), axis=1)
    return _interval(np.median(above) / np.median(below), drawn)


def _redrawn(values: Sequence[float], seed: int) -> Floats:
    found: Floats = np.random.default_rng(seed).choice(np.asarray(values, dtype=np.float64), (RESAMPLES, len(values)))
    return found


def _interval(median: Any, drawn: Floats) -> Spread:
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Spread(float(median), float(low), float(high))


def paired(above: Sequence[float], below: Sequence[float]) -> Spread:
    """The ratio of each pair of neighbouring blocks, as a spread."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def interleave(arms: Mapping[str, Callable[[], Result]], rounds: int) -> dict[str, list[Result]]:
    """Each round runs every arm once, every second one backwards (A B, B A): a drift of the machine hits all alike."""
    found: dict[str, list[Result]] = {name: [] for name in arms}
    for turn in range(rounds):
        for name in list(arms)[:: 1 if turn % 2 == 0 else -1]:
            found[name].append(arms[name]())
    return found


def calibrate(seconds: float = CALIBRATION_SECONDS) -> dict[str, float]:
    """What one thread of this machine does right now: large matrix products, and tiny operations."""
    a, small = torch.randn(1000, 1000), torch.zeros(8)
    return {
        "gemm_seconds": _best(lambda: a @ a, seconds),
        "tiny_operations_seconds": _best(lambda: [small + 1 for _ in range(10_000)], seconds),
    }


def _best(work: Callable[[], object], seconds: float) -> float:
    found: list[float] = []
    while sum(found) < seconds:
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


def drift(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """The largest relative change of a calibration."""
    return max(abs(after[name] / before[name] - 1) for name in before)


def machine() -> dict[str, Any]:
    """Processor, cores and versions."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "ray", "pythae")},
    }


def _processor() -> str:
    """Linux tells the name in a file, and Python does not find it there."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def plain_table(title: str, columns: Sequence[str]) -> Table:
    """A table without lines whose columns, after the first, are aligned to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, no_wrap=True, justify="right" if index else "left")
    return table


def print_rows(console: Console, title: str, rows: Sequence[Row], moved: float) -> None:
    """The table of ratios with their targets, and whether the machine was quiet enough for them to count."""
    table = plain_table(title, ("key", "case", "median", "95 % interval", "target", "met"))
    table.columns[1].justify = "left"
    for key, case, found, target in rows:
        interval, met = f"{found.low:.3f} - {found.high:.3f}", "yes" if target.met(found) else "no"
        table.add_row(key, case, f"{found.median:.3f}", interval, str(target), met)
    console.print(table)
    print_drift(console, moved)


def print_drift(console: Console, moved: float) -> None:
    """Whether the machine was quiet enough for a run to count."""
    judgement = "quiet enough" if moved <= QUIET else f"above {QUIET:.0%}: measure again when nothing else runs"
    console.print(f"calibration before and after differs by {moved:.1%}, {judgement}")


def json_file(text: str) -> Path:
    """A file to write ratios to, looked at before minutes are spent on measuring them."""
    path = Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: give a file in a folder that exists")
    return path


def write_json(path: Path | None, content: Mapping[str, Any]) -> None:
    if path:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
