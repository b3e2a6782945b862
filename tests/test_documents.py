"""What the documents tell to type is what the programs take: every command block, by the parsers of its own programs.

A command that is new here, of a program that nothing below knows, is a failure.
"""

import argparse
import ast
import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from aae_ray import Study
from aae_ray.cli import Command, file_and_overrides
from aae_ray.search.space import read_plan
from aae_ray.study.plans import study_plan, training_plan
from tests.documents import DOCUMENTS, ROOT, Block, block, blocks, commands, words

# How a command that no parser of ours takes begins, and what tests it, or why nothing does.
ELSEWHERE = {
    "pip install": "tests/test_installation.py installs the package; all others are installed where the tests run",
    "pre-commit install": "changes the checkout; .pre-commit-config.yaml has the commands that .ci/run runs as well",
    "python3.11 -m venv": "tests/test_installation.py and .ci/run make one",
    ". .venv/bin/activate": "tests/test_installation.py and .ci/run make one",
    "pytest": "these tests",
    "python -m pytest tests/cluster": "these tests",
    "ruff check .": ".ci/run",
    "ruff format --check .": ".ci/run",
    "mypy": ".ci/run",
    "mlflow ui --backend-store-uri": "tests/tracking/test_pages.py starts the server of the same database",
    "mlflow server --backend-store-uri": "needs S3",
    "RAY_AUTH_MODE=token ray get-auth-token": "tests/cluster",
    "ray up cluster/gpu.yaml": "tests/cluster, with a mock of AWS",
    "ray exec cluster/gpu.yaml": "tests/cluster, which types what it runs there too",
    "ray exec --stop": "needs a cluster",
    "ray attach cluster/gpu.yaml": "needs a cluster and a terminal",
    "ray dashboard cluster/gpu.yaml": "needs a cluster",
    "ray monitor cluster/gpu.yaml": "needs a cluster",
    "ray rsync-down cluster/gpu.yaml": "needs a cluster",
    "ray down": "tests/cluster, with a mock of AWS",
    "RAY_AUTH_MODE=token ray job submit": "needs a cluster; tests/cluster reads the study's settings in it",
    "aws configure": "needs AWS",
    "sh cluster/on_prem.sh": "tests/cluster/test_on_prem.py, and on namespaces tests/cluster/test_lab_on_prem.py",
    "python -m cluster.lab": "tests/cluster/test_lab_aws.py",
    "ray stop": "tests/cluster/test_on_prem.py, as cluster/on_prem.sh types it",
    **dict.fromkeys(
        (
            "createdb",
            "pg_dump",
            "pg_restore",
            "python -c 'from pyarrow.fs",
            "python -m mlflow db",
            "python -m mlflow.server.auth db",
            "MLFLOW_TRACKING_URI=http://127.0.0.1:5000 MLFLOW_AUTH_ADMIN_PASSWORD=",
        ),
        "tests/cluster/test_tracking_server.py types what stands there",
    ),
}
# Blocks that hold no commands, by their first lines, and what holds them to the code.
OTHER_BLOCKS = {
    "Pareto front: 2 of 24 trials": "what the first command prints: tests/reporting/test_study_report.py",
    "aae_ray/": "the tree: test_the_tree_has_every_file",
    "import mlflow, torch": "tests/study/test_api.py runs it",
    "from aae_ray import Study, load_model": "tests/study/test_api.py runs it",
}
STANDS_FOR_A_STUDY = re.compile(r"FILE|my_study\.yaml|seeds\.yaml|\S*best_config\.yaml")
CHANGE = re.compile(r"[a-z_]+(?:\.[\w]+)*=.*")
ALL_BLOCKS = [each for document in DOCUMENTS for each in blocks(document)]
ALL_COMMANDS = sorted({(document, command) for document in DOCUMENTS for command in commands(document)})
ON_THE_HEAD = ("ray exec", "RAY_AUTH_MODE=token ray job", "python -m cluster.lab exec")
OURS = [pair for pair in ALL_COMMANDS if "-m aae_ray" in pair[1] and not pair[1].startswith(ON_THE_HEAD)]
BENCHMARKS = [pair for pair in ALL_COMMANDS if re.match(r"python (-m benchmarks\.|benchmarks/)\S+", pair[1])]
OTHERS = [pair for pair in ALL_COMMANDS if pair not in (*OURS, *BENCHMARKS)]


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a reader of README types."""
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("found", ALL_BLOCKS, ids=lambda found: f"{found.document}: {found.first_line[:50]}")
def test_every_block_is_of_a_kind_that_something_tests(found: Block) -> None:
    if found.is_shell:
        return  # its commands are those of the other tests
    if found.language == "yaml":
        yaml.safe_load(found.text)
        return  # README's: test_the_study_of_the_readme_is_one
    assert found.first_line in OTHER_BLOCKS, f"nothing tests the block of {found.document} that begins so"
    if found.language == "python":
        compile(found.text, found.document, "exec")


def test_lists_of_what_is_tested_elsewhere_name_nothing_that_is_gone() -> None:
    assert {each.first_line for each in ALL_BLOCKS} >= OTHER_BLOCKS.keys()
    typed = [command for _, command in ALL_COMMANDS]
    assert not [start for start in ELSEWHERE if not any(command.startswith(start) for command in typed)]
    for line in (*ELSEWHERE.values(), *OTHER_BLOCKS.values()):
        for name in re.findall(r"tests/[\w/]+(?:\.py)?", line):
            assert (ROOT / name).exists(), name


@pytest.mark.parametrize(("document", "command"), OTHERS)
def test_a_command_of_another_program_says_what_tests_it(document: str, command: str) -> None:
    known = any(
        command.startswith(start) or start.startswith(f"{command} ") for start in ELSEWHERE
    )  # or its name alone
    assert known, f"nothing tests `{command}` of {document}"


def parameters_of(name: str, arguments: list[str]) -> dict[str, Any]:
    """The arguments of a command as its own parser takes them. Raises UserError for what it does not take."""
    module = importlib.import_module(f"aae_ray.{name}")
    (function,) = re.findall(rf'main\((\w+), "{name}"\)', Path(str(module.__file__)).read_text())
    app = typer.Typer(add_completion=False)
    app.command(cls=Command)(getattr(module, function))
    parsed: dict[str, Any] = typer.main.get_command(app).make_context(name, arguments).params
    return parsed


@pytest.mark.parametrize(("document", "command"), OURS)
def test_our_commands_take_what_the_documents_tell_to_type(document: str, command: str) -> None:
    _, _, module, *arguments = words(command)
    name = module.partition(".")[2]
    if not name:
        return  # python -m aae_ray: tests/test_main.py
    arguments = ["digits" if STANDS_FOR_A_STUDY.fullmatch(each) else each for each in arguments]
    parsed = parameters_of(name, [each.replace("STUDY...", "ANOTHER") for each in arguments])
    changes = [each for each in arguments if CHANGE.fullmatch(each)]
    if name == "tune":
        file, given = file_and_overrides(parsed["arguments"] or [])
        assert given == changes and study_plan(file, changes).space
    elif changes:
        given = parsed.get("arguments") or parsed.get("overrides") or []
        assert set(changes) <= {*given, *map(str, parsed.values())}, "the command takes no settings"
        training_plan(None, changes)


class Parsed(Exception):
    """A program has taken its arguments, and is not to run."""


@pytest.mark.parametrize(("document", "command"), BENCHMARKS)
def test_benchmarks_take_what_the_documents_tell_to_type(
    document: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, *rest = words(command)
    name, *arguments = rest[1:] if rest[0] == "-m" else rest
    module = importlib.import_module(name.removesuffix(".py").replace("/", "."))
    if name == "benchmarks.bare":
        return  # takes what benchmarks.start gives it
    parse = argparse.ArgumentParser.parse_args

    def parse_and_leave(self: argparse.ArgumentParser, *given: Any) -> None:
        parse(self, *given)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_leave)
    monkeypatch.setattr(sys, "argv", [name, *(each.replace("TABLE", "semi_supervised_100") for each in arguments)])
    with pytest.raises(Parsed):
        module.main()
    training_plan(None, [each for each in arguments if CHANGE.fullmatch(each)])


def test_the_study_of_the_readme_is_one(tmp_path: Path) -> None:
    found = [each for each in blocks("README.md") if each.language == "yaml"]
    assert len(found) == 1
    file = tmp_path / "study.yaml"
    file.write_text(found[0].text)
    plan = read_plan(str(file))
    assert plan.settings.study.name == "digits" and len(plan.space) == 4


def test_the_blocks_in_python_name_what_there_is() -> None:
    """`tests/study/test_api.py` runs them, where Ray does; this needs none."""
    tree = ast.parse(block("README.md", "from aae_ray import Study, load_model").text)
    named = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("Study", "study")
    }
    assert named and not [name for name in named if not hasattr(Study, name)]


TREE = re.compile(r"^( *)([\w.]+(?:, [\w.]+)*)(/?)(?:  +|$)")


def test_the_tree_has_every_file() -> None:
    """Each module stands in README's tree, on a line of its own or beside another."""
    tree = block("README.md", "aae_ray/").text
    for file in sorted((ROOT / "aae_ray").rglob("*.py")):
        if file.name != "__init__.py":
            assert re.search(rf"\b{re.escape(file.name)}\b", tree), f"README's tree has no {file.relative_to(ROOT)}"
    for name in re.findall(r"\b[\w]+\.py\b", tree):
        assert list((ROOT / "aae_ray").rglob(name)), f"README's tree has {name}, which is gone"
