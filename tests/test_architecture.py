"""The house: imports go down only, in no circle, and every foreign library has its owners."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "aae_ray"

# What each package may import, besides itself. A module that stands alone counts as one; a command is
# any file of the package that is not named here.
PLAIN = {"errors", "settings", "randomness"}
MATHEMATICS = PLAIN | {"autoencoder"}
TRAINED = MATHEMATICS | {"datasets", "evaluation", "training"}
SEARCHED = TRAINED | {"reading", "search", "secrets", "spellings"}
ALLOWED_IMPORTS: dict[str, set[str]] = {
    "errors": {"spellings"},
    "spellings": set(),
    "randomness": set(),
    "secrets": set(),
    "cli": {"errors", "settings"},
    "settings": {"errors"},
    "yaml_text": {"errors"},
    "reading": {"errors", "secrets", "settings", "spellings", "yaml_text"},
    "autoencoder": PLAIN,
    "datasets": MATHEMATICS,
    "evaluation": MATHEMATICS | {"datasets"},
    "training": MATHEMATICS | {"datasets", "evaluation"},
    "search": TRAINED | {"reading", "secrets", "spellings"},
    "execution": SEARCHED,
    "provisioning": {"errors", "execution"},
    "reporting": SEARCHED,
    "tracking": SEARCHED | {"reporting"},
    "study": SEARCHED | {"execution", "tracking", "reporting"},
}
COMMANDS = set(ALLOWED_IMPORTS)
PRINTING = (
    "aae_ray.reporting.",
    "aae_ray.study.study",
    "aae_ray.study.promotion",
    "aae_ray.study.reproduction",
    "aae_ray.study.log",
    "aae_ray.data",
    "aae_ray.status",
)

# Who may import a foreign library, as prefixes of dotted module names.
OWNERS = {
    "ray": ("aae_ray.execution.",),
    "mlflow": ("aae_ray.tracking.",),
    "optuna": (
        "aae_ray.search.conditions",
        "aae_ray.search.distributions",
        "aae_ray.search.space",
        "aae_ray.search.sampler",
        "aae_ray.search.objectives",
        "aae_ray.search.population",
        "aae_ray.reporting.importance",
        "aae_ray.reporting.plots",
    ),
    "boto3": ("aae_ray.provisioning.aws",),
    "botocore": ("aae_ray.provisioning.aws", "aae_ray.provisioning.preparation"),
    "jsonschema": ("aae_ray.execution.cluster_schema",),
    "filelock": ("aae_ray.search.journal",),
    "IPython": ("aae_ray.reporting.notebook",),
    "rich": PRINTING,
    "jinja2": ("aae_ray.reporting.html_report",),
    "pandas": ("aae_ray.study.api", "aae_ray.tracking.autoencoder_pyfunc"),  # which gives rows as data frames
    "plotly": ("aae_ray.reporting.plots", "aae_ray.study.api"),
    "pyarrow": (
        "aae_ray.datasets.",
        "aae_ray.evaluation.encoding",
        "aae_ray.evaluation.generation",
        "aae_ray.search.store",
        "aae_ray.reporting.trial_table",
    ),
    "sklearn": ("aae_ray.datasets.sources", "aae_ray.reporting.defaults"),
    "scipy": (
        "aae_ray.datasets.svhn",
        "aae_ray.evaluation.clustering_metrics",
        "aae_ray.search.sampler",
        "aae_ray.reporting.defaults",
    ),
    "pooch": ("aae_ray.datasets.download",),
    "matplotlib": ("aae_ray.evaluation.drawing", "aae_ray.reporting.comparison"),
    "onnxruntime": ("aae_ray.evaluation.onnx_files",),
    "typer": (
        "aae_ray.cli",
        "aae_ray.cluster",
        "aae_ray.tune",
        "aae_ray.train",
        "aae_ray.compare",
        "aae_ray.promote",
        "aae_ray.reproduce",
        "aae_ray.generate",
        "aae_ray.evaluate",
        "aae_ray.encode",
        "aae_ray.reconstruct",
        "aae_ray.export",
        "aae_ray.data",
        "aae_ray.status",
    ),
    "torch": (
        "aae_ray.autoencoder.",
        "aae_ray.datasets.",
        "aae_ray.evaluation.",
        "aae_ray.training.",
        "aae_ray.randomness",
        "aae_ray.execution.capacity",
        "aae_ray.execution.failures",
        "aae_ray.execution.process_group",
        "aae_ray.execution.worker",
        "aae_ray.tracking.registry",
        "aae_ray.study.api",
        "aae_ray.tracking.autoencoder_pyfunc",  # which travels with what is published, and imports nothing of ours
    ),
}


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def package_of(module: str) -> str:
    part = (module.split(".") + [""])[1]
    return part if part in ALLOWED_IMPORTS else "a command"


def allowed(name: str) -> set[str]:
    return ALLOWED_IMPORTS.get(name, COMMANDS)


def own_imports(module: str, path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of ours, the most specific name of each."""
    found = {name for name in imported(path) if name in known and name != "aae_ray"}
    packages = {name for name in found if any(other.startswith(f"{name}.") for other in found)}
    return found - packages - {module}


@pytest.mark.parametrize("module", modules())
def test_a_package_imports_what_its_row_allows(module: str) -> None:
    known = modules()
    mine = package_of(module)
    for other in own_imports(module, known[module], known):
        assert package_of(other) in {mine, *allowed(mine)}, (
            f"{module} imports {other}, which the row of {mine} does not allow"
        )


def test_no_import_runs_in_a_circle() -> None:
    known = modules()
    graph = {module: own_imports(module, path, known) for module, path in known.items()}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail[trail.index(module) :], module])
        if module not in done:
            for other in graph[module]:
                visit(other, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("library", OWNERS)
def test_every_foreign_library_has_its_owners(library: str) -> None:
    for module, path in modules().items():
        if any(name == library or name.startswith(f"{library}.") for name in imported(path)):
            assert module.startswith(OWNERS[library]), f"{module} imports {library}"


@pytest.mark.parametrize(
    ("module", "never"),
    [
        ("aae_ray.search.events", ("torch", "ray", "mlflow")),
        ("aae_ray.reporting.status_view", ("torch", "ray", "mlflow")),
        ("aae_ray.settings", ("torch", "ray", "mlflow", "optuna")),
        ("aae_ray.autoencoder.model", ("ray", "mlflow", "optuna", "matplotlib", "sklearn")),
        ("aae_ray.training.loop", ("ray", "mlflow", "optuna", "matplotlib", "sklearn", "pyarrow")),
        ("aae_ray.generate", ("ray", "torch", "mlflow")),
        ("aae_ray.encode", ("ray", "torch", "mlflow")),
        ("aae_ray.reconstruct", ("ray", "torch", "mlflow")),
        ("aae_ray.export", ("ray", "torch", "mlflow")),
        ("aae_ray.study.loading", ("ray",)),
        ("aae_ray.tracking.registry", ("ray", "optuna")),
        ("aae_ray.search.conductor", ("ray", "mlflow", "matplotlib", "rich")),
        ("aae_ray.search.journal", ("ray", "mlflow", "optuna", "rich")),
        ("aae_ray.tune", ("ray", "torch", "mlflow")),
        ("aae_ray.status", ("ray", "torch", "mlflow")),
        ("aae_ray.cluster", ("ray", "torch", "mlflow", "boto3")),
        ("aae_ray.compare", ("ray", "torch", "mlflow")),
    ],
)
def test_importing_a_package_does_not_drag_in_the_ones_above(module: str, never: tuple[str, ...]) -> None:
    code = f"import {module}, sys; print(*sorted(set(sys.modules) & {set(never)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
    assert done.stderr.strip() == ""
