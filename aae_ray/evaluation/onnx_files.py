"""A published model as ONNX files, which answer as it does: checked with ONNX Runtime when they are written.

Shapes: B batch, X numbers of an input or an output.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from aae_ray.autoencoder.kinds import ExampleKind
from aae_ray.autoencoder.published import Published, draw_codes
from aae_ray.errors import UserError

NEEDED = ("onnx", "onnxruntime", "onnxscript")
BATCHES = (1, 7)  # that are compared; exported with another
TRACED = 2
TOLERANCE = 1e-4  # beyond it something is wrong, and not rounded
SEED = 0


class Written(NamedTuple):
    """A file, its inputs and outputs by name, and how far its answers are from the model's at most."""

    path: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    difference: float


def write_onnx(model: Published, folder: Path) -> list[Written]:
    """decoder.onnx and encoder.onnx, for any batch size, in a folder that is made where it is not there.

    Raises UserError where libraries are missing, a file cannot be written, or answers differ.
    """
    if missing := [library for library in NEEDED if find_spec(library) is None]:
        raise UserError(f"ONNX needs {', '.join(missing)}; pip install 'aae-ray[onnx]'")
    assert model.encoder is not None
    if (kind := model.kind) is None:
        raise UserError(f"{model} does not say what it was trained on, images of which shape; run its study again")
    generator = torch.Generator().manual_seed(SEED)
    try:
        folder.mkdir(exist_ok=True)
        decoder = folder / "decoder.onnx"
        return [
            _write(model.decoder, decoder, "codes", _codes(model, generator), (kind.noun,), kind.from_published),
            _write(model.encoder, folder / "encoder.onnx", kind.noun, _examples(kind, generator), None),
        ]
    except OSError as error:
        raise UserError(f"--onnx {folder} cannot be written: {error.strerror or error}") from None


def _codes(model: Published, generator: torch.Generator) -> list[Tensor]:
    return [draw_codes(model.prior, model.label_shares_K, size, generator) for size in (TRACED, *BATCHES)]


def _examples(kind: ExampleKind, generator: torch.Generator) -> list[Tensor]:
    return [kind.to_published(torch.rand(size, *kind.shape, generator=generator)) for size in (TRACED, *BATCHES)]


def _write(
    network: nn.Module,
    path: Path,
    name: str,
    examples: list[Tensor],
    outputs: tuple[str, ...] | None,
    scaled: Callable[[Tensor], Tensor] = lambda answer_BX: answer_BX,
) -> Written:
    """With names of the outputs, or with those that it gives them itself; `scaled` gives them the scale in which they
    are compared, as rows may be in any unit."""
    traced_BX, *compared = examples
    with torch.no_grad():
        names = outputs or tuple(network(traced_BX))
        with _quiet():
            torch.onnx.export(
                network,
                (traced_BX,),
                str(path),
                input_names=[name],
                output_names=list(names),
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        difference = max(_difference(network, path, name, names, x_BX, scaled) for x_BX in compared)
    if not difference <= TOLERANCE:
        path.unlink()
        raise UserError(f"{path.name}: ONNX Runtime's answers differ from the model's by up to {difference:.2g}")
    return Written(path, (name,), names, difference)


def _difference(
    network: nn.Module,
    path: Path,
    name: str,
    names: tuple[str, ...],
    x_BX: Tensor,
    scaled: Callable[[Tensor], Tensor],
) -> float:
    """The largest between the model's answers and those of ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = dict(zip(names, session.run(list(names), {name: x_BX.numpy()}), strict=True))
    answer = network(x_BX)
    expected: Mapping[str, Tensor] = answer if isinstance(answer, Mapping) else {names[0]: answer}
    pairs = [(scaled(torch.from_numpy(found[each])), scaled(expected[each])) for each in names]
    return max(float((own_BX - other_BX).abs().max()) for own_BX, other_BX in pairs)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's remarks are about its own workings."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
