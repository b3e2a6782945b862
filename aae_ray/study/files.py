"""The files of a study's trials: figures are drawn when a trial pauses or has ended, checkpoints go that nobody needs.

Figures lie in a folder of the state that they show, so that a trial that goes on after a pause gets new ones.
"""

import logging
import queue
import shutil
from collections.abc import Set
from concurrent.futures import ThreadPoolExecutor

from aae_ray.evaluation import figure_data
from aae_ray.search import events
from aae_ray.search.contract import trial_name
from aae_ray.search.ledger import Ledger
from aae_ray.search.outcomes import Reason, RungVerdict, State, StudyEnd
from aae_ray.search.store import TRIALS, Store
from aae_ray.search.trial_record import TrialRecord

FIGURES = "figures"

logger = logging.getLogger(__name__)


class TrialFiles:
    """A sink of the conductor: draws figures and deletes checkpoints, nearly all of it in a thread of its own."""

    def __init__(self, store: Store, keep: str) -> None:
        self.store, self.folder, self.keep = store, store.local, keep
        self.executor = ThreadPoolExecutor(1, "figures")
        self.written: queue.SimpleQueue[events.FileWritten] = queue.SimpleQueue()  # for the journal, by its own thread
        self.drawn: set[str] = set()  # folders whose figures are drawn, or in line for it
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
        for trial in ended:  # whoever has the last figure has the others
            if f"{_figures(trial)}/{figure_data.FIGURES[-1]}" in trial.files:
                self.drawn.add(_figures(trial))
        for trial in ended:
            if trial.checkpoint in saved:
                self._keep(trial)
        self.release(ledger)

    def handle(self, event: events.Event, ledger: Ledger) -> None:
        match event:
            case events.Reported(checkpoint=str(checkpoint)):
                needed = set(ledger.borrowed.values())
                if self.store.remote is None:
                    self._delete_others(ledger.trials[event.number], needed)
                else:
                    self.executor.submit(self._delete_older, checkpoint, needed)
            case events.Decided(verdict=RungVerdict.PAUSE):
                if _pauses_to_stay(ledger):
                    self._draw_once(ledger.trials[event.number])
            case events.Ended():
                self._ended(ledger.trials[event.number], ledger)
            case events.StudyEnded():
                for number in self._unneeded(ledger):  # the thread has come to its end
                    self.kept.discard(number)
                    self._delete(number)

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
        self._draw_once(trial)

    def _draw_once(self, trial: TrialRecord) -> None:
        if trial.checkpoint is not None and (folder := _figures(trial)) not in self.drawn:
            self.drawn.add(folder)
            self.executor.submit(self._draw, trial.number, trial.checkpoint, folder)

    def release(self, ledger: Ledger) -> None:
        """Delete the checkpoints of ended trials that are not to stay."""
        for number in self._unneeded(ledger):
            self.kept.discard(number)
            self.executor.submit(self._delete, number)  # behind its figures

    def _unneeded(self, ledger: Ledger) -> Set[int]:
        """Ended trials whose checkpoints nobody needs: not those of the front, of paused trials, of donors. While there
        are seeds to come, which move the means of configurations, each of these may get to the front."""
        if self.keep == "all":
            return frozenset()
        stay, borrowed = {trial.number for trial in ledger.front()}, set(ledger.borrowed.values())
        stay |= set(ledger.confirming.numbers) if ledger.confirming is not None else set()
        study = ledger.current_plan.settings.study
        going_on = ledger.end is not StudyEnd.PLANNED
        moving = going_on and (study.seeds_per_trial > 1 or study.confirm.finalists > 0)
        all_measured = going_on and study.finalists == "all"  # at the study's end, from their checkpoints
        for number in self.kept - stay:
            trial = ledger.trials[number]
            contender = all_measured or (moving and trial.replicate_of is None)
            contender = contender and trial.state is State.COMPLETE
            if contender or trial.reason is Reason.PAUSED or trial.checkpoint in borrowed:
                stay.add(number)
        return self.kept - stay

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

    def _draw(self, number: int, checkpoint: str, folder: str) -> None:
        """The figures of a trial, into a folder of the study's; runs in a thread of its own."""
        try:
            try:  # this file alone: where the study is elsewhere, the state beside it is many times as large
                content = self.store.read_bytes(f"{checkpoint}/{figure_data.FILE}")
            except FileNotFoundError:
                return
            for name, png in figure_data.draw(figure_data.load(content)).items():
                path = f"{folder}/{name}"
                (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
                (self.folder / path).write_bytes(png)
                self.written.put(events.FileWritten(number=number, path=path, folder=FIGURES))
        except Exception:  # a figure must never cost a study
            logger.exception("the figures of %s could not be drawn", trial_name(number))


def _pauses_to_stay(ledger: Ledger) -> bool:
    """Whether a pause may be a trial's end. A population goes on as one, and has nothing drawn on its way."""
    return not ledger.pruner.rule.population


def _figures(trial: TrialRecord) -> str:
    """The folder of the figures that show a trial's last saved state."""
    assert trial.checkpoint is not None
    return f"{FIGURES}/{trial.name}/{trial.checkpoint.rpartition('/')[2]}"
