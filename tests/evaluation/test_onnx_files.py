"""ONNX files answer as the models do, whether these were trained here or loaded from an export."""

from pathlib import Path

import pytest
import torch

from aae_ray.autoencoder.kinds import ImageKind
from aae_ray.autoencoder.model import build_model
from aae_ray.autoencoder.published import Published
from aae_ray.errors import UserError
from aae_ray.evaluation import onnx_files
from aae_ray.evaluation.onnx_files import write_onnx
from aae_ray.settings import Settings, replace
from aae_ray.tracking import registry
from tests.evaluation.published_models import published

for library in onnx_files.NEEDED:
    pytest.importorskip(library, reason="the extra `onnx` is not installed here")


@pytest.mark.parametrize(
    "model",
    [
        published("vae"),
        published("semi_supervised_reduction"),
        published(model__network="convolutional", model__channels=(4, 6), model__normalization="batch"),
    ],
    ids=["vae", "reduction", "convolutional"],
)
def test_onnx_runtime_answers_as_the_model(model: Published, tmp_path: Path) -> None:
    import onnxruntime

    for network in (model.decoder, model.encoder):
        assert network is not None
        network.eval()
    decoder, encoder = write_onnx(model, tmp_path / "onnx")
    assert {file.name for file in (tmp_path / "onnx").iterdir()} == {"decoder.onnx", "encoder.onnx"}
    assert decoder.difference < 1e-5 and encoder.difference < 1e-5
    x_NCHW = torch.rand(5, *model.shape)
    session = onnxruntime.InferenceSession(str(encoder.path))
    answer = dict(zip(encoder.outputs, session.run(None, {"images": x_NCHW.numpy()}), strict=True))
    encoded = model.encode(x_NCHW)
    torch.testing.assert_close(torch.from_numpy(answer["code"]), encoded.z_NZ, rtol=0, atol=1e-5)
    assert ("sigma" in answer, "representation" in answer) == (
        encoded.sigma_NZ is not None,
        encoded.representation_NZ is not None,
    )


def test_a_file_that_answers_otherwise_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_files, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match=r"decoder.onnx: ONNX Runtime's answers differ from the model's by up to"):
        write_onnx(published(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_missing_library_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_files, "NEEDED", ("onnx", "no_such_library"))
    with pytest.raises(UserError, match="ONNX needs no_such_library; pip install 'aae-ray.onnx.'"):
        write_onnx(published(), tmp_path)


def test_a_model_that_was_loaded_from_an_export_is_exported_again(tmp_path: Path) -> None:
    model = build_model(replace(Settings(), {"task": "semi_supervised"}), ImageKind((1, 8, 8)), classes=4)
    about = {"prior": "gaussian", "prior_scale": "1", "latent_dim": "8", "classes": "4", "image_shape": "1x8x8"}
    for kind in ("decoder", "encoder"):
        registry.export(model, tmp_path / kind / "m", about | {"task": "semi_supervised"}, kind)
    files = write_onnx(registry.load_exported(tmp_path / "decoder/m", encoder=True), tmp_path / "onnx")
    assert [file.outputs for file in files] == [("images",), ("code", "probabilities")]
    assert max(file.difference for file in files) < 1e-5
