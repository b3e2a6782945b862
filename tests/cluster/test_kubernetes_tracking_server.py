"""The tracking server in Kubernetes: Kubernetes' own schemas, strictly, and rules of ours for what they leave open."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "cluster/mlflow"
VERSION = "1.34"  # of Kubernetes


def documents(text: str) -> list[Any]:
    return [document for document in yaml.safe_load_all(text) if document]


WRITTEN = [document for name in ("postgres.yaml", "server.yaml") for document in documents((FOLDER / name).read_text())]


def pods(written: list[Any]) -> list[Any]:
    return [d["spec"]["template"]["spec"] for d in written if d["kind"] in ("Deployment", "StatefulSet")]


def our_problems(written: list[Any]) -> list[str]:
    """What Kubernetes lets pass and we do not."""
    problems = []
    for pod in pods(written):
        for container in pod["containers"]:
            security = container.get("securityContext", {})
            memory = container["resources"]
            rules = {
                "not root": pod["securityContext"].get("runAsNonRoot") is True,
                "read-only root": security.get("readOnlyRootFilesystem") is True,
                "no more rights": security.get("allowPrivilegeEscalation") is False,
                "no capabilities": security.get("capabilities") == {"drop": ["ALL"]},
                "no token of Kubernetes": pod.get("automountServiceAccountToken") is False,
                "no variables of services": pod.get("enableServiceLinks") is False,
                "requests": {"cpu", "memory"} <= memory["requests"].keys() and "memory" in memory["limits"],
                "probe": "readinessProbe" in container,
                "secrets are not written down": all(
                    "valueFrom" in variable
                    for variable in container["env"]
                    if any(word in variable["name"] for word in ("PASSWORD", "KEY", "SECRET"))
                ),
                "a mounted folder is a volume": {mount["name"] for mount in container["volumeMounts"]}
                <= {volume["name"] for volume in pod["volumes"]} | {"data"},
            }
            problems += [f"{container['name']}: {rule}" for rule, kept in rules.items() if not kept]
    return problems


def schema_problems(document: Any) -> list[str]:
    validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate: pip install -e '.[test]'")
    try:
        validate.validate(document, VERSION, strict=True)
    except validate.ValidationError as error:
        return [str(error)]
    return []


@pytest.mark.parametrize("document", WRITTEN, ids=lambda document: f"{document['kind']}-{document['metadata']['name']}")
def test_what_is_written_keeps_to_the_schema(document: Any) -> None:
    assert schema_problems(document) == []


def test_what_is_written_keeps_to_our_rules() -> None:
    assert len(pods(WRITTEN)) == 2
    assert our_problems(WRITTEN) == []


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("replicas: 1", "replica: 1"),
        ("replicas: 1", 'replicas: "1"'),
        ("containerPort: 5000", "containerport: 5000"),
        ("readOnlyRootFilesystem: true", "readOnlyRootFileSystem: true"),
    ],
)
def test_a_slip_is_found_by_the_schema(right: str, wrong: str) -> None:
    text = (FOLDER / "server.yaml").read_text()
    assert right in text, "the mistake cannot be made: the file has changed"
    assert any(schema_problems(document) for document in documents(text.replace(right, wrong)))


@pytest.mark.parametrize(
    ("rule", "right", "wrong"),
    [
        ("not root", "runAsNonRoot: true", "runAsNonRoot: false"),
        ("read-only root", "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false"),
        ("no capabilities", "capabilities: {drop: [ALL]}", "capabilities: {}"),
        ("no variables of services", "enableServiceLinks: false", "enableServiceLinks: true"),
        ("probe", "readinessProbe:", "otherProbe:"),
        ("a mounted folder is a volume", "- name: tmp ", "- name: temp "),
        ("secrets are not written down", "name: PGHOST", "name: PGPASSWORD"),
    ],
)
def test_a_slip_is_found_by_our_rules(rule: str, right: str, wrong: str) -> None:
    text = (FOLDER / "server.yaml").read_text()
    assert right in text, "the mistake cannot be made: the file has changed"
    assert our_problems(documents(text.replace(right, wrong))) == [f"mlflow: {rule}"]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl, which has kustomize built in")
def test_kustomize_puts_the_scripts_beside_the_server() -> None:
    done = subprocess.run(["kubectl", "kustomize", str(FOLDER)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    built = documents(done.stdout)
    for document in built:
        assert schema_problems(document) == [], document["metadata"]["name"]
        assert document["metadata"]["namespace"] == "aae-mlflow"
    maps = {d["metadata"]["name"]: d["data"] for d in built if d["kind"] == "ConfigMap"}
    (pod,) = (pod for pod in pods(built) if pod["containers"][0]["name"] == "mlflow")
    (volume,) = (volume for volume in pod["volumes"] if volume["name"] == "server")
    scripts = maps[volume["configMap"]["name"]]
    assert {name: (FOLDER / name).read_text() for name in scripts} == scripts
    assert {"server.sh", "auth.ini", "tables.py", "token_auth.py"} == scripts.keys()
    assert pod["containers"][0]["image"].startswith("REGISTRY/aae-mlflow:")
    assert pod["containers"][0]["envFrom"][0]["configMapRef"]["name"] in maps


def test_the_image_has_the_packages_that_the_server_asks_for() -> None:
    lines = (FOLDER / "Dockerfile").read_text().splitlines()
    packages = (FOLDER / "requirements.txt").read_text()
    assert "COPY requirements.txt" in " ".join(lines) and lines[-1] == "USER 10001:10001"
    (mlflow,) = (line for line in packages.splitlines() if line.startswith("mlflow"))
    tag = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["images"][0]["newTag"]
    assert mlflow == f"mlflow[auth]=={tag}", "the image's tag is MLflow's version"
