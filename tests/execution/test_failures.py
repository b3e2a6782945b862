"""Every error that ends an attempt has its class: what a retry may do about it depends on that."""

import os
import traceback
from pathlib import Path

import pytest
import ray
import torch
from ray import exceptions as errors
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    InsufficientClusterResourcesError,
    UserExceptionWithTraceback,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
)

from aae_ray.errors import UserError
from aae_ray.execution import failures
from aae_ray.execution.failures import BadNode, describe, log_tail
from aae_ray.search.outcomes import FailureClass

CPU_FULL = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"


def died(text: str = "The actor died unexpectedly before finishing this task.", preempted: bool = False) -> Exception:
    error: Exception = errors.RayActorError(error_msg=text, preempted=preempted)
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), FailureClass.OUT_OF_MEMORY),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
            FailureClass.OUT_OF_MEMORY,
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), FailureClass.OUT_OF_MEMORY),
        (RuntimeError("CUDNN_STATUS_NOT_SUPPORTED. This error may appear: out of memory"), FailureClass.OUT_OF_MEMORY),
        (RuntimeError(CPU_FULL), FailureClass.OUT_OF_MEMORY),
        (MemoryError(), FailureClass.OUT_OF_MEMORY),
        (errors.OutOfMemoryError("Task was killed due to the node running low on memory."), FailureClass.OUT_OF_MEMORY),
        (died("The actor died: its worker was killed as the node runs low on memory"), FailureClass.OUT_OF_MEMORY),
        (UserError("model.channels is too deep"), FailureClass.BAD_DATA),
        (BadNode.here("has other data"), FailureClass.BAD_NODE),
        (died(), FailureClass.LOST_WORKER),
        (died("The actor died. Some common causes include: killed by the OOM killer"), FailureClass.LOST_WORKER),
        (errors.WorkerCrashedError(), FailureClass.LOST_WORKER),
        (errors.NodeDiedError("Node died"), FailureClass.PREEMPTED),  # no notice was given
        (died("The actor died because its node has died. Node Id: 0ab"), FailureClass.PREEMPTED),
        (errors.ActorUnavailableError("RpcError: Socket closed", b"0" * 16), FailureClass.PREEMPTED),
        (RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:4711"), FailureClass.LOST_WORKER),
        (died(preempted=True), FailureClass.PREEMPTED),
        (errors.NodeDiedError("the node was preempted"), FailureClass.PREEMPTED),
        (errors.GetTimeoutError("Get timed out"), FailureClass.HUNG),
        (RuntimeError("[gloo] Timed out waiting 1800000ms for recv operation to complete"), FailureClass.HUNG),
        (WorkerGroupStartupTimeoutError(2), FailureClass.CANNOT_START),
        (ControllerError(WorkerGroupStartupFailedError("One of the worker actors died")), FailureClass.LOST_WORKER),
        (ControllerError(WorkerGroupStartupFailedError("the node was preempted")), FailureClass.PREEMPTED),
        (
            ControllerError(WorkerGroupStartupFailedError("the node runs low on memory")),
            FailureClass.OUT_OF_MEMORY,
        ),
        (ControllerError(InsufficientClusterResourcesError("1 GPU is needed")), FailureClass.CANNOT_START),
        (ZeroDivisionError("division by zero"), FailureClass.BUG),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), FailureClass.BUG),
        (ValueError("text that only mentions Connection closed by peer"), FailureClass.BUG),
    ],
)
def test_an_error_has_its_class(error: Exception, kind: FailureClass) -> None:
    assert describe(error).kind is kind
    group = WorkerGroupError("...", {0: UserExceptionWithTraceback(error, "Traceback ...")})
    assert describe(group).kind is kind  # as Ray Train hands it on


def test_real_allocation_failures_are_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert describe(caught.value).kind is FailureClass.OUT_OF_MEMORY
    with pytest.raises(MemoryError) as python:
        bytearray(1 << 62)
    assert describe(python.value).kind is FailureClass.OUT_OF_MEMORY


def test_the_rank_that_failed_says_more_than_those_that_lost_it() -> None:
    lost = RuntimeError("Connection closed by peer [127.0.0.1]:4711")
    group = WorkerGroupError("...", {0: lost, 1: UserExceptionWithTraceback(KeyError("weights"), "Traceback ...")})
    failed = describe(group)
    assert (failed.kind, failed.rank) == (FailureClass.BUG, 1) and failed.message == "KeyError: 'weights'"
    assert describe(group, rank=0).kind is FailureClass.LOST_WORKER
    assert describe(WorkerGroupError("...", {0: lost, 1: died()})).kind is FailureClass.LOST_WORKER
    assert describe(WorkerGroupError("...", {0: KeyError("x"), 1: died(preempted=True)})).kind is FailureClass.PREEMPTED


def test_the_message_is_the_line_that_says_what_is_wrong() -> None:
    try:
        torch.zeros(2, 3) @ torch.zeros(2, 3)
    except RuntimeError as error:
        failed = describe(error)
    assert failed.message.startswith("RuntimeError: mat1 and mat2 shapes cannot be multiplied")
    assert "torch.zeros(2, 3) @" in failed.traceback and failed.traceback.startswith("Traceback")


def test_of_a_worker_that_died_at_its_start_the_reason_is_told() -> None:
    """In Ray's words, which have the cause as the text of a traceback."""
    try:
        raise died("The actor died because its node ran out of file descriptors.")
    except errors.RayActorError:
        text = f"One of the worker actors failed to initialize due to error:\n{traceback.format_exc()}"
    failed = describe(ControllerError(WorkerGroupStartupFailedError(text)))
    assert failed.kind is FailureClass.LOST_WORKER and failed.message.endswith("ran out of file descriptors."), failed


def test_the_cause_of_an_error_decides_where_the_error_says_nothing() -> None:
    try:
        try:
            raise UserError("the labels are broken")
        except UserError as error:
            raise RuntimeError("loading failed") from error
    except RuntimeError as error:
        assert describe(error).kind is FailureClass.BAD_DATA


def test_the_end_of_a_log_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert log_tail(os.getpid()) == ""  # Ray does not run here

    class Node:
        def get_logs_dir_path(self) -> str:
            return str(tmp_path)

    monkeypatch.setattr(ray._private.worker, "_global_node", Node())
    (tmp_path / "worker-abc-01000000-77.err").write_text("".join(f"line {number}\n" for number in range(5000)))
    (tmp_path / "worker-abc-01000000-78.err").write_text("another process\n")
    lines = log_tail(77).splitlines()
    assert len(lines) == failures.LOG_LINES and lines[-1] == "line 4999"
