"""Studies and their models in Python: `from aae_ray import Study, load_model`, in a notebook or a program.

    study = Study.from_file("digits", {"train.epochs": 9}).run()
    study.front                         # a pandas data frame, a trial a row
    study.plot_front()                  # a plotly figure
    images = study.best.decoder(codes)  # a PyTorch module; best.model takes NumPy arrays as well

What the commands do, these do by the same functions, with the same files and records. Mistakes are UserErrors.
"""

import os
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from aae_ray.autoencoder.published import Decoder, Encoder, Published
from aae_ray.datasets.dataset import Dataset, load, split_digest
from aae_ray.datasets.images import given_examples
from aae_ray.errors import UserError
from aae_ray.evaluation.constants import Constants
from aae_ray.reporting import plots
from aae_ray.reporting.analysis import SearchAnalysis
from aae_ray.reporting.console import console_for
from aae_ray.reporting.importance import LEAST_TRIALS
from aae_ray.reporting.report import StudyReport
from aae_ray.reporting.tables import outcome_counts, trials_text
from aae_ray.reporting.trial_table import trial_table
from aae_ray.search import events
from aae_ray.search.journal import JOURNAL, read_events
from aae_ray.search.ledger import Ledger
from aae_ray.search.outcomes import StudyEnd
from aae_ray.search.sampler import optuna_study
from aae_ray.search.space import Plan
from aae_ray.search.store import Store, find_study, read_ledger
from aae_ray.search.trial_record import TrialRecord
from aae_ray.settings import Settings, replace
from aae_ray.study import loading
from aae_ray.study.finalists import choose, last_checkpoint, rebuild
from aae_ray.study.opening import mirror_of
from aae_ray.study.plans import study_plan, training_plan
from aae_ray.study.study import resume_study, start_study
from aae_ray.tracking import address, registry
from aae_ray.training.loop import Training

if TYPE_CHECKING:
    from pandas import DataFrame
    from plotly.graph_objects import Figure

NO_CHANGES: Mapping[str, Any] = {}


class Study:
    """A study that may be run, or one that was: made by `from_file`, `single` or `open`."""

    def __init__(self, plan: Plan, folder: Path | None = None) -> None:
        self._plan, self.folder = plan, folder
        self.report: StudyReport | None = None  # of the session that this object has run
        self._read: tuple[int, list[events.Event], Ledger] | None = None

    @classmethod
    def from_file(cls, file: str = "digits", changes: Mapping[str, Any] = NO_CHANGES, **more: Any) -> "Study":
        """A new study of a file, or of a name that ships, with changes by dotted keys: {"train.epochs": 9}, as a
        mapping or as `**{"train.epochs": 9}`.

        What is searched has the prefix `space.`: {"space.model.latent_dim": {"type": "int", "low": 2, "high": 8}}; a
        value for a searched key fixes it. Raises UserError with every mistake in both.
        """
        return cls(study_plan(file, _plain({**changes, **more})))

    @classmethod
    def single(cls, file: str | None = None, changes: Mapping[str, Any] = NO_CHANGES, **more: Any) -> "Study":
        """One configuration, trained once: as `python -m aae_ray.train`. Changes as in `from_file`."""
        return cls(training_plan(file, _plain({**changes, **more})))

    @classmethod
    def open(cls, name: str, folder: str | Path = "runs") -> "Study":
        """A study that was run, here or by a command, by its name, id or folder. `folder` is where studies keep their
        state. Raises UserError when there is none, or several of that name."""
        found = find_study(str(name), Path(folder).expanduser()).absolute()
        return cls(read_ledger(found).current_plan, found)

    def run(self, *, warm_start: Sequence[str] = (), verbose: bool = False) -> "Study":
        """Run the study to its end, or go on with it where it was stopped; in a notebook with a live table.

        Ctrl-C (the kernel's interrupt) stops it gracefully, and so that `run()` goes on; a second one at once. Raises
        UserError for mistakes of the user, for a study that has ended, and outside of the main thread.
        """
        _check_thread()
        console = console_for()
        if self.folder is None:
            self.report = start_study(self._plan, console, warm_start=warm_start, verbose=verbose, ends_process=False)
            self.folder = self.report.folder
        else:
            if self.ledger.end is StudyEnd.PLANNED:
                raise UserError(f"{self.folder.name} has ended as planned; extend() adds to it")
            self.report = resume_study(str(self.folder), NO_CHANGES, console, verbose=verbose, ends_process=False)
        return self

    def extend(self, changes: Mapping[str, Any], *, verbose: bool = False) -> "Study":
        """Add to a study: {"study.budget.trials": 50}, another space, or more epochs for new trials. Ctrl-C
        stops it as it does `run`. Raises UserError for mistakes of the user, and outside of the main thread."""
        _check_thread()
        report = resume_study(
            str(self._folder), _plain(changes), console_for(), extend=True, verbose=verbose, ends_process=False
        )
        self.report = report
        return self

    # ------------------------------------------------------------------------------------------- what became of it

    @property
    def plan(self) -> Plan:
        """Settings and space, as they are after the last extension."""
        return self._plan if self.folder is None else self.ledger.current_plan

    @property
    def settings(self) -> Settings:
        """What its trials share, and what the study is."""
        return self.plan.settings

    @property
    def ledger(self) -> Ledger:
        """All that became of it so far: what its journal says, also while another process runs it."""
        return self._history()[1]

    @property
    def trials(self) -> "DataFrame":
        """Every trial, by name: what it was given, how it ended, what was measured; see `trials.parquet`."""
        return trial_table(self.ledger).to_pandas().set_index("name")

    @property
    def front(self) -> "DataFrame":
        """Those trials that no other configuration dominates, best first objective first."""
        names = [trial.name for trial in self.ledger.front()]
        return self.trials.loc[names]

    @property
    def best(self) -> "BestTrial":
        """The trial that was chosen, or would be by now. Raises UserError while none is complete."""
        ledger = self.ledger
        chosen = ledger.chosen
        trial = ledger.trials[chosen.number] if chosen else choose(ledger, ledger.current_plan.settings.study.select)
        if trial is None:
            raise UserError(f"{self._folder.name} has no complete trial; there is no best one yet")
        return BestTrial(self._folder, ledger, trial)

    def images(self, part: str) -> Tensor:
        """The images (N, C, H, W) in [0, 1], or the rows (N, D) in their own units, of its train, val or test part."""
        dataset = data_of(self.ledger)
        indices = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
        if part not in indices:
            raise UserError(f"there is no part {part!r} of the data; the parts are {', '.join(indices)}")
        return given_examples(dataset, indices[part])

    def plot_front(self) -> "Figure":
        """The Pareto front of two or three objectives."""
        return self.plot("pareto_front")[0]

    def plot_hypervolume(self) -> "Figure":
        """What the front dominates, over epochs and time."""
        return self.plot("hypervolume")[0]

    def plot_parallel_coordinates(self) -> "list[Figure]":
        """What was searched, beside each objective."""
        return self.plot("parallel_coordinates")

    def plot_importances(self) -> "list[Figure]":
        """Which settings it took to be among the best quarter, by outcome."""
        return self.plot("importances")

    def plot_defaults(self) -> "Figure":
        """Which of the best trial's settings could be at their defaults again."""
        return self.plot("defaults")[0]

    def plot(self, name: str) -> "list[Figure]":
        """The figures of one of the pages in the folder `plots`, by its name.

        Raises UserError where the trials do not allow them yet.
        """
        history, ledger = self._history()
        best = choose(ledger, ledger.current_plan.settings.study.select)
        analysis = SearchAnalysis.of(ledger, history, best)
        drawn = plots.figures(optuna_study(ledger), ledger.current_plan, analysis)
        if name not in drawn:
            known = ", ".join(drawn) or "none"
            text = f"the trials of {self._folder.name} allow no plot {name}; those that they do: {known}"
            if name in OF_SETTINGS and len(ledger.trials) < LEAST_TRIALS:
                text += f". Settings are compared from {LEAST_TRIALS} trials on, and there are {len(ledger.trials)}"
            elif not ledger.complete():
                text += ". No trial is complete yet"
            raise UserError(text)
        return plots.drawn(drawn[name])

    def __repr__(self) -> str:
        if self.folder is None:
            study = self.settings.study
            return f"Study({study.name}, not run yet)"
        ledger = self.ledger
        counts = ", ".join(f"{count} {what}" for what, count in outcome_counts(ledger).items())
        return f"Study({self.folder.name}, {trials_text(ledger)}: {counts})"

    @property
    def _folder(self) -> Path:
        if self.folder is None:
            raise UserError("the study has not run yet; run() starts it")
        return self.folder

    def _history(self) -> tuple[list[events.Event], Ledger]:
        """The journal and what follows from it, read again where it has grown."""
        folder = self._folder
        size = (folder / JOURNAL).stat().st_size
        if self._read is None or self._read[0] != size:
            history = list(read_events(folder))
            self._read = size, history, read_ledger(folder, history)
        return self._read[1], self._read[2]


OF_SETTINGS = ("importances", "defaults")  # plots


class BestTrial:
    """The best trial of a study, with its networks from its last checkpoint."""

    def __init__(self, folder: Path, ledger: Ledger, trial: TrialRecord) -> None:
        self._folder, self._ledger, self._trial = folder, ledger, trial

    @property
    def name(self) -> str:
        return self._trial.name

    @property
    def params(self) -> dict[str, Any]:
        """What was drawn for it, by dotted key."""
        return dict(self._trial.params)

    @property
    def settings(self) -> Settings:
        """All its settings."""
        return replace(self._trial.plan.settings, self._trial.params)

    @property
    def metrics(self) -> dict[str, float]:
        """Of its last epoch, means over seeds where it has several, and those on the test images."""
        test = self._trial.test
        return self._ledger.judged(self._trial) | (test.metrics if test else {})

    @cached_property
    def model(self) -> Published:
        """Encoder, decoder and prior, as `load_model` has them: they take NumPy arrays as well as tensors, and say what
        is wrong with others. Raises UserError when its checkpoint is gone."""
        return loading.from_checkpoint(last_checkpoint(self._trial, self._store))

    @cached_property
    def encoder(self) -> nn.Module:
        """A PyTorch module. Images (B, C, H, W), floats in [0, 1], in; a mapping out: `code` (B, Z), and where the
        model has them `sigma` (B, Z) and `probabilities` (B, K) of classes or clusters. Raises UserError when its
        checkpoint or its data are gone."""
        return registry.on_the_cpu(Encoder(self._training.evaluation.model))

    @cached_property
    def decoder(self) -> nn.Module:
        """A PyTorch module. Codes in, floats (B, Z), or (B, K + Z) with a label before the style where the task has
        labels; images (B, C, H, W) in [0, 1] out. Raises UserError when its checkpoint or its data are gone."""
        return registry.on_the_cpu(Decoder(self._training.evaluation.model))

    @cached_property
    def _training(self) -> Training:
        return rebuild(data_of(self._ledger), self._trial, self._store, Constants())

    @property
    def _store(self) -> Store:
        mirror = mirror_of(self._folder, self.settings.study.folder)
        return Store(self._folder) if mirror is None else mirror.store

    def __repr__(self) -> str:
        values = ", ".join(f"{name} {self.metrics[name]:.4g}" for name in self._ledger.objectives)
        return f"BestTrial({self.name}: {values})"


def _plain(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes with paths as text, as a command has them."""
    return {key: os.fspath(value) if isinstance(value, os.PathLike) else value for key, value in changes.items()}


def _check_thread() -> None:
    """Raises UserError outside of the main thread."""
    if threading.current_thread() is not threading.main_thread():
        raise UserError("a study is run in the main thread, which gets the signals that stop it")


def data_of(ledger: Ledger) -> Dataset:
    """The data of a study. Raises UserError when they are not what they were."""
    dataset, started = load(ledger.current_plan.settings.data), ledger.started
    assert started is not None
    if dataset.digest != started.data.digest:
        raise UserError(
            f"{started.study_id} was run on data with digest {started.data.digest}, and data.name {dataset.name} "
            f"now has {dataset.digest}"
        )
    if started.data.split not in ("", split_digest(dataset)):
        raise UserError(
            f"{started.study_id} was run on another split of data.name {dataset.name}, whose source now gives other "
            "parts: what is its test part now may have been trained on; restore the source"
        )
    return dataset


def load_model(
    name: str, version: str | int = registry.CHAMPION, tracking_uri: str | None = None, *, encoder: bool = True
) -> Published:
    """A model by its registered name, or by the folder of a study or a checkpoint: decoder, encoder, and the prior that
    its codes come from.

    `version` is an alias or a number; `tracking_uri` MLFLOW_TRACKING_URI or sqlite:///mlflow.db when not given. Raises
    UserError where server, model or version are missing, or the encoder, which `encoder=False` leaves out.
    """
    return loading.load_model(name, version=version, uri=address.tracking_uri(tracking_uri), encoder=encoder)
