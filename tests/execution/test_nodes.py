"""What a node is asked before it trains: whether it sees the study's folder, and the same data."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import ray
from ray.exceptions import GetTimeoutError, NodeDiedError, RaySystemError

from aae_ray.datasets.dataset import Dataset
from aae_ray.errors import UserError
from aae_ray.execution import nodes
from aae_ray.execution.nodes import (
    check_nodes_to_come,
    data_problem,
    file_system,
    folder_problem,
    gpu_problem,
    problem_here,
    refusal,
)
from aae_ray.search.owner import OWNER
from aae_ray.settings import Data, Settings, replace


def test_a_folder_that_is_the_studys_is_seen(tmp_path: Path) -> None:
    (tmp_path / OWNER).write_bytes(b"me")
    assert folder_problem(str(tmp_path), b"me", seconds=0) is None
    assert folder_problem(tmp_path.as_uri(), b"me", seconds=0) is None


def test_a_folder_that_a_node_does_not_see_is_a_sentence_that_says_what_would_be_right(tmp_path: Path) -> None:
    there = tmp_path / "runs" / "digits-1"
    problem = folder_problem(str(there), b"me", seconds=0)
    assert problem is not None and problem.startswith(f"it does not see study.folder {there}; give one that all nodes")
    there.mkdir(parents=True)
    (there / OWNER).write_bytes(b"another study")  # the same path on a disk of its own
    assert "it has another folder at study.folder" in (folder_problem(str(there), b"me", seconds=0) or "")


MOUNTS = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:21 / /proc rw shared:5 - proc proc rw
30 22 0:40 / /mnt/team\040studies rw shared:9 - nfs4 server:/studies rw,vers=4.1
31 22 8:2 / /mnt/scratch rw - xfs /dev/nvme1n1 rw
32 22 0:44 / /mnt/scratch rw - fuse.s3fs s3fs rw
""".lstrip()


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/home/ubuntu/runs/digits-1", "ext4"),
        ("/mnt/team studies/digits-1", "nfs4"),
        ("/mnt/team", "ext4"),  # not a folder below another that begins so
        ("/mnt/scratch/runs", "fuse.s3fs"),  # mounted over another
    ],
)
def test_a_folder_that_machines_to_come_would_not_see_is_refused(folder: str, kind: str, tmp_path: Path) -> None:
    """gpu.yaml begins without a worker that could be asked; each that came would fail a trial, and another come."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert file_system(Path(folder), mounts) == kind
    gpu, head, one = {"GPU": 1.0}, {"CPU": 2.0}, {"CPU": 4.0, "GPU": 1.0}
    told = rf"^study.folder {folder} is on a disk of this machine \({kind}\), .* s3://BUCKET/studies\..* at the start$"
    with pytest.raises(UserError, match=told) if kind == "ext4" else nullcontext():
        check_nodes_to_come(folder, gpu, [head], [head, one], mounts)
    check_nodes_to_come(folder, gpu, [head, one], [head, one], mounts)  # those that are there are asked themselves
    check_nodes_to_come(folder, gpu, [head, one], [], mounts)  # no autoscaler
    check_nodes_to_come("s3://bucket/studies", gpu, [head], [head, one], mounts)
    assert file_system(Path(folder), tmp_path / "none") is None


def test_data_of_another_digest_are_told(digits: Dataset, cache: Path) -> None:
    data = Data(cache=str(cache))
    assert data_problem(data, digits.digest) is None
    assert data_problem(data, "0123") == (
        f"it has other data: data.name digits has digest {digits.digest} there, the study's 0123"
    )
    missing = data_problem(Data(name="faces", path=str(cache / "none.parquet"), cache=str(cache)), "0123")
    assert missing is not None and "none.parquet does not exist" in missing


def test_nodes_with_the_same_problem_are_told_together_by_name() -> None:
    found = [(f"node{number} (10.0.0.{number})", "it does not see it") for number in range(7)]
    lines = refusal([*found, ("other", "it has other data")], 9).splitlines()
    assert lines[0] == "8 of the 9 other nodes of the cluster cannot train this study:"
    assert lines[1].startswith("  node0 (10.0.0.0), node1 (10.0.0.1), ") and "and 2 more: it does not see" in lines[1]
    assert lines[2] == "  other: it has other data"


def test_a_node_that_does_not_answer_or_cannot_import_us_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: dict[str, Exception | None] = {
        "slow": GetTimeoutError("..."),
        "old": RaySystemError("No module named 'aae_ray'"),
        "well": None,
    }
    answers["gone"] = NodeDiedError("Task failed because the node it was running on is dead or unavailable.")

    def get(answer: str, timeout: float) -> None:
        error = answers[answer]
        if error is not None:
            raise error

    monkeypatch.setattr(ray, "get", get)
    found = dict(nodes._answers([(name, name) for name in answers], 7.0))
    assert found.keys() == {"slow", "old"}
    assert found["slow"] == "it has not answered within study.start_timeout=7 s"
    assert found["old"].startswith("it cannot run this project: ") and "No module named" in found["old"]


def test_several_nodes_of_one_machine_are_all_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have the same name; the answer of the last one had stood for all."""
    monkeypatch.setattr(ray, "get", lambda answer, timeout: answer)
    asked: list[tuple[str, str | None]] = [("vm", "it does not see it"), ("vm", None)]
    assert nodes._answers(asked, 7.0) == [("vm", "it does not see it")]


@pytest.mark.parametrize("seen", [True, False])
def test_a_node_whose_pytorch_sees_no_gpu_is_found_before_the_start(
    seen: bool, tmp_path: Path, cache: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray has hidden the GPUs from the process that asks, as it does where that holds none."""
    (tmp_path / "torch.py").write_text(
        "import os\n__version__ = '2.13.0+cu130'\nclass version: cuda = '13.0'\n"
        f"class cuda: is_available = lambda: {seen} and 'CUDA_VISIBLE_DEVICES' not in os.environ\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    problem = gpu_problem()
    assert problem is None if seen else "none for PyTorch 2.13.0+cu130 (built for CUDA: 13.0)" in (problem or "")
    (tmp_path / OWNER).write_bytes(b"me")
    on_gpus = replace(Settings(), {"study.resources_per_worker": {"GPU": 1}, "data.cache": str(cache)})
    asked = problem_here(str(tmp_path), b"me", on_gpus, digits.digest)
    assert asked == problem
    assert problem_here(str(tmp_path), b"me", replace(on_gpus, {"train.device": "cpu"}), digits.digest) is None
