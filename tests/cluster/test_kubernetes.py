"""cluster/kuberay.yaml and the image that it runs: held against strict schemas and rules of ours, and not run."""

import copy
import json
import os
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from aae_ray.provisioning.lock import read_lock
from aae_ray.reading import build, read_overrides
from tests.cluster.laptop import REPOSITORY

FILE = REPOSITORY / "cluster/kuberay.yaml"
TEXT = FILE.read_text(encoding="utf-8")
KUBERNETES = "1.32"  # the oldest whose schema is asked
USER = 10001  # of the Dockerfile
METRICS = 8080  # where KubeRay has Ray put them


def documents(text: str = TEXT) -> list[Any]:
    return list(yaml.safe_load_all(text))


def rayjob_problems(job: Any) -> list[str]:
    """What a small schema of the fields in use refuses, and KubeRay's own where its file is at hand."""
    schema = json.loads(Path(__file__).with_name("rayjob_schema.json").read_text())
    errors = jsonschema.Draft202012Validator(schema).iter_errors(job)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]


def pods(job: Any) -> dict[str, Any]:
    """The templates of all pods, by what they are."""
    cluster = job["spec"]["rayClusterSpec"]
    workers = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return {"submitter": job["spec"]["submitterPodTemplate"], "head": cluster["headGroupSpec"]["template"], **workers}


def kubernetes_problems(thing: Any) -> list[str]:
    """What Kubernetes' own schema refuses in one of its objects, unknown fields included."""
    validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate: pip install -e '.[test]'")
    try:
        validate.validate(thing, KUBERNETES, strict=True)
    except validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message}"]
    return []


def our_problems(job: Any, others: list[Any]) -> list[str]:
    """What schemas let pass and we do not."""
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    containers = [(name, each) for name, pod in pods(job).items() for each in pod["spec"]["containers"]]
    locked = [*((name, each.get("securityContext", {})) for name, each in containers)]
    locked += [("autoscaler", cluster["autoscalerOptions"].get("securityContext", {}))]
    rules = {
        "token": cluster["authOptions"]["mode"] == "token",
        "autoscaling": cluster.get("enableInTreeAutoscaling") is True,
        "deadline": 0 < spec["activeDeadlineSeconds"] <= 86400,
        "ends": spec["shutdownAfterJobFinishes"] is True,
        "no second try": spec.get("backoffLimit") == 0,
        "no trial on the head": cluster["headGroupSpec"]["rayStartParams"].get("num-cpus") == "0",
        "no worker without a study": all(group["minReplicas"] == 0 for group in cluster["workerGroupSpecs"]),
        "Ray's version": cluster["rayVersion"] == read_lock(REPOSITORY / "cluster/requirements.txt").versions["ray"],
        "one image": len({each["image"] for _, each in containers}) == 1,
        "not from outside": cluster["headGroupSpec"].get("serviceType") == "ClusterIP",
        "no token of Kubernetes": all(
            pod["spec"].get("automountServiceAccountToken") is False
            for name, pod in pods(job).items()
            if name != "head"
        ),
        "secrets": all("env" not in each for _, each in containers),
        "policy": any(
            other["kind"] == "NetworkPolicy"
            and all(
                other["spec"]["podSelector"]["matchLabels"].items() <= pod["metadata"].get("labels", {}).items()
                for pod in pods(job).values()
            )
            for other in others
        ),
        "metrics": {METRICS} == {port["port"] for port in monitored(others)},
        "no probe for a study": not any("aae_ray.status" in json.dumps(each) for _, each in containers),
    }
    for name, context in locked:
        rules[f"{name}: no more rights"] = context.get("allowPrivilegeEscalation") is False
        rules[f"{name}: no capabilities"] = context.get("capabilities") == {"drop": ["ALL"]}
        rules[f"{name}: read-only"] = context.get("readOnlyRootFilesystem") is True
    for name, pod in pods(job).items():
        context = pod["spec"].get("securityContext", {})
        rules[f"{name}: not root"] = context.get("runAsNonRoot") is True and context.get("runAsUser") == USER
    for name, each in containers:
        resources = each.get("resources", {})
        same = resources.get("requests") == resources.get("limits")
        rules[f"{name}: requests"] = same and {"cpu", "memory"} <= set(resources.get("requests", {}))
        places = {mount["mountPath"] for mount in each.get("volumeMounts", [])}
        rules[f"{name}: room to write"] = {"/tmp", "/home/aae"} <= places
    return [rule for rule, kept in rules.items() if not kept]


def monitored(others: list[Any]) -> list[Any]:
    """The ports that another namespace reaches, which the label of its name selects."""
    return [
        port
        for other in others
        for rule in other["spec"]["ingress"]
        for source in rule["from"]
        if "kubernetes.io/metadata.name" in source.get("namespaceSelector", {}).get("matchLabels", {})
        for port in rule["ports"]
    ]


def problems(text: str) -> list[str]:
    job, *others = documents(text)
    found = rayjob_problems(job)
    if found:
        return found
    for name, template in pods(job).items():
        pod = {"apiVersion": "v1", "kind": "Pod", **copy.deepcopy(template)}
        pod["metadata"] = {"name": name, **pod["metadata"]}
        found += [f"{name}.{problem}" for problem in kubernetes_problems(pod)]
    for other in others:
        found += [f"{other['kind']}.{problem}" for problem in kubernetes_problems(other)]
    return found + our_problems(job, others)


def test_the_file_is_accepted() -> None:
    assert problems(TEXT) == []


@pytest.mark.parametrize(
    ("words", "right", "wrong"),
    [
        ("shutdownAfterJobFinish", "shutdownAfterJobFinishes:", "shutdownAfterJobFinish:"),
        ("maxReplica", "maxReplicas:", "maxReplica:"),
        ("is not of type 'string'", 'num-cpus: "0"', "num-cpus: 0"),
        ("'v3' is not one of", "version: v2", "version: v3"),
        ("head.spec.containers.0", "containerPort: 6379", 'containerPort: "6379"'),
        ("tolerations", "effect: NoSchedule", "efect: NoSchedule"),
        ("NetworkPolicy", "policyTypes", "policyType"),
        ("token", "mode: token", "mode: disabled"),
        ("deadline", "activeDeadlineSeconds: 43200", "activeDeadlineSeconds: 4320000"),
        ("ends", "shutdownAfterJobFinishes: true", "shutdownAfterJobFinishes: false"),
        ("no trial on the head", '{num-cpus: "0", ', "{"),
        ("no worker without a study", "minReplicas: 0", "minReplicas: 1"),
        ("Ray's version", 'rayVersion: "2.60.0"', 'rayVersion: "2.59.0"'),
        ("not from outside", "serviceType: ClusterIP", "serviceType: LoadBalancer"),
        ("submitter: no more rights", "allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true"),
        ("autoscaler: no capabilities", "capabilities: {drop: [ALL]}", "capabilities: {drop: []}"),
        ("gpu: read-only", "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false"),
        (
            "autoscaler: read-only",
            "      securityContext: *locked\n      resources: *small\n",
            "      resources: *small\n",
        ),
        ("head: not root", "runAsUser: 10001", "runAsUser: 0"),
        ("gpu: requests", 'requests: {cpu: "4", memory: 16Gi, nvidia', 'requests: {cpu: "2", memory: 16Gi, nvidia'),
        ("head: room to write", "- {name: tmp, mountPath: /tmp}", "- {name: tmp, mountPath: /tmp2}"),
        ("no token of Kubernetes", "            automountServiceAccountToken: false\n", ""),
        ("metrics", "port: 8080", "port: 8265"),  # on which a token gives orders
        ("metrics", "kubernetes.io/metadata.name: monitoring", "name: monitoring"),
        (
            "no probe for a study",
            "              ports:\n",
            "              livenessProbe: {exec: {command: [python, -m, aae_ray.status]}}\n              ports:\n",
        ),
        ("policy", "    matchLabels: {app: aae-ray}\n  policyTypes", "    matchLabels: {app: ray}\n  policyTypes"),
    ],
)
def test_a_mistake_is_found(words: str, right: str, wrong: str) -> None:
    assert right in TEXT, "the mistake cannot be made: the file has changed"
    found = problems(TEXT.replace(right, wrong))
    assert any(words in problem for problem in found), found


def test_the_file_keeps_kuberays_own_schema() -> None:
    """The schema is KubeRay's, and no part of this project: name its file of rayjobs.ray.io to have this checked."""
    path = os.environ.get("KUBERAY_RAYJOB_CRD")
    if path is None:
        pytest.skip("KUBERAY_RAYJOB_CRD names no file of KubeRay's custom resource definition")
    versions = {each["name"]: each["schema"] for each in yaml.safe_load(Path(path).read_text())["spec"]["versions"]}
    schema = strict(versions["v1"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    errors = jsonschema.Draft202012Validator(schema).iter_errors(documents()[0])
    assert [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in errors] == []


def strict(schema: Any) -> Any:
    """A schema of Kubernetes as JSON schema, in which what is listed is all that there may be."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {key: strict(part) for key, part in schema.items() if key not in ("format", "nullable")}
    if schema.get("nullable") and isinstance(made.get("type"), str):
        made["type"] = [made["type"], "null"]
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def test_the_pods_that_prometheus_is_to_find_are_those_of_the_study() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (REPOSITORY / "docs/monitoring.md").read_text(), re.DOTALL)
    (monitor,) = (block for block in map(yaml.safe_load, blocks) if block.get("kind") == "PodMonitor")
    job, *others = documents()
    wanted = monitor["spec"]["selector"]["matchLabels"]
    assert all(wanted.items() <= pod["metadata"]["labels"].items() for pod in pods(job).values())
    assert [endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]] == ["metrics"]
    assert [port["port"] for port in monitored(others)] == [METRICS]


def test_the_study_is_one_that_can_run_there() -> None:
    python, dash, module, space, *overrides = shlex.split(documents()[0]["spec"]["entrypoint"])
    assert (python, dash, module, space) == ("python", "-m", "aae_ray.tune", "digits")
    settings = build(read_overrides(overrides))
    assert settings.study.resources_per_worker == {"GPU": 1}
    assert settings.train.device == "cuda"
    assert settings.study.budget.wall_clock is not None
    assert settings.study.budget.wall_clock < documents()[0]["spec"]["activeDeadlineSeconds"]


# ----------------------------------------------------------------------------------------------------------- the image


DOCKERFILE = (REPOSITORY / "cluster/Dockerfile").read_text(encoding="utf-8")


def instructions(text: str) -> list[tuple[str, str]]:
    """Each instruction of a Dockerfile with what follows it, on one line."""
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]
    return [(word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def image_problems(text: str) -> list[str]:
    """What a linter of Dockerfiles would say, as far as it concerns this one."""
    given = instructions(text)
    runs = [rest for word, rest in given if word == "RUN"]
    last = [word for word, _ in given].count("FROM")
    final = given[max(n for n, (word, _) in enumerate(given) if word == "FROM") :]
    users = [rest for word, rest in final if word == "USER"]
    rules: dict[str, bool] = {
        "a version of each image": all(re.match(r"\S+:(?!latest)\S+", rest) for word, rest in given if word == "FROM"),
        "slim": all("-slim" in rest for word, rest in given if word == "FROM"),
        "tools stay behind": last == 2,
        "not root": users == [f"{USER}:{USER}"] and final.index(("USER", users[0])) > len(final) - 3,
        "no ADD": all(word != "ADD" for word, _ in given),
        "nothing piped into a shell": not any(re.search(r"\|\s*(ba)?sh\b", run) for run in runs),
        "no sudo": not any("sudo" in run for run in runs),
        "apt": all(
            "--no-install-recommends" in run and "rm -rf /var/lib/apt/lists/*" in run
            for run in runs
            if "apt-get" in run
        ),
        "pip keeps no cache": all("--no-cache" in run for run in runs if "pip install" in run),
        "a version of uv": any(re.search(r"uv==\d", run) for run in runs),
        "by hash": any("--require-hashes" in run and "requirements.txt" in run for run in runs),
        "no secrets": not re.search(r"(?i)(password|secret|token|_key)\s*=", text),
        "absolute folders": all(rest.startswith("/") for word, rest in given if word == "WORKDIR"),
        "exec form": all(rest.startswith("[") for word, rest in given if word in ("CMD", "ENTRYPOINT")),
    }
    return [rule for rule, kept in rules.items() if not kept]


def test_the_dockerfile_is_accepted() -> None:
    assert image_problems(DOCKERFILE) == []


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("a version of each image", lambda text: text.replace(":3.11-slim-bookworm", ":latest")),
        ("slim", lambda text: text.replace("-slim", "")),
        ("not root", lambda text: text.replace("USER 10001:10001\n", "")),
        ("not root", lambda text: text.replace("USER 10001:10001", "USER root")),
        ("no ADD", lambda text: text.replace("COPY aae_ray", "ADD aae_ray")),
        ("nothing piped", lambda text: text + "RUN curl https://x.org | sh\n"),
        ("apt", lambda text: text.replace(" --no-install-recommends", "")),
        ("by hash", lambda text: text.replace(" --require-hashes", "")),
        ("no secrets", lambda text: text + "ENV MLFLOW_TRACKING_PASSWORD=x\n"),
        ("exec form", lambda text: text.replace('CMD ["python", "-m", "aae_ray"]', "CMD python -m aae_ray")),
    ],
)
def test_a_mistake_in_the_dockerfile_is_found(words: str, change: Callable[[str], str]) -> None:
    assert any(words in problem for problem in image_problems(change(DOCKERFILE)))


def test_the_image_has_what_it_copies_and_the_build_sees_nothing_else() -> None:
    copied = [
        source
        for word, rest in instructions(DOCKERFILE)
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    ]
    assert all((REPOSITORY / source).exists() for source in copied), copied
    ignored = (REPOSITORY / "cluster/Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in ignored if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == set(copied)
    # The project is built there from what is copied: its packages, and the files that pyproject.toml names.
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert {project["readme"], *project["license-files"], "pyproject.toml"} <= set(copied)


def test_the_image_and_the_nodes_have_one_uv_and_one_python() -> None:
    gpu = (REPOSITORY / "cluster/gpu.yaml").read_text()
    assert re.findall(r"uv==(\S+)", DOCKERFILE) == re.findall(r"astral.sh/uv/([^/]+)/", gpu)
    assert set(re.findall(r"python:(\d+\.\d+)-", DOCKERFILE)) == set(re.findall(r"uv venv --python (\d+\.\d+)\.", gpu))
