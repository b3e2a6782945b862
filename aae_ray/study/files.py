"""The files of a study's trials: figures are drawn when a trial has ended, checkpoints go that nobody needs."""

import logging
import queue
import shutil
from collections.abc import Set
from concurrent.futures import ThreadPoolExecutor

from aae_ray.evaluation import figure_data
from aae_ray.search import events
from aae_ray.search.contract import trial_name
from aae_ray.search.ledger import Ledger, TrialRecord
from aae_ray.search.outcomes import Reason
from aae_ray.search.store import TRIALS, Store

FIGURES = "figures"

logger = logging.getLogger(__name__)


class TrialFiles:
    """A sink of the conductor: draws figures and deletes checkpoints, nearly all of it in a thread of its own."""

    def __init__(self, store: Store, keep: str) -> None:
        self.store, self.folder, self.keep = store, store.local, keep
        self.executor = ThreadPoolExecutor(1, "figures")
        self.written: queue.SimpleQueue[events.FileWritten] = queue.SimpleQueue()  # for the journal, by its own thread
        self.drawn: set[int] = set()  # trials whose figures are drawn, or in line for it
        self.kept: set[int] = set()  # ended trials that have a checkpoint

    def take_up(self, ledger: Ledger) -> None:
        """What earlier sessions left undone: figures of trials that have ended, checkpoints that nobody needs."""
        ended = [trial for trial in ledger.trials if not trial.open and trial.checkpoint is not None]
        if not ended:
            return
        try:  # once for all trials, as the store may be far away
            saved = {name.rpartition("/")[0] for name in self.store.files(TRIALS)}
        except Exception:  # figures and room must never cost a study
            logger.exception("the checkpoints of ended trials could not be listed")
            return
        # The last figure of a trial: whoever has it, has the others.
        self.drawn |= {trial.number for trial in ended if _figure(trial.number, figure_data.FIGURES[-1]) in trial.files}
        for trial in ended:
            if trial.checkpoint in saved:
                self._keep(trial)
        self.release(ledger)

    def handle(self, event: events.Event, ledger: Ledger) -> None:
        if isinstance(event, events.Reported) and event.checkpoint is not None:
            needed = _donated(ledger)
            if self.store.remote is None:
                self._delete_others(ledger.trials[event.number], needed)
            else:
                self.executor.submit(self._delete_older, event.checkpoint, needed)
        elif isinstance(event, events.AttemptStarted):  # one that had ended paused, with figures, goes on
            self.drawn.discard(event.number)
            self.kept.discard(event.number)
        elif isinstance(event, events.Ended):
            self._ended(ledger.trials[event.number], ledger)

    def drain(self) -> list[events.FileWritten]:
        """Figures that were drawn since the last call."""
        drawn = []
        while not self.written.empty():
            drawn.append(self.written.get())
        return drawn

    def close(self) -> None:
        """Wait for the last figures."""
        self.executor.shutdown()

    def abandon(self) -> None:
        """Begin nothing more; the next session takes it up."""
        self.executor.shutdown(wait=False, cancel_futures=True)

    def _ended(self, trial: TrialRecord, ledger: Ledger) -> None:
        if trial.reason is not None and trial.reason.resumable and trial.reason is not Reason.PAUSED:
            return  # a resume goes on from its checkpoint
        self._keep(trial)
        self.release(ledger)

    def _keep(self, trial: TrialRecord) -> None:
        if trial.checkpoint is None:
            return
        self.kept.add(trial.number)
        if trial.number not in self.drawn:
            self.drawn.add(trial.number)
            self.executor.submit(self._draw, trial.number, trial.checkpoint)

    def release(self, ledger: Ledger) -> None:
        """Delete the checkpoints of ended trials that are not to stay."""
        if self.keep == "all":
            return
        stay = {trial.number for trial in ledger.front()}
        paused = {number for number in self.kept if ledger.trials[number].reason is Reason.PAUSED}
        donors = {number for number in self.kept if ledger.trials[number].checkpoint in _donated(ledger)}
        for number in self.kept - stay - paused - donors:
            self.kept.discard(number)
            self.executor.submit(self._delete, number)  # behind its figures

    def release_all_but(self, number: int) -> None:
        """When the study has ended, with study.keep=best."""
        for other in self.kept - {number}:
            self.kept.discard(other)
            self._delete(other)

    def _delete(self, number: int) -> None:
        self.store.delete(f"{TRIALS}/{trial_name(number)}")

    def _delete_others(self, trial: TrialRecord, needed: Set[str]) -> None:
        assert trial.checkpoint is not None
        latest = self.folder / trial.checkpoint
        for other in latest.parent.glob("epoch_*"):
            if other != latest and str(other.relative_to(self.folder)) not in needed:
                shutil.rmtree(other, ignore_errors=True)

    def _delete_older(self, checkpoint: str, needed: Set[str]) -> None:
        """The same where it takes its time: the trial may have written its next one meanwhile."""
        folder, _, latest = checkpoint.rpartition("/")
        try:
            epochs = {name.removeprefix(f"{folder}/").partition("/")[0] for name in self.store.files(folder)}
            for epoch in sorted(epochs):
                if epoch < latest and f"{folder}/{epoch}" not in needed:
                    self.store.delete(f"{folder}/{epoch}")
        except Exception:  # it is only room that is lost
            logger.exception("older checkpoints of %s could not be deleted", folder)

    def _draw(self, number: int, checkpoint: str) -> None:
        """The figures of a trial, into the study's folder; runs in a thread of its own."""
        try:
            data = figure_data.load(self.store.fetch(checkpoint))
            for name, png in (figure_data.draw(data) if data else {}).items():
                path = _figure(number, name)
                (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
                (self.folder / path).write_bytes(png)
                self.written.put(events.FileWritten(number=number, path=path, folder=FIGURES))
        except Exception:  # a figure must never cost a study
            logger.exception("the figures of %s could not be drawn", trial_name(number))


def _donated(ledger: Ledger) -> set[str]:
    """Checkpoints that open trials go on from, and which other trials wrote."""
    trials = [*ledger.open.values(), *ledger.paused.values()]
    return {trial.checkpoint for trial in trials if trial.donors and trial.checkpoint is not None}


def _figure(number: int, name: str) -> str:
    return f"{FIGURES}/{trial_name(number)}/{name}"
