"""Ray Tune runs the trials of a study: the Tuner, what it calls back, and how it is stopped in order."""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from ray import tune

from aae_ray.evaluation import figure_data as pictures
from aae_ray.execution.callback import StudyCallback
from aae_ray.execution.mailbox import open_office
from aae_ray.execution.ray_cluster import send_log_to
from aae_ray.execution.trial import trainable
from aae_ray.reporting.screen import Screen
from aae_ray.search.ledger import BUDGET, ERROR, USER, Ledger, TrialRecord
from aae_ray.search.pruner import FrontPruner
from aae_ray.search.sampler import OptunaSearcher, create_study
from aae_ray.search.space import Plan
from aae_ray.tracking.sink import FIGURES, Records


class Search:
    """Holds what a running search changes: the ledger, the latest checkpoint of each trial, Optuna's study."""

    def __init__(
        self, plan: Plan, study_id: str, folder: Path, ledger: Ledger, records: Records, screen: Screen
    ) -> None:
        self.plan, self.study_id, self.folder = plan, study_id, folder
        self.ledger, self.records, self.screen = ledger, records, screen
        self.optuna_study = create_study(plan, study_id, folder)
        self.searcher = OptunaSearcher(self.optuna_study, plan)
        self.checkpoints: dict[str, Any] = {}  # trial id -> its latest
        self.sketches: dict[str, pictures.FigureData | None] = {}
        self.draughtsman = ThreadPoolExecutor(1, "pictures")
        self.interrupted = False

    def run(self, gangs: int, *, verbose: bool) -> bool:
        """Run all trials, on so many gangs at a time; returns whether the user interrupted."""
        self.screen.say(
            f"warming up {gangs} {'gang' if gangs == 1 else 'gangs'} of {self.plan.settings.study.workers_per_trial}"
        )
        if not verbose:
            send_log_to(self.folder / "ray.log")
        with stop_in_order(self._interrupt):
            try:
                self._fit(gangs, verbose)
            except KeyboardInterrupt:
                self.interrupted = True
            except BaseException:
                self._end_open_trials(ERROR, failed=True)
                raise
        self._end_open_trials(USER if self.interrupted else BUDGET)
        return self.interrupted

    def _fit(self, gangs: int, verbose: bool) -> None:
        run, study = self.plan.settings, self.plan.settings.study
        place, _, name = study.folder.rpartition("/")
        tuner = tune.Tuner(
            trainable(run, open_office(gangs)),
            tune_config=tune.TuneConfig(
                search_alg=self.searcher,
                scheduler=FrontPruner(study, run.train.epochs),
                num_samples=study.budget.trials,
                max_concurrent_trials=gangs,
                reuse_actors=True,
                time_budget_s=study.budget.wall_clock,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=place,
                callbacks=[StudyCallback(self)],
                verbose=int(verbose),
                failure_config=tune.FailureConfig(max_failures=study.max_failures),
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1, num_to_keep=1),
            ),
        )
        tuner.fit()

    # ---------------------------------------------------------------------------------------- what Tune calls back with

    def trial_began(self, trial_id: str, params: dict[str, Any]) -> None:
        record = self.ledger.begin(trial_id, params)
        self.records.trial_began(record)
        self.screen.trial_began(record)

    def trial_reported(self, trial_id: str, result: dict[str, Any]) -> None:
        record = self.ledger.trials[trial_id]
        attempts = record.attempts
        for metrics in self.ledger.report(trial_id, result):
            self.records.trial_epoch(record, metrics)
        if record.attempts > attempts:  # its gang died, and it went on with a new one
            self.records.trial_began(record)
            self.screen.trial_began(record)
        self.screen.trial_reported(record)

    def trial_saved(self, trial_id: str, checkpoint: Any) -> None:
        """Keep the latest checkpoint in mind, and the data of its figures."""
        self.checkpoints[trial_id] = checkpoint
        with checkpoint.as_directory() as directory:
            self.sketches[trial_id] = pictures.load(Path(directory)) or self.sketches.get(trial_id)

    def trial_ended(self, trial_id: str, *, failed: bool = False, message: str | None = None) -> None:
        record = self.ledger.trials.get(trial_id)
        if record is not None and record.ended is None:  # a trial that never began has nothing to record
            self._end(self.ledger.end(trial_id, failed=failed, message=message))

    def _end_open_trials(self, reason: str, *, failed: bool = False) -> None:
        """Trials that were still running when the search stopped: Tune says nothing of their end."""
        for record in self.ledger.records:
            if record.ended is None:
                if record.state == "complete":  # its last report was taken, and the state behind it never saved
                    record.state, record.stop_reason = "running", None
                self._end(self.ledger.end(record.trial_id, reason, failed=failed))
        self.searcher.close(failed=failed)
        self.draughtsman.shutdown()

    def _end(self, record: TrialRecord) -> None:
        self.draughtsman.submit(self._draw, record, self.sketches.pop(record.trial_id, None))
        self.records.trial_ended(record, self.ledger)
        self.screen.trial_ended(record)

    def _draw(self, record: TrialRecord, sketch: pictures.FigureData | None) -> None:
        """The pictures of a trial that has ended, into the study's folder and MLflow; runs in a thread of its own."""
        folder = self.folder / FIGURES / record.name
        try:
            for name, png in (pictures.draw(sketch) if sketch else {}).items():
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(png)
                self.records.trial_picture(record, folder / name)
        except Exception:  # a picture must never cost a study
            logging.getLogger(__name__).exception("the pictures of %s could not be drawn", record.name)

    def _interrupt(self) -> None:
        self.interrupted = True
        self.screen.say("stopping in order; Ctrl-C again stops at once")


@contextmanager
def stop_in_order(on_stop: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM end a running search in order (Tune stops on SIGUSR1); a second Ctrl-C ends it at once.

    SIGTERM to this process, that is: one to its whole group reaches Ray's own processes too, and without them Ray ends
    this one before its last records.
    """

    stopping = False

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        if stopping:  # Tune puts this handler back when it stops: a second Ctrl-C comes here again
            raise KeyboardInterrupt
        stopping = True
        on_stop()
        if callable(signal.getsignal(signal.SIGUSR1)):
            os.kill(os.getpid(), signal.SIGUSR1)
        else:
            raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in (*numbers, signal.SIGUSR1)}
    for number in numbers:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
