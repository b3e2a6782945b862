"""A study's folder, here and elsewhere, while it belongs to this process."""

import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from aae_ray.errors import UserError
from aae_ray.search.journal import JOURNAL, Journal, JournalError, StudyLock, first_event
from aae_ray.search.ledger import Ledger
from aae_ray.search.owner import Tell
from aae_ray.search.space import Plan
from aae_ray.search.store import Store, below, find_study, is_remote, local_root, read_ledger
from aae_ray.study import checks
from aae_ray.study.mirror import Mirror
from aae_ray.tracking.provenance import unique_timestamp


def new_folder(plan: Plan) -> Path:
    """A new folder for a study. Raises UserError when it cannot be made."""
    study = plan.settings.study
    folder = local_root(study.folder).absolute() / f"{study.name}-{unique_timestamp()}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"study.folder {study.folder}: {folder} cannot be made: {error.strerror}") from None
    checks.check_writable(str(folder))
    if problem := checks.disk_problem(folder):
        folder.rmdir()
        raise UserError(f"study.folder {study.folder}: {problem}")
    return folder


def mirror_of(folder: Path, root: str) -> Mirror | None:
    """What copies a study to its place below `study.folder`, where that is the URI of a file system."""
    return Mirror(Store(folder, below(root, folder.name))) if is_remote(root) else None


@contextmanager
def owned(folder: Path, mirror: Mirror | None, tell: Tell) -> Iterator[StudyLock]:
    """A study's folder, here and elsewhere, belongs to this process. Raises UserError when it is another one's."""
    lock = StudyLock(folder)
    lock.acquire(tell)
    try:
        if mirror is not None:
            mirror.claim(tell)
        yield lock
    finally:
        if mirror is not None and mirror.claimed:
            mirror.close()
        lock.release()


@contextmanager
def removed_where_nothing_began(folder: Path) -> Iterator[None]:
    """A new folder in which no study has begun is taken away again."""
    try:
        yield
    finally:
        remove_where_nothing_began(folder)


def remove_where_nothing_began(folder: Path) -> None:
    """Take away the folder of a study that has no record of it yet."""
    journal = folder / JOURNAL
    if not journal.exists() or journal.stat().st_size == 0:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Opened:
    """A study, or the record of an evaluation, that belongs to this process for now."""

    folder: Path
    journal: Journal
    mirror: Mirror | None
    lock: StudyLock

    def ledger(self) -> Ledger:
        """What became of the study. Raises UserError for an evaluation."""
        return read_ledger(self.folder, self.journal.history)

    def copy(self) -> None:
        """From now on, what happens here is copied to where the study is."""
        if self.mirror is not None:
            self.mirror.start(self.journal)


@contextmanager
def opened(name: str, root: Path, tell: Tell, *, to_go_on: bool = False) -> Iterator[Opened]:
    """A study that is there, with all that there is of it elsewhere. Raises UserError when it cannot be had, or when it
    is to go on and its disk is full. Whether its last owner lives may take a minute to know, which `tell` is told."""
    folder = find_study(name, root).absolute()
    if to_go_on and (problem := checks.disk_problem(folder)):
        raise UserError(f"{name} cannot go on yet: {problem}")
    settings = first_event(folder).get("plan", {}).get("settings", {})
    mirror = mirror_of(folder, str(settings.get("study.folder", "")))
    with owned(folder, mirror, tell) as lock:
        if mirror is not None:
            mirror.pull()
        with closing(Journal.open(folder, ensure=lock.ensure)) as journal:
            try:
                yield Opened(folder, journal, mirror, lock)
            except JournalError as error:
                raise UserError(f"{journal.path} cannot be written: {error.strerror}") from None
