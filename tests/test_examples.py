"""The notebooks, run as they stand but for their budgets."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"
BUDGETS = {"digits": "TRIALS, EPOCHS = 2, 27", "own_images": "COUNT, EPOCHS = 1200, 30"}


def parameters_of(notebook: Any) -> Any:
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    return cell


def test_each_notebook_has_its_budget_in_one_cell_and_no_outputs() -> None:
    found = {path.stem: nbformat.read(path, as_version=4) for path in EXAMPLES.glob("*.ipynb")}
    assert found.keys() == BUDGETS.keys()
    for name, notebook in found.items():
        nbformat.validate(notebook)
        assert parameters_of(notebook).source.partition("=")[0] == BUDGETS[name].partition("=")[0]
        assert not any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", BUDGETS)
def test_a_notebook_runs_from_its_first_cell_to_its_last(
    name: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    parameters_of(notebook).source = BUDGETS[name]
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    NotebookClient(
        notebook,
        timeout=None,  # of a cell: the test has its own
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output.output_type == "error"]
    kinds = {kind for output in outputs for kind in output.get("data", ())}
    assert {"text/html", "image/png"} <= kinds
    shown = "".join(str(output.get("data", {}).get("text/plain", "")) for output in outputs)
    assert "registered" in shown and "python -m aae_ray.generate" in shown  # the report, as a command prints it
    nbformat.write(notebook, tmp_path / "executed.ipynb")
