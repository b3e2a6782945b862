"""Made-up studies: lists of events as a journal has them, with a clock that the test turns."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aae_ray.search import events
from aae_ray.search.journal import Journal
from aae_ray.search.ledger import Ledger
from aae_ray.search.outcomes import FailureClass, Reason, RungVerdict, StudyEnd
from aae_ray.search.space import Plan, record_plan
from aae_ray.search.trial_record import TrialRecord
from aae_ray.settings import Settings, replace

MSE, JSD = "val/reconstruction_mse", "val/jsd_nats"
PARAMS: dict[str, Any] = {"model.latent_dim": 8, "model.prior": "mixture"}
START = 1_800_000_000.0


class History:
    """A study as it goes: each call is an event, a second after the last one unless the clock is turned."""

    def __init__(
        self, plan: Plan | None = None, time: float = START, study_id: str = "study-1", **settings: Any
    ) -> None:
        """With settings by their dotted keys, in which `__` stands for the dot."""
        values = {key.replace("__", "."): value for key, value in settings.items()}
        self.plan = plan or Plan(replace(Settings(), values), {})
        self.events: list[events.Event] = []
        self.ledger = Ledger()
        self.now = time
        self.add(
            events.StudyStarted(
                study_id=study_id,
                plan=record_plan(self.plan),
                data=events.DataRecord(
                    name="digits", digest="d", shape=(1, 8, 8), classes=10, train=1000, val=300, test=300
                ),
                versions={"python": "3.12"},
                provenance={},
                host="host",
                pid=1,
            )
        )

    def add(self, event: events.Event, wait: float = 1.0) -> events.Event:
        stamped = event.model_copy(update={"time": self.now})
        self.events.append(stamped)
        self.ledger.apply(stamped)
        self.now += wait
        return stamped

    def trial(self, number: int) -> TrialRecord:
        return self.ledger.trials[number]

    # ---------------------------------------------------------------------------------------------------- parts of it

    def begin(self, params: Mapping[str, Any] = PARAMS, sampler_state: Mapping[str, Any] | None = None) -> int:
        """Suggest a trial and start its first attempt; returns its number."""
        number = self.suggest(params, sampler_state)
        self.attempt(number)
        return number

    def suggest(self, params: Mapping[str, Any] = PARAMS, sampler_state: Mapping[str, Any] | None = None) -> int:
        number = len(self.ledger.trials)
        self.add(events.Suggested(number=number, params=dict(params), sampler_state=dict(sampler_state or {})), wait=0)
        return number

    def attempt(self, number: int) -> None:
        trial = self.trial(number)
        epoch = trial.epoch if trial.checkpoint else 0
        self.add(events.AttemptStarted(number=number, attempt=trial.attempts + 1, epoch=epoch), wait=0)

    def report(
        self,
        number: int,
        epoch: int,
        mse: float,
        jsd: float | None = None,
        *,
        training: float = 8.0,
        evaluation: float = 1.0,
        wait: float = 10.0,
        checkpoint: bool = True,
        **more: float,
    ) -> events.Event:
        """Metrics of one epoch, `wait` seconds after the last event."""
        values = {MSE: mse} | ({} if jsd is None else {JSD: jsd})
        values |= {name.replace("__", "/"): value for name, value in more.items()}
        return self.history(
            number,
            [{"epoch": float(epoch), **values}],
            training=training,
            evaluation=evaluation,
            wait=wait,
            checkpoint=checkpoint,
        )

    def history(
        self,
        number: int,
        history: Sequence[Mapping[str, float]],
        *,
        training: float = 8.0,
        evaluation: float = 1.0,
        wait: float = 10.0,
        checkpoint: bool = True,
    ) -> events.Event:
        self.now += wait
        epoch = int(history[-1]["epoch"]) if history else 0
        return self.add(
            events.Reported(
                number=number,
                epoch=epoch,
                history=tuple(dict(metrics) for metrics in history),
                checkpoint=f"trials/{number}/{epoch}" if checkpoint else None,
                training_seconds=training,
                evaluation_seconds=evaluation,
            ),
            wait=0,
        )

    def progress(self, number: int, done: int, batches: int = 469, wait: float = 10.0) -> events.Event:
        """A trial says how far its epoch is."""
        self.now += wait
        epoch = self.trial(number).epoch
        return self.add(events.Progressed(number=number, epoch=epoch, done=done, batches=batches), wait=0)

    def fail(self, number: int, failure: FailureClass, message: str = "it broke", *, retry: bool = False) -> None:
        """An attempt fails; without another one the trial ends."""
        attempt = self.trial(number).attempts
        self.add(
            events.AttemptFailed(number=number, attempt=attempt, failure=failure, message=message, retry=retry), wait=0
        )
        if not retry:
            self.end(number, Reason(failure.value), message)

    def end(self, number: int, reason: Reason = Reason.COMPLETED, message: str | None = None) -> TrialRecord:
        self.add(events.Ended(number=number, reason=reason, message=message), wait=0)
        return self.trial(number)

    def finish(
        self, mse: float, jsd: float | None = None, params: Mapping[str, Any] = PARAMS, **more: Any
    ) -> TrialRecord:
        """A trial from its suggestion to its planned end."""
        number = self.begin(params)
        self.report(number, self.plan.settings.train.epochs, mse, jsd, **more)
        return self.end(number)

    def another_seed(self, first: int, mse: float, jsd: float | None = None) -> TrialRecord:
        """A complete configuration is trained with another seed to its end."""
        number = len(self.ledger.trials)
        params = {**self.trial(first).params, "seed": len(self.trial(first).replicates) + 1}
        self.add(events.Suggested(number=number, params=params, replicate_of=first), wait=0)
        self.attempt(number)
        self.report(number, self.plan.settings.train.epochs, mse, jsd)
        return self.end(number)

    def pause(self, number: int, verdict: RungVerdict = RungVerdict.PAUSE) -> events.Event:
        """At the epoch of its last report; with another verdict it goes on from there."""
        epoch = self.trial(number).epoch
        return self.add(
            events.Decided(number=number, rung=epoch, values=(0.5, 0.5), ahead=1, reached=2, verdict=verdict), wait=0
        )

    def stop(self, end: StudyEnd = StudyEnd.USER, message: str | None = None) -> None:
        self.add(events.StudyStopped(end=end, message=message))

    def resume(self, plan: Plan | None = None) -> None:
        record = None if plan is None else record_plan(plan)
        self.add(events.StudyResumed(plan=record, host="host", pid=2))

    def write(self, folder: Path) -> Path:
        """The journal of it, in a folder that is made."""
        return write_journal(folder, self.events)


def write_journal(folder: Path, happened: Sequence[events.Event]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal.create(folder)
    with journal.path.open("w") as file:
        file.writelines(event.model_dump_json() + "\n" for event in happened)
    journal.close()
    return folder


def write_evaluation(folder: Path) -> Path:
    """What `python -m aae_ray.evaluate` leaves behind beside the studies."""
    data = events.DataRecord(name="digits", digest="d", shape=(1, 8, 8), classes=10, train=1000, val=300, test=300)
    event = events.Evaluated(
        time=START + 99,
        run_name="evaluate-decoder-1",
        experiment="aae/digits",
        params={},
        metrics={},
        tags={},
        data=data,
        sheet="nearest.png",
    )
    return write_journal(folder, [event])
