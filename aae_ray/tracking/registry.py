"""The best decoder: exported without pickle, registered once, promoted when it is better, loaded by name.

Shapes: B batch, Z code, K classes or clusters, C channels, H height, W width.
"""

import copy
import json
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
from aae_ray.search.promotion import BETTER, CHOICE_METRICS, RULE, Verdict, promote
from aae_ray.secrets import redact, without_userinfo
from aae_ray.settings import dotted_fields
from aae_ray.tracking.address import mlflow_client, quiet_mlflow

CHAMPION = "champion"
ALIAS_TRIES = 3
CHAMPIONS = "aae.champions"  # tag of a registered model: versions that were its champion, in their order
PROMOTION = "promotion"  # prefix of a version's tags: what became of it, and by which numbers
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
        for key in (key for key in tags if version.tags.get(key) != tags[key]):  # more is known of it: new seeds
            client.set_model_version_tag(name, version.version, key, tags[key])
    else:
        client.log_artifacts(run_id, request["folder"], FOLDER)
        source = f"{client.get_run(run_id).info.artifact_uri}/{FOLDER}"
        version = client.create_model_version(name, source, run_id=run_id, tags=tags, description=request["card"])
    verdict = _move_alias(client, name, version, request)
    return {"name": name, "version": int(version.version), "champion": verdict.champion, "reason": verdict.reason}


def _move_alias(client: Any, name: str, version: Any, request: Mapping[str, Any]) -> Verdict:
    """Make a version the champion if it is better; held again against one that another study has made it meanwhile.

    What was decided stands in the tags of the version, a refusal as well.
    """
    verdict, repaired, moved = Verdict(True, "the first of its name"), "", False
    for _ in range(ALIAS_TRIES):
        current, told = _champion(client, name)
        repaired = repaired or told
        if current is not None and str(current.version) == str(version.version):
            if not moved:
                return Verdict(True, "it is the champion already")
            break
        if current is not None:
            constraints = parsed(request.get("constraints", ()))
            front, rule, policy = request["front"], request["rule"], request.get("policy", BETTER)
            verdict = promote(current.tags, str(current.version), request["tags"], front, rule, constraints, policy)
            if not verdict.champion:
                break
        elif repaired:
            verdict = Verdict(True, "no other one has been the champion")
        moved = True
        set_champion(client, name, version.version)
    verdict = verdict._replace(reason=f"{repaired}{verdict.reason}")
    _record(client, name, version.version, verdict)
    return verdict


def hold(client: Any, name: str, version: Any, policy: str) -> Verdict:
    """Hold a registered version against the champion by what the tags of both say, and make it the champion if it is
    better. Raises UserError for a version that is not ours."""
    trial_of(version)
    tags = version.tags
    own = json.loads(tags.get(CHOICE_METRICS, "{}"))
    request = {"tags": tags, "front": [own], "rule": tags.get(RULE, "nearest_to_ideal"), "policy": policy}
    return _move_alias(client, name, version, request)


def _champion(client: Any, name: str) -> tuple[Any, str]:
    """The version that is the champion, None for none; and what is to be told of it.

    An alias may point to a version that was deleted. Then the one that was the champion before is it again.
    """
    aliases = client.get_registered_model(name).aliases
    if CHAMPION not in aliases:
        return None, ""
    pointed = str(aliases[CHAMPION])
    if (version := _existing(client, name, pointed)) is not None:
        return version, ""
    told = f"the champion was version {pointed}, which has been deleted"
    if (before := _before(client, name, pointed)) is None:
        client.delete_registered_model_alias(name, CHAMPION)
        return None, f"{told}; "
    client.set_registered_model_alias(name, CHAMPION, before.version)
    return before, f"{told}, and version {before.version} is it again; "


def _existing(client: Any, name: str, version: str) -> Any:
    """A version, None where it has been deleted."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version(name, version)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def champions(client: Any, name: str) -> list[str]:
    """The versions of a registered model that were its champion, in their order, deleted ones too."""
    return list(json.loads(client.get_registered_model(name).tags.get(CHAMPIONS, "[]")))


def _before(client: Any, name: str, current: str) -> Any:
    """The last champion before a version that is still there, None where there is none."""
    former = [version for version in champions(client, name) if version != current]
    return next((found for version in reversed(former) if (found := _existing(client, name, version))), None)


def set_champion(client: Any, name: str, version: Any) -> None:
    """Move the alias, and remember who was the champion: the memory first, which does no harm where this ends here."""
    former, current = champions(client, name), client.get_registered_model(name).aliases.get(CHAMPION)
    for each in (current, version):  # the one of an earlier release, which kept no memory, too
        if each is not None and former[-1:] != [str(each)]:
            former.append(str(each))
    client.set_registered_model_tag(name, CHAMPIONS, json.dumps(former))
    client.set_registered_model_alias(name, CHAMPION, version)


def roll_back(client: Any, name: str) -> Verdict:
    """Make the champion before this one the champion again. Raises UserError when there is none."""
    current, told = _champion(client, name)
    if told and current is not None:  # the repair has rolled it back
        return Verdict(True, told.removesuffix("; "))
    before = None if current is None else _before(client, name, str(current.version))
    if current is None or before is None:
        raise UserError(f"{name} has had no champion before {'this one' if current else 'that is still there'}")
    kept = [version for version in champions(client, name) if version != str(current.version)]
    client.set_registered_model_tag(name, CHAMPIONS, json.dumps(kept))
    client.set_registered_model_alias(name, CHAMPION, before.version)
    verdict = Verdict(False, f"rolled back to version {before.version}")
    _record(client, name, current.version, verdict)
    return Verdict(True, f"version {before.version} is the champion again, after version {current.version}")


def _record(client: Any, name: str, version: Any, verdict: Verdict) -> None:
    """The tags of a version that say what was decided of it."""
    tags = {"": "promoted" if verdict.champion else "refused", ".reason": verdict.reason}
    if (evidence := verdict.evidence) is not None:
        tags |= {f".{key}": repr(value) for key, value in evidence._asdict().items()}
    for key, value in tags.items():
        client.set_model_version_tag(name, version, f"{PROMOTION}{key}", value)


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


def client_of(name: str, uri: str) -> Any:
    """MLflow's client for an address that answers and has this model. Raises UserError for one that does not."""
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
    return client


def version_of(client: Any, name: str, alias_or_version: str | None) -> Any:
    """The version of a model by its number or an alias, the newest one for None. Raises UserError for none."""
    from mlflow.exceptions import MlflowException

    if alias_or_version is None:
        found = client.search_model_versions(f"name = '{name}'")
        if not found:
            raise UserError(f"the registered model {name!r} has no versions")
        return max(found, key=lambda version: int(version.version))
    try:
        if alias_or_version.isdigit():
            return client.get_model_version(name, alias_or_version)
        return client.get_model_version_by_alias(name, alias_or_version)
    except MlflowException:
        aliases = client.get_registered_model(name).aliases
        if alias_or_version in aliases:
            raise UserError(
                f"the alias {alias_or_version!r} of {name!r} points to version {aliases[alias_or_version]}, which has "
                f"been deleted; python -m aae_ray.promote {name} --rollback repairs it"
            ) from None
        kind = "version" if alias_or_version.isdigit() else "alias"
        raise UserError(
            f"the registered model {name!r} has no {kind} {alias_or_version!r}; "
            f"its aliases are {', '.join(sorted(aliases)) or 'none'}"
        ) from None


def trial_of(version: Any) -> str:
    """Study, trial and epoch that a version is of. Raises UserError for one that is not ours."""
    trial: str = version.tags.get("aae.trial", "")
    if not trial:
        raise UserError(
            f"version {version.version} of {version.name!r} says nothing about its trial; it was not registered by "
            "aae_ray"
        )
    return trial


def runs_of(client: Any, version: Any) -> tuple[Any, Any]:
    """The run of the trial that a version is of, and that of its study. Raises UserError where one is gone."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(version.run_id)
        return run, client.get_run(run.data.tags["mlflow.parentRunId"])
    except (MlflowException, KeyError):
        raise UserError(
            f"the run of version {version.version} of {version.name!r}, which has its settings, is not in MLflow any "
            "more"
        ) from None


def load(name: str, uri: str, alias_or_version: str = CHAMPION) -> LoadedDecoder:
    """The registered decoder of this name. Raises UserError when server, model, alias or version are missing."""
    quiet_mlflow()
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")  # our models need no pickle
    import mlflow

    client = client_of(name, uri)
    version = version_of(client, name, alias_or_version)
    reference = f"models:/{name}/{version.version}"
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
