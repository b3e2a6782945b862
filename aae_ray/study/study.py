"""A study from its plan, or from its journal, to its report: the order of events, and nothing else."""

import dataclasses
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from aae_ray.datasets.contents import contents_of
from aae_ray.datasets.dataset import Dataset
from aae_ray.datasets.sources import cache_folder
from aae_ray.errors import MISTAKE, STOPPED, UserError
from aae_ray.evaluation.constants import Constants
from aae_ray.evaluation.held_out import JUDGED
from aae_ray.evaluation.judge import Judge, judge_if_any
from aae_ray.execution.capacity import gangs_that_fit, nodes_to_come, present_nodes
from aae_ray.execution.market import market
from aae_ray.execution.metrics import StudyMetrics
from aae_ray.execution.nodes import check_nodes, check_nodes_to_come
from aae_ray.execution.ray_cluster import RayWatch, own_processes, ray_cluster, whereabouts
from aae_ray.execution.tune_adapter import search
from aae_ray.execution.worker import precision_advice
from aae_ray.reporting import plots, text
from aae_ray.reporting.analysis import SearchAnalysis
from aae_ray.reporting.cards import resolved
from aae_ray.reporting.html_report import OVERVIEW, REPORT, html_report, overview
from aae_ray.reporting.report import StudyReport, browse, page_commands, print_report
from aae_ray.reporting.screen import Screen
from aae_ray.reporting.trial_table import write_trial_table
from aae_ray.search import events
from aae_ray.search.conductor import Conductor
from aae_ray.search.gauges import Observed
from aae_ray.search.journal import Journal, JournalError, StudyLock
from aae_ray.search.ledger import Ledger
from aae_ray.search.outcomes import Reason, StudyEnd
from aae_ray.search.owner import Owner
from aae_ray.search.sampler import OptunaCopy, optuna_study
from aae_ray.search.space import Changes, Plan, read_plan, record_plan
from aae_ray.search.store import Store
from aae_ray.secrets import redact
from aae_ray.settings import replace
from aae_ray.study import checks
from aae_ray.study.files import TrialFiles
from aae_ray.study.finalists import choose, finalists, measure, publish
from aae_ray.study.log import LOG, logged
from aae_ray.study.mirror import Mirror, Trouble
from aae_ray.study.opening import (
    Opened,
    mirror_of,
    new_folder,
    opened,
    owned,
    remove_where_nothing_began,
    removed_where_nothing_began,
)
from aae_ray.study.signals import Signals
from aae_ray.study.warm_start import how_many_fit, prior_trials
from aae_ray.tracking.provenance import provenance
from aae_ray.tracking.sender import Synced, Tracker, import_early, recorded_address, send_pending

logger = logging.getLogger(__name__)

SEND_SECONDS, SEND_SECONDS_INTERRUPTED = 60.0, 8.0  # to wait at the end for MLflow to take the last records
WATCH_SECONDS = 0.5
DISK_SECONDS = 2.0
METRICS_SECONDS = 2.0  # between two updates of what Prometheus reads


# ------------------------------------------------------------------------------------------------------- how it begins


def start_study(
    plan: Plan,
    console: Console,
    *,
    warm_start: Sequence[str] = (),
    verbose: bool = False,
    ends_process: bool = True,
) -> StudyReport:
    """Run a new study to its end, its budget or Ctrl-C, and report. Raises UserError for mistakes of the user.

    `ends_process`: a second Ctrl-C ends this process at once, and not the study alone.
    """
    plan, uri, dataset = checks.checked(plan)
    for index, line in enumerate(contents_of(dataset).short()):
        console.print(text.bullet("" if index else "data", line), soft_wrap=True)
    prior = prior_trials(warm_start, plan, dataset, notes_to(console))
    if warm_start:
        console.print(text.bullet("warm start", how_many_fit(prior, plan)))
    folder = new_folder(plan)
    mirror = mirror_of(folder, plan.settings.study.folder)
    with (
        removed_where_nothing_began(folder),
        owned(folder, mirror, notes_to(console)) as lock,
        closing(Journal.create(folder, ensure=lock.ensure)) as journal,
    ):
        started = events.StudyStarted(
            study_id=folder.name,
            plan=record_plan(plan),
            data=events.DataRecord.of(dataset),
            versions=dict(checks.versions()),
            provenance={key: redact(value) for key, value in provenance().items()},
            host=socket.gethostname(),
            pid=os.getpid(),
            warm_start=tuple(prior),
        )
        session = Session(folder, uri, dataset, console, verbose, ends_process, started, lock, mirror)
        return session.run(journal, Ledger(), plan)


def resume_study(
    name: str,
    overrides: Changes,
    console: Console,
    *,
    extend: bool = False,
    any_version: bool = False,
    uri: str | None = None,
    root: Path = Path("runs"),
    verbose: bool = False,
    ends_process: bool = True,
) -> StudyReport:
    """Go on with a study: trials that have ended stay so, open ones go on from their checkpoints.

    With `extend`, new trials may have another space and longer budgets. Raises UserError when it cannot go on so.
    """
    with opened(name, root, notes_to(console), to_go_on=True) as here:
        ledger = here.ledger()
        old = ledger.current_plan
        plan = changed_plan(old, overrides)
        if uri is not None:
            plan = dataclasses.replace(plan, settings=replace(plan.settings, {"tracking.uri": uri}))
        plan, address, dataset = checks.checked(plan, new=False)
        if plan.settings.tracking.uri is None and not os.environ.get("MLFLOW_TRACKING_URI"):
            address = recorded_address(here.folder) or address  # the default is of the folder where a command is typed
        checks.check_resume(name, ledger, plan, dataset, extend=extend, any_version=any_version)
        checks.check_finalists(name, ledger, plan, Store(here.folder) if here.mirror is None else here.mirror.store)
        if ledger.end is StudyEnd.PLANNED and not extend:
            raise UserError(
                f"{name} has ended as planned, with {ledger.ended} trials; "
                f"add to it with --extend {name} study.budget.trials={ledger.ended + 10}"
            )
        more = plan.settings.study.budget.trials > ledger.configurations or any(
            trial.reason is not None and trial.reason.resumable and trial.reason is not Reason.PAUSED
            for trial in ledger.trials
        )
        changed = checks.changed_settings(old, plan)
        more = more or not changed.keys().isdisjoint(("study.seeds_per_trial", "study.pruner.reduction_factor"))
        more = more or any(key.startswith("study.confirm.") for key in changed)
        if extend and ledger.end is StudyEnd.PLANNED and changed and not more:
            raise UserError(
                f"{name} has {ledger.configurations} trials already, and study.budget.trials="
                f"{plan.settings.study.budget.trials} asks for no more; give a larger one"
            )
        if extend and not changed and ledger.end is StudyEnd.PLANNED:
            raise UserError(
                f"{name} is as it was asked for already; give a larger study.budget.trials, a space, or more epochs"
            )
        if (owner := here.lock.taken_over) is not None:
            notes_to(console)(f"taking over from process {owner.pid} on {owner.host}, which is no longer running")
        record = record_plan(plan)
        begin = events.StudyResumed(
            plan=record if record != record_plan(old) else None, host=socket.gethostname(), pid=os.getpid()
        )
        session = Session(here.folder, address, dataset, console, verbose, ends_process, begin, here.lock, here.mirror)
        return session.run(here.journal, ledger, plan)


def notes_to(console: Console) -> Callable[[str], None]:
    """What is worth knowing before a study runs, as lines of their own."""
    return lambda note: console.print(text.bullet("note", note), soft_wrap=True)


def close_study(name: str, console: Console, *, uri: str | None = None, root: Path = Path("runs")) -> None:
    """Close a study whose process has exited unexpectedly: its runs and trials end with it. Raises UserError."""
    with opened(name, root, notes_to(console)) as here:
        if here.ledger().end is None:
            here.journal.append(events.StudyStopped(end=StudyEnd.INTERRUPTED, message="closed by --close"))
            with suppress(OSError):  # the journal has it all
                write_trial_table(here.ledger(), here.folder)
        here.copy()
        result = send_pending(here.journal, uri)
    state = f"{here.folder.name} is closed; {text.counted(result.sent, 'record')} sent to MLflow, {result.left} left"
    console.print(state, soft_wrap=True)


def sync(name: str, console: Console, *, uri: str | None = None, root: Path = Path("runs")) -> bool:
    """Send to MLflow what it has not taken yet; whether all of it is there. Raises UserError."""
    with opened(name, root, notes_to(console)) as here:
        here.copy()
        result = send_pending(here.journal, uri)
        if (here.folder / REPORT).exists() and result.registered_now:
            result = send_report(here, result, console)
    console.print(f"{text.counted(result.sent, 'record')} sent to MLflow, {result.left} left", soft_wrap=True)
    for sentence in result.parked:
        console.print(text.bullet("MLflow", f"refused a record: {sentence}"), soft_wrap=True)
    if result.registration:
        made = result.registration
        console.print(text.bullet("registered", f"{made['name']} version {made['version']} ({made['reason']})"))
    for label, command in browse(result.uri, result.links) if result.links else []:
        console.print(text.bullet(label, command), soft_wrap=True)
    return not result.parked and not result.left


def send_report(here: Opened, result: Synced, console: Console) -> Synced:
    """Write a study's report anew, as it now knows what became of the champion, and send it too."""
    ledger, history = here.ledger(), here.journal.history
    best = None if ledger.chosen is None else ledger.trials[ledger.chosen.number]
    try:
        analysis = SearchAnalysis.of(ledger, history, best)
        here.journal.append(*write_report(here.folder, ledger, analysis, result.uri))
    except JournalError:
        raise
    except Exception as error:  # the records are in MLflow, and the page is as it was
        console.print(text.bullet("note", f"{here.folder / REPORT} could not be written anew: {error}"), soft_wrap=True)
        return result
    again = send_pending(here.journal, result.uri)
    return again._replace(sent=result.sent + again.sent)


def write_report(folder: Path, ledger: Ledger, analysis: SearchAnalysis | None, uri: str) -> list[events.FileWritten]:
    """The report as a page, and a sheet of all trials' samples, into the study's folder; for the parent run too."""
    page = html_report(ledger, analysis, folder, page_commands(folder, ledger, uri))
    (folder / REPORT).write_text(page, encoding="utf-8")
    written = [events.FileWritten(number=None, path=REPORT, folder=None)]
    if (sheet := overview(ledger, folder)) is not None:
        (folder / OVERVIEW).write_bytes(sheet)
        written.append(events.FileWritten(number=None, path=OVERVIEW, folder=None))
    return written


def changed_plan(plan: Plan, overrides: Changes) -> Plan:
    """A recorded plan with changes, checked as a study's file is. Raises SettingsError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "study.yaml")
        path.write_text(resolved(plan), encoding="utf-8")
        return read_plan(str(path), overrides)


# --------------------------------------------------------------------------------------------------------- how it goes


@dataclass
class Session:
    """What a study holds while it runs in this process."""

    folder: Path
    uri: str
    dataset: Dataset
    console: Console
    verbose: bool
    ends_process: bool  # at a second Ctrl-C
    begin: events.Event  # what the journal says of this session's start
    lock: StudyLock
    mirror: Mirror | None  # where the study's folder is elsewhere
    analysis: SearchAnalysis | None = None  # when the search has ended

    @property
    def store(self) -> Store:
        return Store(self.folder) if self.mirror is None else self.mirror.store

    @property
    def lost_to(self) -> Owner | None:
        """The process that has taken the study over, as this one was stopped or cut off for long."""
        return self.lock.lost_to or (None if self.mirror is None else self.mirror.lost_to)

    def run(self, journal: Journal, ledger: Ledger, plan: Plan) -> StudyReport:
        """This session of the study, from the start of Ray to the report."""
        import_early()  # while Ray's processes start
        study = plan.settings.study
        with logged(self.folder, self.console, verbose=self.verbose):
            screen = Screen(self.console, self.folder, plan, self.dataset)
            signals = Signals(screen.say, screen.leave, ends_process=self.ends_process)
            files = TrialFiles(self.store, study.keep)
            with signals.handled(), screen, self._owner_watched(screen):
                tracker: Tracker | None = None
                conductor: Conductor | None = None
                try:
                    judge: Judge | None = None
                    if JUDGED in study.deciding_metrics:  # workers find it in the cache
                        screen.say("training the judge of samples")
                        judge = judge_if_any(self.dataset, cache_folder(plan.settings.data))
                    with ray_cluster(verbose=self.verbose, stuck=partial(self._ray_stuck, screen)):
                        signals.take()
                        screen.place(whereabouts(study.resources_per_worker))
                        gangs = gangs_that_fit(plan.settings, screen.say)
                        if not own_processes():
                            screen.say("asking the other nodes for the study's folder and data")
                            if not check_nodes(self.store.uri(), self.dataset.digest, plan.settings):
                                needed = study.resources_per_worker
                                check_nodes_to_come(self.store.uri(), needed, present_nodes(), nodes_to_come(needed))
                        # Before the journal grows: it holds how far it has come against what there was.
                        tracker = Tracker(self.folder, journal.history, self.uri)
                        try:
                            for event in journal.append(self.begin):
                                ledger.apply(event)
                        except JournalError as error:
                            tracker.close(0)
                            raise UserError(f"{journal.path} cannot be written: {error.strerror}") from None
                        if self.mirror is not None:
                            self.mirror.start(journal)
                        copy = CopyForOptuna(self.folder)
                        sinks = (
                            files.handle,
                            screen.handle,
                            copy.handle,
                            self._write_table,
                            lambda event, ledger: tracker.wake(),
                        )
                        conductor = Conductor(journal, ledger, gangs, sinks, uninterrupted=signals.deferred)
                        screen.handle(journal.history[-1], ledger)
                        for advice in (
                            precision_advice(plan.settings),
                            *checks.start_advice(plan, self.dataset),
                            checks.judge_advice(judge, plan.settings),
                        ):
                            if advice:
                                screen.note(advice)
                        if own_processes() and (advice := checks.memory_advice(plan, self.dataset, gangs)):
                            screen.note(advice)  # in a cluster trials run elsewhere
                        files.take_up(ledger)
                        with self._watched(journal, tracker, screen):
                            self._search(conductor, files, signals, screen, tracker)
                except KeyboardInterrupt:
                    if conductor is None:
                        raise
                    self._stop(conductor, StudyEnd.USER)
                assert conductor is not None and tracker is not None
                if self._finish(conductor, files, screen):
                    self._report(conductor, tracker, screen)
                screen.say("sending the last records to MLflow")
                unsent = self._close(tracker, interrupted=ledger.end is StudyEnd.USER)
                self._note_promotion(conductor, tracker)
            report = StudyReport(
                self.folder,
                ledger,
                self.uri,
                tracker.registration,
                unsent,
                list(tracker.parked),
                tracker.problem,
                self.analysis,
                tracker.links,
            )
            print_report(self.console, report)
        return report

    def _write_table(self, event: events.Event, ledger: Ledger) -> None:
        """A sink: the table of trials stands in the study's folder whenever the study has come to an end."""
        if isinstance(event, events.StudyStopped | events.StudyEnded):
            write_trial_table(ledger, self.folder)

    def _search(
        self, conductor: Conductor, files: TrialFiles, signals: Signals, screen: Screen, tracker: Tracker
    ) -> None:
        """Run trials until there are no more; whatever ends it, the journal says so."""
        gangs, study = conductor.gangs, conductor.ledger.current_plan.settings.study
        screen.say(f"starting {text.counted(gangs, 'gang')} of {study.workers_per_trial}")
        looked, told, shown = 0.0, 0.0, gangs
        metrics = StudyMetrics()

        def tell() -> None:
            parked = len(tracker.parked)
            try:
                metrics.tell(Observed(conductor.ledger, time.time(), conductor.gangs, tracker.unsent, parked))
            except Exception:  # what is told to others must never cost a study
                logger.exception("the study's metrics could not be told")

        def poll() -> None:
            nonlocal looked, told, shown
            for written in files.drain():
                conductor.record(written)
            if signals.requested:
                conductor.stop(StudyEnd.USER)
            if time.monotonic() - looked > DISK_SECONDS:
                looked = time.monotonic()
                if problem := checks.disk_problem(self.folder):
                    conductor.stop(StudyEnd.DISK, problem)
            screen.note_tracking(tracker.problem, tracker.unsent)
            if self.mirror is not None:
                trouble = self.mirror.trouble
                screen.note_storage(None if trouble is None else trouble.text)
                if trouble is not None and time.monotonic() - trouble.since > study.storage_timeout:
                    conductor.stop(StudyEnd.STORAGE, self._refused(trouble, study.storage_timeout))
            if conductor.gangs != shown:
                shown = conductor.gangs
                screen.say(f"the cluster has, or may get, room for {text.counted(shown, 'gang')} now")
            if time.monotonic() - told > METRICS_SECONDS:
                told = time.monotonic()
                tell()

        try:
            with signals.polling():
                if conductor.more_to_suggest:
                    with market(study, poll, conductor.record) as also_of_machines:
                        search(conductor, self.store.uri(), also_of_machines, verbose=self.verbose)
            tell()  # how the search ended
            if signals.requested and conductor.ledger.end is None:  # Ctrl-C while Tune ended
                self._stop(conductor, StudyEnd.USER)
        except JournalError as error:
            logger.exception("the search ended in an error")
            self._stop(conductor, StudyEnd.DISK, f"{error.strerror} (under {self.folder})")
        except Exception as error:
            logger.exception("the search ended in an error")
            line = next((part for part in reversed(str(error).splitlines()) if part.strip()), type(error).__name__)
            self._stop(conductor, StudyEnd.ERROR, f"the search ended in an error: {redact(line.strip())}")

    def _refused(self, trouble: Trouble, seconds: float) -> str:
        return (
            f"study.folder {redact(self.store.uri())} took nothing for study.storage_timeout={seconds:g} s "
            f"({trouble.text}); what it lacks is in {self.folder}, and a resumed study sends it"
        )

    def _stop(self, conductor: Conductor, end: StudyEnd, message: str | None = None) -> None:
        try:
            conductor.stop(end, message)
        except JournalError:  # the journal cannot take it: the next resume finds the study interrupted
            conductor.ledger.apply(events.StudyStopped(time=time.time(), end=end, message=message))

    def _finish(self, conductor: Conductor, files: TrialFiles, screen: Screen) -> bool:
        """Choose, measure, register; an error in one of these costs no other. Not after Ctrl-C, nor where there is no
        room or nothing can be read: a study that was stopped before its disk was full has room for its best trial.
        Whether it is to be reported."""
        ledger, study = conductor.ledger, conductor.ledger.current_plan.settings.study
        try:
            no_room = ledger.end is StudyEnd.STORAGE or (
                ledger.end is StudyEnd.DISK and checks.disk_problem(self.folder, checks.LEAST_FREE_TO_CHOOSE)
            )
            if ledger.end is not StudyEnd.USER and not no_room:
                if ledger.end is None:
                    conductor.end_all()
                files.close()
                conductor.record(*files.drain())
                self._measure(conductor, screen)
                if ledger.chosen is not None and study.keep == "best":
                    files.release_all_but(ledger.chosen.number)
            if ledger.end is None:
                conductor.record(events.StudyEnded(message=conductor.message))
            return ledger.end is not StudyEnd.USER and not no_room
        except KeyboardInterrupt:
            self._stop(conductor, StudyEnd.USER, "interrupted while the finalists were measured")
        except JournalError as error:
            logger.exception("the end of the study could not be written")
            self._stop(conductor, StudyEnd.DISK, f"{error.strerror} (under {self.folder})")
        finally:
            files.abandon()  # figures still to be drawn: nobody who pressed Ctrl-C waits for them
        return False

    def _report(self, conductor: Conductor, tracker: Tracker, screen: Screen) -> None:
        """The report as a page, when MLflow has registered the best trial, or cannot: it says what became of the
        champion. Ctrl-C leaves out what is not done yet."""
        chosen = conductor.ledger.chosen
        try:
            if chosen is not None and chosen.registration is not None:
                screen.say("registering the best trial")
                tracker.settle(SEND_SECONDS)
                self._note_promotion(conductor, tracker)
            with self._noted(conductor, "the report could not be written"):
                conductor.record(*write_report(self.folder, conductor.ledger, self.analysis, self.uri))
        except KeyboardInterrupt:
            logger.info("interrupted while the report was written")
        except JournalError as error:
            logger.exception("the end of the study could not be written")
            self._stop(conductor, StudyEnd.DISK, f"{error.strerror} (under {self.folder})")

    def _note_promotion(self, conductor: Conductor, tracker: Tracker) -> None:
        if tracker.registration and conductor.ledger.promoted is None:
            with suppress(OSError):
                conductor.record(events.Promoted(**tracker.registration))

    def _measure(self, conductor: Conductor, screen: Screen) -> None:
        ledger, settings = conductor.ledger, conductor.ledger.current_plan.settings
        best = choose(ledger, settings.study.select)
        screen.say("choosing the best trial, drawing the plots")
        with self._noted(conductor, "the plots could not be drawn"):
            self.analysis = SearchAnalysis.of(ledger, conductor.journal.history, best)
            study, plan = optuna_study(ledger), ledger.current_plan
            if plots.write_plots(study, plan, self.analysis, self.folder / plots.PLOTS) is not None:
                conductor.record(events.FileWritten(number=None, path=plots.PLOTS, folder=None))
        constants = Constants()
        for trial in finalists(ledger, best, settings.study.finalists):
            on_test = f"on the test {self.dataset.kind.noun}"
            screen.say(f"measuring {trial.name} {on_test}")
            with self._noted(conductor, f"{trial.name} could not be measured {on_test}"):
                training, result = measure(conductor, self.dataset, trial, self.store, constants)
                if trial is best:
                    with self._noted(conductor, f"{trial.name}, the best trial, could not be published"):
                        register = settings.tracking.register_model
                        publish(conductor, trial, training, result, self.folder, register=register)

    @contextmanager
    def _noted(self, conductor: Conductor, what: str) -> Iterator[None]:
        """An error in here is told, with its traceback in the study's log, and costs nothing else."""
        try:
            yield
        except JournalError:
            raise
        except Exception as error:
            logger.exception(what)
            line = redact(str(error).splitlines()[0] if str(error) else type(error).__name__)
            conductor.record(events.Noted(text=f"{what}: {line} (traceback in {LOG})"))

    def _close(self, tracker: Tracker, *, interrupted: bool) -> int:
        try:
            return tracker.close(SEND_SECONDS_INTERRUPTED if interrupted else SEND_SECONDS)
        except KeyboardInterrupt:  # the records are pending in the journal
            return tracker.unsent

    @contextmanager
    def _owner_watched(self, screen: Screen) -> Iterator[None]:
        """A study that another process has taken over is left alone: this process ends at once."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(WATCH_SECONDS):
                if (owner := self.lost_to) is not None and not over.is_set():
                    screen.end(
                        f"process {owner.pid} on {owner.host} has taken this study over, as this process was stopped "
                        "or could not reach the study's folder for a minute; this session ends"
                    )
                    os._exit(STOPPED)

        threading.Thread(target=watch, name="watch the owner", daemon=True).start()
        try:
            yield
        finally:
            over.set()

    @contextmanager
    def _watched(self, journal: Journal, tracker: Tracker, screen: Screen) -> Iterator[None]:
        """Ray ends this process when its raylet or GCS dies: before that the study is closed, in order."""
        ray, over = RayWatch(), threading.Event()

        def watch() -> None:
            while not over.wait(WATCH_SECONDS):
                lost = ray.lost()
                if lost is not None and not over.is_set():
                    self._ray_lost(lost, journal, tracker, screen)

        threading.Thread(target=watch, name="watch Ray", daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def _ray_stuck(self, screen: Screen, sentence: str) -> None:
        """Ray's start hangs where nothing can interrupt it, and nothing of the study's session has begun."""
        screen.end(sentence)
        if self.ends_process:
            if self.mirror is not None:
                self.mirror.close()
            remove_where_nothing_began(self.folder)
            os._exit(MISTAKE)

    def _ray_lost(self, name: str, journal: Journal, tracker: Tracker, screen: Screen) -> NoReturn:
        message = f"Ray's {name} has ended, and Ray with it"
        journal.append_last(events.StudyStopped(end=StudyEnd.RAY, message=message))
        tracker.wake()
        unsent = tracker.close(SEND_SECONDS_INTERRUPTED)
        waiting = f" {text.counted(unsent, 'record')} pending for MLflow in the study's folder." if unsent else ""
        screen.end(f"{message}; the study is closed.{waiting} Go on with\n  {text.resume_command(self.folder)}")
        if self.mirror is not None:
            self.mirror.close()
        os._exit(STOPPED)


class CopyForOptuna:
    """Keeps Optuna's own copy of the trials: best effort, written anew in each session."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.copy: OptunaCopy | None = None

    def handle(self, event: events.Event, ledger: Ledger) -> None:
        if not isinstance(event, events.Ended | events.StudyStopped | events.StudyEnded):
            return
        if self.copy is None:
            self.copy = OptunaCopy(self.folder, ledger)
        elif isinstance(event, events.Ended):
            self.copy.add(ledger, [ledger.trials[event.number]])
        else:
            self.copy.add(ledger, [trial for trial in ledger.trials if not trial.open])
