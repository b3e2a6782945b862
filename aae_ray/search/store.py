"""Where studies live: a folder each below one root, found by name, by id, or by path."""

import difflib
import json
import re
from pathlib import Path

from aae_ray.errors import UserError
from aae_ray.search.journal import JOURNAL

STAMP = re.compile(r"-\d{8}-\d{6}(-\w+)?$")  # what a study's folder has behind the name of the study


def studies(root: Path) -> list[Path]:
    """The folders of all studies below a root, the one that began last first."""
    folders = [path.parent for path in root.glob(f"*/{JOURNAL}")]
    return sorted(folders, key=lambda folder: (_began(folder), folder.name), reverse=True)


def find_study(name_or_folder: str, root: Path) -> Path:
    """The folder of a study that is given by its path, its id, or its name where only one study has it.

    Raises UserError for a study that is not there, with names like it, and for a name that several studies have.
    """
    path = Path(name_or_folder).expanduser()
    for folder in (path, root / name_or_folder):
        if (folder / JOURNAL).is_file():
            return folder
    if path.name == JOURNAL and path.is_file():
        return path.parent
    folders = studies(root)
    fitting = [folder for folder in folders if STAMP.sub("", folder.name) == name_or_folder]
    fitting = fitting or [folder for folder in folders if _abbreviates(name_or_folder, folder.name)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UserError(
            f"{name_or_folder} fits {len(fitting)} studies under {root}; say which one, newest first:\n"
            + "\n".join(f"  {folder.name}" for folder in fitting)
        )
    if name_or_folder and path.is_dir():
        raise UserError(f"{name_or_folder} is not the folder of a study: there is no {JOURNAL} in it")
    raise UserError(f"there is no study {name_or_folder} under {root}{_hint(name_or_folder, folders)}")


def _abbreviates(text: str, study_id: str) -> bool:
    """Whether a text is the beginning of an id, with a part of what follows the name: `digits-2026`."""
    return study_id.startswith(text) and text.startswith(STAMP.sub("", study_id) + "-")


def _hint(name: str, folders: list[Path]) -> str:
    if not folders:
        return ", nor any other"
    names = {STAMP.sub("", folder.name): folder.name for folder in reversed(folders)}  # of each name the newest
    known = {folder.name: folder.name for folder in folders} | names
    close = dict.fromkeys(known[near] for near in difflib.get_close_matches(name, list(known), n=3, cutoff=0.6))
    if close:
        return f". Did you mean {' or '.join(close)}?"
    newest = ", ".join(folder.name for folder in folders[:3])
    return f"; the newest there {'is' if len(folders) == 1 else 'are'} {newest}"


def _began(folder: Path) -> float:
    """When a study began, by the first line of its journal."""
    try:
        with (folder / JOURNAL).open("rb") as file:
            return float(json.loads(file.readline())["time"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0
