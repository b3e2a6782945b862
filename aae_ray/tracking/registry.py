"""The best decoder: exported without pickle, registered once, promoted when it is better, loaded by name.

Shapes: B batch, Z code, K classes or clusters, C channels, H height, W width.
"""

import copy
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aae_ray.autoencoder.model import DECODED, Model
from aae_ray.autoencoder.phases import decoder_input
from aae_ray.autoencoder.priors import Prior, sample_code, uniform_shares
from aae_ray.errors import UserError
from aae_ray.search.constraints import parsed
from aae_ray.search.promotion import Verdict, promote
from aae_ray.secrets import redact, without_userinfo
from aae_ray.settings import dotted_fields
from aae_ray.tracking.address import mlflow_client, quiet_mlflow

CHAMPION = "champion"
ALIAS_TRIES = 3
MOST_LISTED = 200  # registered models that one answer of MLflow may hold
FOLDER = "decoder"  # of the exported model, in the study's folder and among a run's artifacts


class Decoder(nn.Module):
    """What is published: codes in, images x_BCHW in [0, 1] out, on the CPU in float32.

    Codes are z_BZ; where the task has labels, the label comes first, one-hot or as probabilities, and the code has
    K + Z numbers.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.players = nn.ModuleDict(
            {name: player for name, player in model.networks.items() if name in ("decoder", "cluster_heads")}
        )
        self.shape, self.classes = model.shape, model.classes

    def forward(self, codes_BZ: Tensor) -> Tensor:
        y_BK, z_BZ = codes_BZ[:, : self.classes], codes_BZ[:, self.classes :]
        players = dict(self.players.items())
        decoded_BD = players["decoder"](decoder_input(players, z_BZ, y_BK if self.classes else None))
        x_BCHW: Tensor = decoded_BD.unflatten(1, self.shape).clamp(0, 1)
        return x_BCHW


def draw_codes(prior: Prior, label_shares_K: Tensor | None, count: int, generator: torch.Generator) -> Tensor:
    """Codes for a published decoder from its priors, (count, Z), or (count, K + Z) where the task has labels."""
    z_NZ, y_NK = sample_code(prior, label_shares_K, count, generator)
    return z_NZ if y_NK is None else torch.cat([y_NK, z_NZ], dim=1)


def export(model: Model, target: Path, about: Mapping[str, Any]) -> Path:
    """Write the decoder as an MLflow model (torch.export, any batch size); `about` is kept in its metadata.

    Whoever loads it needs torch and mlflow, and not this package. A folder that is there already is taken for the same
    export: its name is to say of what.
    """
    if target.exists():
        return target
    quiet_mlflow()
    import mlflow.pytorch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    from aae_ray.search.store import PARTIAL  # with Optuna behind it, which who loads a decoder does not need

    decoder = copy.deepcopy(Decoder(model)).to(device="cpu", dtype=torch.float32).eval()
    for parameter in decoder.parameters():
        parameter.requires_grad_(False)
    example_BZ = draw_codes(model.prior, model.label_shares_K, 2, torch.Generator().manual_seed(0))
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype("float32"), (-1, example_BZ.shape[1]))]),
        Schema([TensorSpec(np.dtype("float32"), (-1, *model.shape))]),
    )
    partial = target.with_name(f"{target.name}{PARTIAL}{uuid.uuid4().hex[:8]}")
    partial.parent.mkdir(parents=True, exist_ok=True)
    mlflow.pytorch.save_model(
        decoder,
        str(partial),
        serialization_format="pt2",
        signature=signature,
        input_example=example_BZ.numpy(),
        metadata=dict(about),
        pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}", f"mlflow=={mlflow.__version__}"],
    )
    partial.rename(target)
    return target


def register(client: Any, run_id: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """Upload an exported decoder to its run and make it a version of a registered model; promote it if it is better.

    `request` names the model, the exported `folder`, `tags` of the version and the `card`, its description. The same
    decoder is registered once: a second request finds the version of the first.
    """
    from mlflow.exceptions import MlflowException

    name, tags = request["name"], request["tags"]
    try:
        client.create_registered_model(name, description=request["description"])
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    known = [
        v for v in client.search_model_versions(f"name = '{name}'") if v.tags.get("aae.trial") == tags["aae.trial"]
    ]
    if known:
        version = known[0]
    else:
        client.log_artifacts(run_id, request["folder"], FOLDER)
        source = f"{client.get_run(run_id).info.artifact_uri}/{FOLDER}"
        version = client.create_model_version(name, source, run_id=run_id, tags=tags, description=request["card"])
    verdict = _move_alias(client, name, version, request)
    return {"name": name, "version": int(version.version), "champion": verdict.champion, "reason": verdict.reason}


def _move_alias(client: Any, name: str, version: Any, request: Mapping[str, Any]) -> Verdict:
    """Make a version the champion if it is better; held again against one that another study has made it meanwhile."""
    verdict, moved = Verdict(True, "the first of its name"), False
    for _ in range(ALIAS_TRIES):
        aliases = client.get_registered_model(name).aliases
        current = str(aliases[CHAMPION]) if CHAMPION in aliases else None
        if current == str(version.version):
            return verdict if moved else Verdict(True, "it is the champion already")
        if current is not None:
            tags = client.get_model_version(name, current).tags
            constraints = parsed(request.get("constraints", ()))
            verdict = promote(tags, current, request["tags"], request["front"], request["rule"], constraints)
            if not verdict.champion:
                return verdict
        moved = True
        client.set_registered_model_alias(name, CHAMPION, version.version)
    return verdict


@dataclass(frozen=True)
class LoadedDecoder:
    """A registered decoder, with the priors that it was trained with."""

    name: str
    version: str
    module: nn.Module
    prior: Prior
    label_shares_K: Tensor | None  # p(y) of the label that it is told, None for none
    data_digest: str
    shape: tuple[int, ...]  # of an image
    settings: Mapping[str, str]  # of the data that it was trained on, under their dotted keys

    def sample(self, count: int, seed: int) -> Tensor:
        """Images (count, C, H, W) in [0, 1] decoded from draws of the prior that the seed fixes."""
        return self.draw(count, torch.Generator().manual_seed(seed))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Images (count, C, H, W) in [0, 1] decoded from draws of the prior."""
        with torch.no_grad():
            codes = draw_codes(self.prior, self.label_shares_K, count, generator).split(DECODED)
            return torch.cat([self.module(codes_BZ) for codes_BZ in codes])


def load(name: str, uri: str, alias_or_version: str = CHAMPION) -> LoadedDecoder:
    """The registered decoder of this name. Raises UserError when server, model, alias or version are missing."""
    quiet_mlflow()
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")  # our models need no pickle
    import mlflow
    from mlflow.exceptions import MlflowException

    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise UserError(
            f"there is no MLflow database {uri.removeprefix('sqlite:///')}; "
            "run a study here first, or give --tracking-uri"
        )
    try:
        client = mlflow_client(uri)
        client.get_registered_model(name)
    except Exception as error:
        if getattr(error, "error_code", "") not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            reason = redact(str(error).splitlines()[0])[:200]
            raise UserError(f"the MLflow server {without_userinfo(uri)} does not answer: {reason}") from None
        names = sorted(model.name for model in client.search_registered_models(max_results=MOST_LISTED))
        more = " and more" if len(names) == MOST_LISTED else ""
        known, where = ", ".join(names) or "none", without_userinfo(uri)
        raise UserError(f"there is no registered model {name!r} at {where}; it has {known}{more}") from None
    try:
        if alias_or_version.isdigit():
            version, reference = (
                client.get_model_version(name, alias_or_version),
                f"models:/{name}/{alias_or_version}",
            )
        else:
            version, reference = (
                client.get_model_version_by_alias(name, alias_or_version),
                f"models:/{name}@{alias_or_version}",
            )
    except MlflowException:
        aliases = sorted(client.get_registered_model(name).aliases)
        kind = "version" if alias_or_version.isdigit() else "alias"
        raise UserError(
            f"the registered model {name!r} has no {kind} {alias_or_version!r}; "
            f"its aliases are {', '.join(aliases) or 'none'}"
        ) from None
    tags = version.tags
    if "prior" not in tags:
        raise UserError(
            f"version {version.version} of {name!r} says nothing about its prior; it was not registered by aae_ray"
        )
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        module = mlflow.pytorch.load_model(reference)
    except Exception as error:
        raise UserError(f"{reference} cannot be loaded: {str(error).splitlines()[0][:200]}") from None
    return LoadedDecoder(
        name,
        str(version.version),
        module,
        Prior(
            tags["prior"], int(tags["latent_dim"]), float(tags["prior_scale"]), int(tags.get("prior_components", 10))
        ),
        _label_shares(int(tags.get("classes", 0)), tags.get("label_shares", "")),
        tags.get("data.digest", ""),
        tuple(int(side) for side in tags.get("image_shape", "").split("x") if side),
        {key: value for key, value in tags.items() if key in dotted_fields()},
    )


def _label_shares(classes: int, recorded: str) -> Tensor | None:
    """p(y) as a version's tags have it: by its shares, or by the number of classes alone where it is uniform."""
    if recorded:
        return torch.tensor([float(share) for share in recorded.split(",")], dtype=torch.float64)
    return uniform_shares(classes) if classes else None
