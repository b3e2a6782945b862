"""python benchmarks/paper.py TABLE: reproduce a table of the paper by confirm runs of the platform, into docs/paper.md.

A confirm run is a study whose only searched key is the seed: the same configuration, once for each seed, recorded in
MLflow like any study. The sides of a comparison are tuned first, each by a study with as many trials. What comes of it
is kept in docs/paper/TABLE.json; docs/paper.md is written from all of these.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: its neighbours are found from the root, by Ray's workers too
    sys.path.insert(0, str(Path(__file__).parents[1]))
    os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], os.environ.get("PYTHONPATH", "")])

from optuna.distributions import CategoricalDistribution
from PIL import Image

from aae_ray.errors import MISTAKE, UserError
from aae_ray.reporting.console import console_for
from aae_ray.reporting.report import StudyReport
from aae_ray.search.outcomes import State, StudyEnd
from aae_ray.search.space import Plan, read_plan
from aae_ray.search.store import find_study, read_ledger
from aae_ray.search.trial_record import TrialRecord
from aae_ray.settings import Settings, flatten, replace
from aae_ray.study.study import resume_study, start_study
from benchmarks.paper_page import COMPARED, COMPARISONS, TABLES, Comparison, Table, page
from benchmarks.timing import machine

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
UNREGISTERED = ("tracking.register_model=false",)


def default_seeds(table: str) -> list[int]:
    """Those of a row; the studies of a comparison have trained with 0 when its seeds are."""
    return [1, 2, 3] if table in COMPARISONS else [0, 1, 2]


def plan_for(table: Table, seeds: Sequence[int], overrides: Sequence[str]) -> Plan:
    """One of the file's start points, once for each seed; what is given on the command line wins."""
    path = ROOT / "search_spaces" / f"{table.file}.yaml"
    start = read_plan(str(path)).start
    point = start[table.point] if start else {}  # a file without a space is a point itself
    changes = [f"{key}={value}" for key, value in point.items()] + list(table.overrides)
    plan = read_plan(
        str(path),
        [
            *changes,
            f"study.name=paper-{table.file.replace('_', '-')}",
            f"study.budget.trials={len(seeds)}",
            "study.pruner.type=none",
            "study.seeds_per_trial=1",  # the seeds are those of the row
            "study.seeds_from_rung=null",
            "study.sampler.type=random",
            "study.finalists=all",
            "health.stop=false",  # a confirm run answers what was asked, whatever it looks like on the way
            *UNREGISTERED,
            *overrides,
        ],
    )
    if plan.space:
        raise UserError(
            f"{path} searches {', '.join(plan.space)} without a value in the point that is run; give each one"
        )
    return Plan(plan.settings, {"seed": CategoricalDistribution(list(seeds))}, tuple({"seed": seed} for seed in seeds))


def tuned(comparison: Comparison, side: str, overrides: Sequence[str]) -> Plan:
    """The study that finds the settings of one side of a comparison, with as many trials as that of each other side."""
    given = [*comparison.overrides, *comparison.sides[side], "study.name=paper-tuned", *UNREGISTERED, *overrides]
    return read_plan(str(ROOT / "search_spaces" / f"{comparison.file}.yaml"), given)


def confirmed(found: Plan, params: Mapping[str, Any], seeds: Sequence[int]) -> Plan:
    """What a study found, trained again with seeds that it did not choose by."""
    changes = {
        **params,
        "study.name": "paper-confirmed",
        "study.budget.trials": len(seeds),
        "study.sampler.type": "random",
        "study.pruner.type": "none",
        "study.constraints": (),  # a confirm run has nobody to choose from
        "study.finalists": "all",
        "health.stop": False,
    }
    own = {"study.sampler.seed": found.settings.study.sampler.seed, **changes}
    run = replace(found.settings, own)
    return Plan(run, {"seed": CategoricalDistribution(list(seeds))}, tuple({"seed": seed} for seed in seeds))


def compare(name: str, overrides: Sequence[str], seeds: Sequence[int], command: str) -> dict[str, Any]:
    """Each side of a comparison tuned by a study of its own, then its best settings on all seeds, by one protocol."""
    comparison, began = COMPARISONS[name], time.monotonic()
    rows: dict[str, dict[str, list[float]]] = {}
    found: dict[str, dict[str, Any]] = {}
    pictures: list[Image.Image] = []  # of each side's first seed
    for side in comparison.sides:
        plan = tuned(comparison, side, overrides)
        search = start_study(plan, console_for())
        if search.interrupted or search.best is None:
            raise UserError(
                f"nothing is written: the study of {side} found nothing; what there is of it is kept in {search.folder}"
            )
        again = confirmed(plan, search.best.params, seeds)
        outcome = start_study(again, console_for())
        _require_all(outcome)
        tests = [_tested(record) for record in outcome.ledger.trials]
        rows[side] = {key: [test[key] for test in tests if key in test] for key in COMPARED}
        states = [record.state for record in search.ledger.trials]
        found[side] = {
            "params": dict(search.best.params),
            "trials": len(states),
            "complete": states.count(State.COMPLETE),
            "settings": shaping(again.settings),
        }
        if comparison.picture:
            drawn = outcome.folder / "figures" / outcome.ledger.trials[0].name
            pictures.append(Image.open(max(drawn.glob("epoch_*/codes.png"))).convert("RGB"))
    if pictures:
        width, height = pictures[0].size
        sheet = Image.new("RGB", (2 * width, (len(pictures) + 1) // 2 * height), "white")
        for index, picture in enumerate(pictures):
            sheet.paste(picture, (index % 2 * width, index // 2 * height))
        sheet.save(DOCS / f"{name}.png", optimize=True)
    return {
        "command": command,
        "rows": rows,
        "tuned": found,
        "seeds": list(seeds),
        "hours": (time.monotonic() - began) / 3600,
        "date": date.today().isoformat(),
        "machine": machine(),
    }


def resumed(name: str, plan: Plan) -> StudyReport:
    """Go on with the study of a row that was interrupted, or take what it came to where it has ended since. Raises
    UserError when it is not this row's."""
    folder = find_study(name, Path("runs"))
    ledger = read_ledger(folder)
    there = ledger.current_plan
    if shaping(there.settings) != shaping(plan.settings) or there.start != plan.start:
        raise UserError(f"{name} has other settings or seeds than this row; give those that it was started with")
    if ledger.end is StudyEnd.PLANNED:
        return StudyReport(folder, ledger, "", None, 0, [], None)
    return resume_study(name, (), console_for())


def result(table: Table, plan: Plan, outcome: StudyReport, command: str) -> dict[str, Any]:
    """What is kept of the runs: every seed's metrics on the test images, and all that shaped them."""
    _require_all(outcome)
    tests = {
        str(record.params["seed"]): _tested(record)
        for record in sorted(outcome.ledger.trials, key=lambda record: int(str(record.params["seed"])))
    }
    return {
        "metric": table.metric,
        "command": command,
        "tests": tests,
        "settings": shaping(plan.settings),
        "hours": outcome.ledger.active_seconds / 3600,
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python benchmarks/paper.py", description=__doc__)
    parser.add_argument(
        "table", choices=[*TABLES, *COMPARISONS, "page"], help="`page` writes docs/paper.md again and runs nothing"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings to change, e.g. data.path=FOLDER")
    parser.add_argument(
        "--seeds", type=int, nargs="+", metavar="SEED", help="0 1 2, and of a comparison 1 2 3, when not given"
    )
    parser.add_argument("--resume", metavar="STUDY", help="go on with the study of a row that was interrupted")
    arguments = parser.parse_args()
    if arguments.resume and arguments.table not in TABLES:
        parser.error(f"argument --resume: {arguments.table} is no row of one study")
    seeds = arguments.seeds or default_seeds(arguments.table)
    if wrong := [seed for seed in seeds if not 0 <= seed < 2**32]:
        parser.error(f"argument --seeds: a seed is a whole number from 0, got {wrong[0]}")

    folder = DOCS / "paper"
    folder.mkdir(parents=True, exist_ok=True)
    places = ("data.path", "data.cache", "study.", "tracking.")
    budgets = "study.budget."  # decide what a comparison finds
    own = [change for change in arguments.overrides if change.startswith(budgets) or not change.startswith(places)]
    own += [] if seeds == default_seeds(arguments.table) else ["--seeds", *map(str, seeds)]
    command = " ".join(["python benchmarks/paper.py", arguments.table, *own])
    if arguments.table in COMPARISONS:
        _keep(folder / f"{arguments.table}.json", compare(arguments.table, arguments.overrides, seeds, command))
    elif arguments.table != "page":
        table = TABLES[arguments.table]
        plan = plan_for(table, seeds, arguments.overrides)
        outcome = start_study(plan, console_for()) if arguments.resume is None else resumed(arguments.resume, plan)
        _keep(folder / f"{arguments.table}.json", result(table, plan, outcome, command))
    kept = {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}
    (DOCS / "paper.md").write_text(page(kept), encoding="utf-8")


def _require_all(outcome: StudyReport) -> None:
    """A row is of all its seeds: raises UserError where the study was interrupted, or a trial did not come to its end
    and was not measured."""
    missing = [record.name for record in outcome.ledger.trials if record.test is None]
    if outcome.interrupted or missing or not outcome.ledger.trials:
        told = "the study was interrupted" if outcome.interrupted else f"{', '.join(missing)} was not measured"
        raise UserError(f"nothing is written: {told}; what there is of it is kept in {outcome.folder}")


def _tested(record: TrialRecord) -> dict[str, float]:
    assert record.test is not None, "every trial was measured"
    return dict(record.test.metrics)


def _keep(file: Path, found: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(MISTAKE)
