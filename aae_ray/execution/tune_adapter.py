"""Ray Tune as the executor of a study: it runs what the conductor suggests, and says what came of it.

Tune's memory is not used. A resumed study is a new Tuner whose searcher first hands out the trials that were open; so
is one whose gangs Ray has ended. A retry is one more suggestion, and one more trial of Tune's; where an attempt still
waited for its resources, the next one waits in its place.
"""

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune.search import Searcher

from aae_ray.execution.capacity import Room, room_for
from aae_ray.execution.failures import failure_of
from aae_ray.execution.mailbox import start_mailbox_hub
from aae_ray.execution.nodes import leave_out
from aae_ray.execution.trial import BARRIER_SECONDS, trainable
from aae_ray.search.conductor import Conductor, Continue, NoSuggestion, Pause, Retry, Stop
from aae_ray.search.contract import Failure, Progress, Report, from_result
from aae_ray.search.events import Noted
from aae_ray.search.journal import JournalError
from aae_ray.search.outcomes import FailureClass, StudyEnd
from aae_ray.search.store import GANGS, TUNE, store_at

ROOM_SECONDS = 5.0  # between two looks at what the cluster has room for
STALL_SECONDS = 10.0  # between two looks at trials, which are some tenths of a second apart

logger = logging.getLogger(__name__)


class SearchOver(BaseException):
    """Leaves Tune's loop at once: the study has been stopped, and its end states are written."""


class Executor:
    """What Tune calls back: all in the driver's main thread."""

    def __init__(
        self,
        conductor: Conductor,
        poll: Callable[[], None],
        pending_timeout: float,
        answer_timeout: float = math.inf,
        room: Callable[[], Room] | None = None,
        leave_out: Callable[[str, str], bool] = lambda node, why: False,
    ) -> None:
        """`poll` is called several times a second; it may stop the conductor. An attempt may wait for resources that
        are there for `pending_timeout` seconds, and be silent for `answer_timeout`. With `room`, the number of gangs
        follows the cluster, and attempts for which it has no room yet wait without counting as failed. `leave_out`
        keeps a node that is to blame for a failure from getting further attempts; whether it could."""
        self.conductor, self.poll, self.pending_timeout = conductor, poll, pending_timeout
        self.answer_timeout = answer_timeout
        self.looked = time.monotonic()
        self.room_of, self.leave_out = room, leave_out
        self.left_out: set[str] = set()  # nodes, by Ray's ids
        self.room: Room | None = None  # as it was when it was last asked for
        self.room_asked = -math.inf
        self.placeless: set[str] = set()  # attempts for which the cluster has no room yet
        self.had_room = time.monotonic()  # when there was room for a gang, or one said something, for the last time
        self.numbers: dict[str, int] = {}  # Tune's trial id -> ours, of attempts under way
        self.pending: dict[str, float] = {}  # attempts without a gang, since when
        self.heard: dict[str, float] = {}  # attempts that have begun, and when they last said something
        self.trials: Sequence[Any] = ()  # Tune's
        self.abandoned: set[str] = set()  # Tune still waits for their resources, and we no longer
        self.problem: JournalError | None = None  # what ended the search, as Tune hands on no exception as it is

    @contextmanager
    def journaling(self) -> Iterator[None]:
        """A journal that cannot be written ends the search."""
        try:
            yield
        except JournalError as error:
            self.problem = error
            raise SearchOver from None

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        with self.journaling():
            suggestion = self.conductor.suggest()
        if suggestion is NoSuggestion.WAIT:
            return None
        if isinstance(suggestion, NoSuggestion):
            return str(Searcher.FINISHED)
        self.numbers[trial_id] = suggestion.number
        self.pending[trial_id] = time.monotonic()
        return suggestion.to_config()

    def started(self, trial_id: str) -> None:
        self.abandoned.discard(trial_id)
        if trial_id in self.numbers:
            self.pending.pop(trial_id, None)
            self.heard[trial_id] = time.monotonic()
            with self.journaling():
                self.conductor.started(self.numbers[trial_id])

    def result(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Take what a trial said; whether its attempt is over."""
        if trial_id not in self.numbers:  # given up before it came
            return True
        self.heard[trial_id] = time.monotonic()
        said = from_result(result)
        if isinstance(said, Failure):
            self._failed(trial_id, said)
            return True
        with self.journaling():
            over = not isinstance(self._decision(said), Continue)
        if over:
            self._forget(trial_id)
        return over

    def _decision(self, said: Report | Progress) -> Continue | Pause | Stop:
        return self.conductor.progressed(said) if isinstance(said, Progress) else self.conductor.reported(said)

    def error(self, trial_id: str, error: BaseException | None) -> None:
        """The process of a trial has died, or its code has an error."""
        if trial_id in self.numbers:
            self._failed(trial_id, failure_of(self.numbers[trial_id], error))

    def should_stop(self) -> bool:
        """Whether the search is to end. Raises SearchOver to end it at once."""
        with self.journaling():
            self.poll()
            if self.conductor.ledger.end is None:
                self._forgive_a_stall()
                self._follow_the_cluster()
                self._look_at_pending()
                self._look_at_silent()
            if self.conductor.ledger.end is not None:
                raise SearchOver
            left = self.conductor.time_left
            if left is not None and left <= 0:
                self.conductor.out_of_time()
                for trial_id, number in list(self.numbers.items()):
                    if number not in self.conductor.suggested:  # it has ended with the budget, and is not begun
                        self._forget(trial_id)
                return not self.conductor.suggested
        return False

    def _forgive_a_stall(self) -> None:
        """Where this process was stopped itself, it has yet to hear what was said meanwhile."""
        now, before = time.monotonic(), self.looked
        self.looked = now
        if now - before > STALL_SECONDS:
            self.had_room += now - before
            for times in (self.pending, self.heard):
                times.update({trial_id: since + now - before for trial_id, since in times.items()})

    def _follow_the_cluster(self) -> None:
        """As many gangs as the cluster may hold by now; attempts without a place on it wait, up to a limit."""
        now = time.monotonic()
        if self.room_of is not None and now - self.room_asked >= ROOM_SECONDS:
            self.room_asked = now
            try:
                self.room = self.room_of()
            except Exception:  # Ray does not answer, which others look after
                logger.warning("the room on the cluster could not be looked at", exc_info=True)
        if self.room is None:
            return
        self.conductor.gangs = self.room.wanted
        places = max(self.room.present - len(self.heard), 0)
        self.placeless = set(sorted(self.pending, key=self.pending.__getitem__)[places:])
        self.pending |= dict.fromkeys(self.placeless, now)  # their time begins with their place
        if self.room.present:
            self.had_room = now
        else:  # an attempt may train on a machine that is being taken away, or have a gang that waits for machines
            self.had_room = max([self.had_room, *self.heard.values()])
        limit = self.conductor.ledger.current_plan.settings.study.capacity_timeout
        if now - self.had_room > limit:
            text = f"no machine with room for a gang has come within study.capacity_timeout={limit:g} s"
            self.conductor.stop(StudyEnd.FAILURES, text)

    def _look_at_pending(self) -> None:
        """Attempts for which Ray finds no resources fail; the next ones wait in the same places of Tune's queue."""
        text = f"Ray found no resources for it, or could not start its process, within {self.pending_timeout:g} s"
        for trial_id, since in list(self.pending.items()):
            if trial_id in self.placeless or time.monotonic() - since <= self.pending_timeout:
                continue
            number = self.numbers[trial_id]
            if self._kill(trial_id):  # the process of an earlier trial, which does not begin this one
                self._failed(trial_id, self._hung(number, self.pending_timeout))
            elif isinstance(self.conductor.failed(Failure(number, FailureClass.CANNOT_START, text)), Retry):
                self.conductor.retry_in_place(number)
                self.pending[trial_id] = time.monotonic()
            else:
                del self.numbers[trial_id], self.pending[trial_id]
                self.abandoned.add(trial_id)
        none_trains = self.numbers.keys() <= self.pending.keys()
        if len(self.abandoned) >= self.conductor.gangs and none_trains and self.conductor.ledger.end is None:
            self.conductor.stop(StudyEnd.FAILURES, f"no gang came up within {self.pending_timeout:g} s")

    def _look_at_silent(self) -> None:
        """A process that is stopped, or hangs in the file system, cannot tell of its own timeout."""
        for trial_id, since in list(self.heard.items()):
            if time.monotonic() - since > self.answer_timeout:
                self._kill(trial_id)
                self._failed(trial_id, self._hung(self.numbers[trial_id], self.answer_timeout))

    def _hung(self, number: int, seconds: float) -> Failure:
        return Failure(number, FailureClass.HUNG, f"its process has said nothing for {seconds:g} s")

    def _kill(self, trial_id: str) -> bool:
        """End the process of an attempt, which Tune hears of as of any other death. Whether it has one."""
        trial = next((trial for trial in reversed(self.trials) if trial.trial_id == trial_id), None)
        actor = None if trial is None else trial.temporary_state.ray_actor
        if actor is not None:
            ray.kill(actor)
        return actor is not None

    def lost(self, error: RayError) -> bool:
        """Ray has ended what ran, in a way that Tune does not expect. Whether an attempt was under way.

        Ray does not say who took too much memory: each of them has failed for it, and is tried again alone, where those
        that need less come to their end.
        """
        begun = [number for trial_id, number in self.numbers.items() if trial_id not in self.pending]
        failed = begun or list(self.numbers.values())
        waiting = [number for number in self.numbers.values() if number not in failed]
        with suppress(SearchOver), self.journaling():
            for number in failed:
                failure = failure_of(number, error)
                if failure.kind is FailureClass.BUG:  # of one of them at most: the others must not be given up for it
                    failure = replace(failure, kind=FailureClass.LOST_WORKER)
                if self.conductor.ledger.end is None:
                    self.conductor.failed(failure)
        for number in waiting:
            self.conductor.taken_back(number)
        return bool(failed)

    def _forget(self, trial_id: str) -> None:
        for known in (self.numbers, self.pending, self.heard):
            known.pop(trial_id, None)

    def _failed(self, trial_id: str, failure: Failure) -> None:
        self._forget(trial_id)
        with self.journaling():
            if failure.node and failure.node not in self.left_out:
                self.left_out.add(failure.node)
                if self.leave_out(failure.node, failure.message):
                    self.conductor.record(Noted(text=f"a node gets no more trials: {failure.message}"))
            self.conductor.failed(failure)


# Tune pickles what it calls back into its own snapshot: the executor stays behind, as that is never read.


class ConductorSearcher(Searcher):  # type: ignore[misc]
    """Tune asks it for trials."""

    def __init__(self, executor: Executor) -> None:
        super().__init__()
        self.executor: Executor | None = executor

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"executor": None}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        return str(Searcher.FINISHED) if self.executor is None else self.executor.suggest(trial_id)

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: results come through the stopper, and errors through the callback, which knows them."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal is the memory."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a study is resumed from its journal")


class ConductorStopper(tune.Stopper):  # type: ignore[misc]
    """Tune asks it of each result whether the trial goes on, and several times a second whether the search does."""

    def __init__(self, executor: Executor) -> None:
        self.executor: Executor | None = executor

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        return self.executor is None or self.executor.result(trial_id, result)

    def stop_all(self) -> bool:
        return self.executor is None or self.executor.should_stop()

    def __getstate__(self) -> dict[str, Any]:
        return {"executor": None}


class ConductorCallback(tune.Callback):  # type: ignore[misc]
    """Tune tells it when an attempt starts, and when one ends in an error."""

    def __init__(self, executor: Executor) -> None:
        self.executor: Executor | None = executor

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self.executor is not None:
            self.executor.trials = trials

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if self.executor is not None:
            self.executor.started(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if self.executor is not None:
            self.executor.error(trial.trial_id, _error_of(trial))

    def __getstate__(self) -> dict[str, Any]:
        return {"executor": None}


def _error_of(trial: Any) -> BaseException | None:
    """Why Tune's trial has failed. Tune keeps what actors and tasks raised, and of anything else the text; its own
    `get_error` looks for them in the study's folder, where they never are."""
    error: BaseException | None = None
    with suppress(OSError, TypeError):
        error = RayError(Path(trial.error_file).read_text().partition("\n")[2])  # the first line is Tune's count
    with suppress(OSError, TypeError), open(trial.pickled_error_file, "rb") as file:
        error = ray.cloudpickle.load(file)
    return error


def search(conductor: Conductor, folder: str, poll: Callable[[], None], *, verbose: bool = False) -> None:
    """Run the conductor's trials on Ray until it has no more, or is stopped. `folder` is the study's, as every node
    sees it. Raises JournalError when the journal cannot be written."""
    settings, started = conductor.ledger.current_plan.settings, conductor.ledger.started
    study, digest = settings.study, None if started is None else started.data.digest
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = "100000"  # all gangs start at once; the conductor says how many
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1000000")  # Tune's snapshot is not used
    os.environ["RAY_TRAIN_COUNT_PREEMPTION_AS_FAILURE"] = "1"  # else Tune itself retries them, for ever and untold
    for name in (TUNE, GANGS):  # of a session that was killed
        store_at(folder).delete(name)
    while conductor.ledger.end is None and conductor.more_to_suggest:
        # A gang's own timeout comes first, and says more; gangs that are up may still wait for each other.
        starting = study.start_timeout + 2 * BARRIER_SECONDS
        patience = starting
        if study.workers_per_trial > 1:  # the gang itself waits for machines
            patience = max(starting, study.capacity_timeout + study.start_timeout)
        executor = Executor(
            conductor, poll, starting, patience + study.step_timeout, lambda: room_for(settings), leave_out
        )
        hub = start_mailbox_hub(conductor.gangs_needed)  # gangs wait there for each other
        try:
            with suppress(SearchOver):
                _tuner(executor, trainable(settings, folder, hub, digest=digest), folder, verbose=verbose).fit()
            if executor.problem is not None:
                raise executor.problem
            if conductor.ledger.end is None and conductor.more_to_suggest:
                conductor.stop(StudyEnd.USER, "Ray Tune was told to stop")  # by SIGUSR1, which it takes for itself
            return
        except RuntimeError as error:
            # Ray's memory monitor, or the loss of a node: Tune knows only actors that die by themselves.
            cause = error.__cause__
            if not isinstance(cause, RayError) or not executor.lost(cause):
                raise
            if executor.problem is not None:
                raise executor.problem from None
            logger.warning("Ray ended the gangs, which start anew: %s", cause)
        finally:
            store_at(folder).delete(TUNE)


def _tuner(executor: Executor, kind: Any, folder: str, *, verbose: bool) -> tune.Tuner:
    return tune.Tuner(
        kind,
        tune_config=tune.TuneConfig(
            search_alg=ConductorSearcher(executor),
            num_samples=-1,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"trial_{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name=TUNE,
            storage_path=folder,
            stop=ConductorStopper(executor),
            callbacks=[ConductorCallback(executor)],
            verbose=int(verbose),
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
        ),
    )
