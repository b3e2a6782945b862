"""A study on a cluster of the lab, watched through its journal and MLflow, without the platform's own readers."""

import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.lab.supervisor import FILE, UP
from cluster.lab.world import World

RAY_UP_SECONDS = 1200.0
JOIN_SECONDS = 900.0
SECONDS_FOR_A_COMMAND = 240.0
PAUSE_SECONDS = 5.0  # between looks, most of which cost a process
SHORT = (
    "study.pruner.type=none",
    "study.finalists=best",
    "tracking.register_model=false",
    "health.stop=false",
)

JOURNAL = """
import json
from pyarrow.fs import FileSelector, FileSystem
system, root = FileSystem.from_uri({uri!r})
found = system.get_file_info(FileSelector(root, recursive=True, allow_not_found=True))
names = sorted(info.path for info in found if info.is_file and {part!r} in info.path)
text = b"".join(system.open_input_stream(name).read() for name in names)
print(json.dumps([json.loads(line) for line in text.decode().splitlines()]))
"""
RUNS = """
import json
from mlflow import MlflowClient
client = MlflowClient()
experiment = client.get_experiment_by_name("aae/digits")
runs = client.search_runs([experiment.experiment_id]) if experiment else []
print(json.dumps([
    dict(name=r.info.run_name, status=r.info.status, trial=r.data.tags.get("aae.trial_id"),
         epochs=[p.step for p in client.get_metric_history(r.info.run_id, "val/reconstruction_mse")])
    for r in runs
]))
"""


def until(what: str, condition: Callable[[], Any], seconds: float, world: World, pause: float = PAUSE_SECONDS) -> Any:
    """The first true answer; on failure the lab's logs are in the AssertionError."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"not after {seconds:g} s: {what}\n{world.logs()}"
        time.sleep(pause)
    return answer


def ray_up(world: World) -> None:
    world.run(*UP[world.state["kind"]], "--yes", "--no-config-cache", seconds=RAY_UP_SECONDS)


def active_nodes(world: World) -> int:
    """Nodes that the autoscaler calls active, the head among them."""
    said = world.run("ray", "exec", FILE, "ray status", seconds=SECONDS_FOR_A_COMMAND, check=False).stdout
    block = said.partition("Active:")[2].partition("Pending:")[0]
    lines = (line.split() for line in block.replace("\r", "").splitlines())
    return sum(int(words[0]) for words in lines if len(words) == 2 and words[0].isdigit())


class HeadStudy:
    """`python -m aae_ray.tune` on the head, by `ray exec`, with all that it says in a log."""

    def __init__(self, world: World, folder: str, *settings: str) -> None:
        """`folder` is study.folder: a URI, or a folder that all nodes see."""
        self.world, self.folder = world, folder
        self.log = world.folder / f"study-{time.monotonic_ns()}.log"
        line = " ".join(["python -m aae_ray.tune", f"study.folder={folder}", *SHORT, *settings])
        self.begin(f"cd ~/aae-ray && {line}")

    def begin(self, line: str) -> None:
        with self.log.open("ab") as output:
            command = self.world.command("ray", "exec", FILE, f"{line} < /dev/null")
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def events(self, part: str = "/journal/0") -> list[dict[str, Any]]:
        """The study's journal, as it is on the storage."""
        uri = self.folder if "://" in self.folder else f"file:///tmp/shared/{Path(self.folder).name}"
        found: list[dict[str, Any]] = self.world.python(JOURNAL.format(uri=uri, part=part))
        return found

    def wait(self, seconds: float) -> str:
        """What it said, when it has ended well."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        said = self.log.read_text(errors="replace")
        assert code == 0, f"exit code {code} (none: not done after {seconds:g} s)\n{said[-6000:]}\n{self.world.logs()}"
        return said

    def kill(self) -> None:
        """The terminal's end of it."""
        self.process.kill()
        self.process.wait()


def check_complete(events: list[dict[str, Any]], trials: int, epochs: int) -> None:
    """Every trial was suggested once, ended once, as complete, and reported every epoch once on its way there."""
    ended = {event["number"]: event["reason"] for event in events if event["event"] == "ended"}
    counts = Counter(event["number"] for event in events if event["event"] == "ended")
    assert ended == dict.fromkeys(range(trials), "completed") and set(counts.values()) == {1}
    suggested = [event["number"] for event in events if event["event"] == "suggested"]
    assert sorted(suggested) == list(range(trials))
    assert [event["event"] for event in events].count("study_ended") == 1
    for number in range(trials):
        reports = [event for event in events if event["event"] == "reported" and event["number"] == number]
        assert max(event["epoch"] for event in reports) == epochs and reports[-1]["finished"]


def mlflow_runs(world: World) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = world.python(RUNS)
    return found


def check_mlflow(runs: list[dict[str, Any]], trials: int, epochs: int) -> None:
    """One run for the study, one for each trial, finished, with each epoch once."""
    children = {run["trial"]: run for run in runs if run["trial"]}
    assert len(runs) == trials + 1 and sorted(children) == [f"t{number:04}" for number in range(trials)]
    for run in runs:
        assert run["status"] == "FINISHED", run
    for run in children.values():
        assert run["epochs"] == sorted(set(run["epochs"])) and run["epochs"][-1] == epochs, run


def failures(events: list[dict[str, Any]]) -> list[str]:
    return [event["failure"] for event in events if event["event"] == "attempt_failed"]


def last_epoch(events: list[dict[str, Any]], number: int) -> int:
    return max((e["epoch"] for e in events if e["event"] == "reported" and e["number"] == number), default=0)
