"""A champion by evidence: registered versions held against each other, after new seeds of their study's best trials."""

from pathlib import Path
from typing import Any

from rich.console import Console

from aae_ray.errors import UserError
from aae_ray.reporting.report import StudyReport
from aae_ray.reporting.text import SYNC, bullet
from aae_ray.search.outcomes import StudyEnd
from aae_ray.search.promotion import EVIDENCE, Verdict
from aae_ray.search.store import find_study, read_ledger
from aae_ray.study.study import resume_study
from aae_ray.tracking import registry


def promote(
    name: str,
    version: str | None,
    uri: str,
    console: Console,
    *,
    finalists: int | None,
    seeds: int | None,
    root: Path,
    verbose: bool = False,
) -> StudyReport | Verdict:
    """Hold a version, the newest if none, against the champion by new seeds; make it the champion if it is better.

    A version that has such seeds is held by them. Of one that lacks them, and where `finalists` or `seeds` say how many
    there are to be, its study goes on first: its best trials, one if nothing is said, are trained again. Raises
    UserError where server, model or version are missing, and where a study that has to go on is not here.
    """
    client = _client_of_decoder(name, uri)
    found = registry.version_of(client, name, version)
    if finalists is None and seeds is None:
        verdict = registry.hold(client, name, found, EVIDENCE)
        if not verdict.lacks_seeds:
            return verdict
        console.print(bullet("note", f"version {found.version}: {verdict.reason}, and gets some now"), soft_wrap=True)
    return _confirm(client, name, found, uri, console, finalists or 1, seeds, root, verbose=verbose)


def _client_of_decoder(name: str, uri: str) -> Any:
    """MLflow's client. Raises UserError for an encoder, whose champion is that of its decoder."""
    client = registry.client_of(name, uri)
    if name.endswith(f"-{registry.ENCODER}"):
        beside = registry.decoder_of(client, name)
        raise UserError(f"{name} follows its decoder{'' if beside is None else f'; give {beside}'}")
    return client


def roll_back(name: str, uri: str) -> str:
    """Make the champion before this one the champion again; what was done. Raises UserError when there is none."""
    return registry.roll_back(_client_of_decoder(name, uri), name).reason


def _confirm(
    client: Any,
    name: str,
    found: Any,
    uri: str,
    console: Console,
    finalists: int,
    seeds: int | None,
    root: Path,
    *,
    verbose: bool,
) -> StudyReport | Verdict:
    """Go on with the study that a version is of: its best trials are trained again on new seeds, the best one of them
    is registered, and held against the champion by those seeds. Where that is done already, it is held again."""
    study_id = registry.trial_of(found).partition("/")[0]
    try:
        folder = find_study(study_id, root)
    except UserError as error:
        raise UserError(
            f"version {found.version} of {name} is of study {study_id}, which has to be here to be confirmed: {error}; "
            "name its folder's folder with --folder"
        ) from None
    ledger = read_ledger(folder)
    confirmed, registration = ledger.current_plan.settings.study.confirm, ledger.chosen and ledger.chosen.registration
    asked = (finalists, confirmed.seeds if seeds is None else seeds)
    there = ledger.end is StudyEnd.PLANNED and ledger.confirming is not None
    if there and registration and asked == (confirmed.finalists, confirmed.seeds):
        best = registry.version_of_trial(client, name, registration["tags"][registry.TRIAL])
        if best is None:
            raise UserError(f"{study_id} is confirmed, and its best trial not registered yet; type {SYNC} {folder}")
        done = (
            f"{study_id} is confirmed already, on {confirmed.seeds} new seeds; its best trial is version {best.version}"
        )
        console.print(bullet("note", done), soft_wrap=True)
        return registry.hold(client, name, best, EVIDENCE)
    changes: dict[str, object] = {
        "study.confirm.finalists": finalists,
        "tracking.register_model": True,
        "tracking.promotion": EVIDENCE,
    }
    if seeds is not None:
        changes["study.confirm.seeds"] = seeds
    return resume_study(str(folder), changes, console, extend=True, uri=uri, root=root, verbose=verbose)
