"""Numbers, names, durations and paths as people read them."""

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.text import Text

from aae_ray.evaluation.metrics import METRICS
from aae_ray.search import events

MESSAGE = 200  # letters of a failure's message
TIMES = (("hours", 3600), ("minutes", 60), ("seconds", 1))
MLFLOW_PORT = 5000  # of `mlflow ui`, in the command that is printed and in the addresses below it
RESUME, SYNC = "python -m aae_ray.tune --resume", "python -m aae_ray.tune --sync"


@dataclass(frozen=True)
class Symbols:
    """The signs that are no letters."""

    down: str
    up: str
    star: str
    filled: str  # of a progress bar
    empty: str
    dot: str  # between parts of a line
    overflow: Literal["ellipsis", "crop"]  # what becomes of a cell that is too long

    def arrow(self, direction: str | None) -> str:
        return {"min": self.down, "max": self.up}.get(direction or "", "")


UNICODE = Symbols(
    down="\N{DOWNWARDS ARROW}",
    up="\N{UPWARDS ARROW}",
    star="\N{BLACK STAR}",
    filled="\N{BOX DRAWINGS HEAVY HORIZONTAL}",
    empty="\N{BOX DRAWINGS LIGHT HORIZONTAL}",
    dot="\N{MIDDLE DOT}",
    overflow="ellipsis",
)
ASCII = Symbols(down="v", up="^", star="*", filled="=", empty="-", dot="|", overflow="crop")


def number(value: Any) -> str:
    """Four significant digits for a float, anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def domain(spec: Mapping[str, Any]) -> str:
    """A distribution as one says it: `0.0001 to 0.01, log`."""
    if "choices" in spec:
        said = ", ".join(map(number, spec["choices"]))
    else:
        said = f"{number(spec['low'])} to {number(spec['high'])}"
        said += ", log" if spec.get("log") else f", by {number(spec['step'])}" if "step" in spec else ""
    when = [f"{parent} is {' or '.join(map(number, of))}" for parent, of in spec.get("when", {}).items()]
    return said + (f"; where {' and '.join(when)}" if when else "")


def heading(metric: str, symbols: Symbols = UNICODE) -> str:
    """A metric with the direction that is better: `val/jsd_nats` and an arrow down."""
    return f"{metric} {symbols.arrow(METRICS[metric].direction)}".strip()


def describe(params: Mapping[str, Any]) -> str:
    """The most telling values of a trial, for its name: prior, size of the code, posterior; else its first ones."""
    parts = []
    for key, form in (
        ("task", "{}"),
        ("model.prior", "{}"),
        ("model.latent_dim", "z{}"),
        ("model.posterior", "{}"),
    ):
        if key in params:
            parts.append(form.format(params[key]))
    parts = parts or [f"{key.rpartition('.')[2]}={number(value)}" for key, value in list(params.items())[:2]]
    return "-".join(parts[:3])


def counted(count: int, noun: str) -> str:
    """How many there are: `1 trial`, `2 trials`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def duration(seconds: float) -> str:
    """Two units at most: `2 h 3 min`, `3 min 4 s`, `5 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def unit_of(seconds: float) -> tuple[str, int]:
    """The largest unit of which there are two or more, and its seconds."""
    return next((unit, size) for unit, size in TIMES if seconds >= 2 * size or size == 1)


def short_duration(seconds: float) -> str:
    """One unit, where there is no room, or no certainty, for two."""
    for limit, unit, size in ((90, "s", 1), (5400, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{round(seconds / size)} {unit}"
    return f"{round(seconds / 86400)} d"


def interval(low: float, high: float) -> str:
    """Two durations as a range, in one unit where they share it: `8 to 13 min`."""
    first, last = short_duration(low), short_duration(high)
    if first == last:
        return last
    same = first.rpartition(" ")[2] == last.rpartition(" ")[2]
    return f"{first.partition(' ')[0] if same else first} to {last}"


def with_floor(name: str, metrics: Mapping[str, float]) -> str:
    """A metric's value, and beside it what a perfect match, or real images, would get, where that was measured."""
    stem, _, unit = name.rpartition("_")
    references = {"floor": f"{name}_floor", "real images": f"{stem}_anchor_{unit}"}
    known = [f"{label} {number(metrics[other])}" for label, other in references.items() if other in metrics]
    return f"{name} {number(metrics[name])}" + (f" ({', '.join(known)})" if known else "")


def bullet(label: str, content: str) -> Text:
    """A line of a report: what it is about, in bold, and what there is to say."""
    return Text.assemble((f"{label:<12}", "bold"), content)


def machines_line(event: events.MachinesChanged) -> str:
    """What there is of machines in a cluster, and why such on demand are asked for."""
    present = ", ".join(
        f"{count} on {market}" if market == "spot" else f"{count} {market}" for market, count in event.present.items()
    )
    line = f"machines: {present or 'none'}"
    if event.asked_on_demand:
        several = event.asked_on_demand > 1
        line += (
            f"; {event.asked_on_demand} workers are to have machines" if several else "; 1 worker is to have a machine"
        )
        line += " on demand"
        line += f", as none came on spot for {duration(event.waited)}" if event.waited else ""
    return line


def machine_hours(hours: Mapping[str, float]) -> str:
    """Hours of a cluster's machines by market; empty where there were none."""
    return ", ".join(f"{amount:.2g} h {market}" for market, amount in sorted(hours.items()) if amount)


def first_line(message: str) -> str:
    """The first line of a message that says something, cut where it is long."""
    line = next((part.strip() for part in message.splitlines() if part.strip()), "no message")
    return line if len(line) <= MESSAGE else line[: MESSAGE - 3] + "..."


def shell_path(path: Path) -> str:
    """A path as one would type it: relative when it lies below this folder."""
    relative = os.path.relpath(path)
    return shlex.quote(str(path) if relative.startswith("..") else relative)


def resume_command(folder: Path) -> str:
    """What to type to go on with a study."""
    return f"{RESUME} {shell_path(folder)}"
