"""python -m aae_ray.compare: studies side by side, from their folders alone.

python -m aae_ray.compare digits-a digits-b                    fronts, hypervolume, settings that differ
python -m aae_ray.compare digits-a digits-b --out both.png     and a figure of the first two
"""

from pathlib import Path
from typing import Annotated

import typer

from aae_ray.cli import check_out, main
from aae_ray.errors import UserError


def compare(
    names: Annotated[list[str], typer.Argument(metavar="STUDY STUDY...", help="names, ids or folders of studies")],
    out: Annotated[Path | None, typer.Option(help="PNG file to write: the fronts, and the hypervolume")] = None,
    folder: Annotated[Path, typer.Option(help="where studies keep their state; study.folder")] = Path("runs"),
) -> None:
    """Hold studies of the same objectives against each other. Reads their folders; none of them need run."""
    if out is not None:
        check_out(out, ".png")
    from aae_ray.reporting import comparison
    from aae_ray.reporting.console import console_for
    from aae_ray.reporting.text import bullet
    from aae_ray.search.journal import read_events
    from aae_ray.search.store import find_study, read_ledger

    console, histories, ledgers = console_for(), [], []
    for name in names:
        study = find_study(name, folder.expanduser())
        histories.append(read_events(study))
        ledgers.append(read_ledger(study, histories[-1]))  # says where a journal cannot be read
    found = comparison.compare(histories, ledgers)
    for line in comparison.names(found):
        console.print(line, soft_wrap=True)
    console.print("")
    tables = [comparison.study_table(found), comparison.fronts_table(found, console)]
    for table in [*tables, *([comparison.difference_table(found)] if found.differences else [])]:
        console.print(table, "")
    if not found.same_data:
        console.print(bullet("note", "they have other data, or split them otherwise: their values do not compare"))
    if not found.differences:
        console.print(bullet("note", "they differ in no setting"))
    if out is not None:
        try:
            out.write_bytes(comparison.draw(found))
        except OSError as error:
            raise UserError(f"--out {out} cannot be written: {error.strerror}") from None
        console.print(bullet("figure", str(out)), soft_wrap=True)


if __name__ == "__main__":
    main(compare, "compare")
