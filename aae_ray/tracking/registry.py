"""The best model, an encoder and a decoder: exported without pickle, registered once, promoted together when it is
better, loaded by name.

Shapes: B batch, Z code, K classes or clusters, C channels, H height, W width.
"""

import copy
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from aae_ray.autoencoder.kinds import ExampleKind, RowKind, recorded_kind
from aae_ray.autoencoder.model import Model
from aae_ray.autoencoder.priors import Prior, uniform_shares
from aae_ray.autoencoder.published import Decoder, Encoder, Published, draw_codes
from aae_ray.errors import UserError, did_you_mean
from aae_ray.search.constraints import parsed
from aae_ray.search.promotion import BETTER, CHOICE_METRICS, CONSTRAINTS, NEVER, RULE, Verdict, promote
from aae_ray.secrets import redact, without_userinfo
from aae_ray.settings import dotted_fields
from aae_ray.tracking.address import check_answers, mlflow_client, quiet_mlflow

CHAMPION = "champion"
ALIAS_TRIES = 3
CHAMPIONS = "aae.champions"  # tag of a registered model: versions that were its champion, in their order
PROMOTION = "promotion"  # prefix of a version's tags: what became of it, and by which numbers
MOST_LISTED = 200  # registered models that one answer of MLflow may hold
DECODER, ENCODER = (
    "decoder",
    "encoder",
)  # folders of the exported models, in a study's folder and among a run's artifacts
TRIAL = (
    "aae.trial"  # the tag of a version that says what it is of: an encoder and a decoder of one trial belong together
)
CLASS_NAMES = "class_names"  # in the metadata, as JSON: a tag may be too short for them
RECONSTRUCTION = "val/reconstruction_mse"
SPLIT_DIGEST = "data.split_digest"
VALUE_RANGE = "data.value_range"  # as JSON
ROWS = "rows"  # in the metadata, as JSON: columns of rows, and how they are standardised
LOADER = Path(__file__).with_name("autoencoder_pyfunc.py")


def encoder_name(decoder: str) -> str:
    """The registered encoder of a registered decoder: aae-digits-encoder of aae-digits-decoder."""
    return f"{decoder.removesuffix(f'-{DECODER}')}-{ENCODER}"


def decoder_names(encoder: str) -> tuple[str, ...]:
    """The registered decoders that an encoder's name may follow: aae-digits-decoder, or a name of the user's own."""
    own = encoder.removesuffix(f"-{ENCODER}")
    return f"{own}-{DECODER}", own


def decoder_of(client: Any, encoder: str) -> str | None:
    """The registered decoder that an encoder's name follows; None where there is none."""
    names = (name for name in decoder_names(encoder) if client.search_registered_models(f"name = '{name}'"))
    return next(names, None)


class _Interface(NamedTuple):
    """What an exported network takes and gives: in a signature's words, and as numbers that are checked."""

    what: str
    shape: tuple[int, ...]  # of one of them
    of: str  # what more the signature says of them
    limits: tuple[float, float] | None
    example_BX: Tensor
    outputs: Mapping[str, tuple[int, ...]]  # by name, the shape of one of each
    columns: tuple[str, ...] = ()  # of rows that it takes
    answers: tuple[str, ...] = ()  # columns of rows that it gives

    @property
    def dtype(self) -> Any:
        """Of the numbers that it takes."""
        return np.dtype(str(self.example_BX.dtype).removeprefix("torch."))


def _decoder_interface(model: Model) -> _Interface:
    example_BZ = draw_codes(model.prior, model.label_shares_K, 2, torch.Generator().manual_seed(0))
    label = f": {model.classes} of a one-hot label or its probabilities, then the code" if model.classes else ""
    columns = model.kind.columns if isinstance(model.kind, RowKind) else ()
    outputs = {"rows in their own units" if columns else "images in [0, 1]": model.shape}
    return _Interface("codes", tuple(example_BZ.shape[1:]), label, None, example_BZ, outputs, answers=columns)


def _encoder_interface(model: Model) -> _Interface:
    example_BX = model.kind.to_published(torch.rand(2, *model.shape, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        answer = on_the_cpu(Encoder(model))(example_BX)
    outputs = {name: tuple(part_BX.shape[1:]) for name, part_BX in answer.items()}
    if isinstance(model.kind, RowKind):
        columns = model.kind.columns
        return _Interface("rows", model.shape, "", None, example_BX, outputs, columns=columns)
    return _Interface("images", model.shape, " in [0, 1]", (0.0, 1.0), example_BX, outputs)


# kind -> the network that is exported, and what it takes and gives
_PUBLISHED = {DECODER: (Decoder, _decoder_interface), ENCODER: (Encoder, _encoder_interface)}


def on_the_cpu(network: nn.Module) -> nn.Module:
    """A copy in float32 that is done with training."""
    copied = copy.deepcopy(network).to(device="cpu", dtype=torch.float32).eval()
    for parameter in copied.parameters():
        parameter.requires_grad_(False)
    return copied


def export(model: Model, target: Path, about: Mapping[str, Any], kind: str = DECODER) -> Path:
    """Write the decoder or the encoder as an MLflow model (torch.export, any batch size); `about` is kept in its
    metadata.

    Whoever loads it needs torch and mlflow, and not this package. A folder that is there already is taken for the same
    export: its name is to say of what.
    """
    if target.exists():
        return target
    quiet_mlflow()
    import mlflow.pytorch
    from mlflow import pyfunc
    from mlflow.models import Model as Described
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec
    from mlflow.types.schema import AnyType

    from aae_ray.search.store import PARTIAL  # with Optuna behind it, which who loads a model does not need

    network, interface_of = _PUBLISHED[kind]
    interface = interface_of(model)
    given = np.dtype(model.kind.published_dtype if kind == DECODER else "float32")
    outputs = Schema([TensorSpec(given, (-1, *shape), name) for name, shape in interface.outputs.items()])
    partial = target.with_name(f"{target.name}{PARTIAL}{uuid.uuid4().hex[:8]}")
    partial.parent.mkdir(parents=True, exist_ok=True)
    mlflow.pytorch.save_model(
        on_the_cpu(network(model)),
        str(partial),
        serialization_format="pt2",
        signature=ModelSignature(Schema([TensorSpec(interface.dtype, (-1, *interface.shape))]), outputs),
        input_example=interface.example_BX.numpy(),
        metadata=dict(about),
        code_paths=[str(LOADER)],
        pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}", f"mlflow=={mlflow.__version__}"],
    )
    # MLflow checks data frames by the names of their columns, and hands them on in the signature's order; to columns of
    # doubles it would let no whole numbers. It holds arrays to the one type of their signature, and its loader of
    # PyTorch models takes no float64. What it hands on as it is, is an `object` of one dimension. So its name says
    # shape and scale, and our loader checks them.
    described = Described.load(str(partial))
    sides = ", ".join(map(str, interface.shape))
    text = f"{interface.what} (B, {sides}){interface.of}, float32 or float64"
    inputs = [ColSpec(AnyType(), name) for name in interface.columns]
    described.signature = ModelSignature(Schema(inputs or [TensorSpec(np.dtype("O"), (-1,), text)]), outputs)
    flavor = described.flavors[pyfunc.FLAVOR_NAME]
    pyfunc.add_to_model(
        described,
        loader_module=LOADER.stem,
        data=flavor["data"],
        code=flavor["code"],
        conda_env=flavor["env"]["conda"],
        python_env=flavor["env"]["virtualenv"],
        model_config={
            "what": interface.what,
            "shape": list(interface.shape),
            "limits": list(interface.limits) if interface.limits else None,
            "dtype": interface.dtype.name,
            "columns": list(interface.columns),
            "answers": list(interface.answers),
        },
    )
    described.save(str(partial / "MLmodel"))
    partial.rename(target)
    return target


def register(client: Any, run_id: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """Upload an exported decoder and its encoder to their run and make each a version of a registered model; promote
    them together if they are better. Returns the fields of `events.Promoted`.

    `request` names the decoder's model, the exported `folder`, `tags` of the version and the `card`, its description;
    `encoder` has the same of the encoder, if there is one. What is registered already is found by its trial, so a
    second request registers nothing twice, and finishes what a first one left.
    """
    name, tags, encoder = request["name"], request["tags"], request.get("encoder")
    version = _version_of(client, run_id, request, tags, DECODER)
    if encoder:
        _version_of(client, run_id, encoder, tags, ENCODER)
    verdict = _move_alias(client, name, version, request)
    _follow(client, name)
    made = {"name": name, "version": int(version.version), "champion": verdict.champion, "reason": verdict.reason}
    made |= {"against": verdict.against, "policy": request.get("policy", BETTER), "rule": request.get("rule")}
    made |= verdict.evidence._asdict() if verdict.evidence is not None else {}
    return made | ({"encoder": encoder["name"]} if encoder else {})


def _version_of(client: Any, run_id: str, request: Mapping[str, Any], tags: Mapping[str, str], folder: str) -> Any:
    """The version of this trial: the one that is there, or else a new one of what is uploaded for it."""
    from mlflow.exceptions import MlflowException

    name = request["name"]
    try:
        client.create_registered_model(name, description=request["description"])
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    if known := version_of_trial(client, name, tags[TRIAL]):
        for key in (key for key in tags if known.tags.get(key) != tags[key]):  # more is known of it: new seeds
            client.set_model_version_tag(name, known.version, key, tags[key])
        return known
    client.log_artifacts(run_id, request["folder"], folder)
    source = f"{client.get_run(run_id).info.artifact_uri}/{folder}"
    return client.create_model_version(name, source, run_id=run_id, tags=tags, description=request["card"])


def version_of_trial(client: Any, name: str, trial: str | None) -> Any:
    """The version of a registered model that is of this trial, None where there is none."""
    found = client.search_model_versions(f"name = '{name}'") if trial else []
    return next((version for version in found if version.tags.get(TRIAL) == trial), None)


def _follow(client: Any, name: str) -> None:
    """The encoder that belongs to the champion is the champion among the encoders.

    One decision moves both aliases, the decoder's first. Whoever registers next moves the other where a process died
    between them, and takes it away where the champion has no encoder.
    """
    encoders = encoder_name(name)
    if not client.search_registered_models(f"name = '{encoders}'"):
        return
    aliases, follower = client.get_registered_model(name).aliases, client.get_registered_model(encoders).aliases
    champion = client.get_model_version(name, str(aliases[CHAMPION])) if CHAMPION in aliases else None
    encoder = version_of_trial(client, encoders, champion.tags.get(TRIAL)) if champion else None
    if encoder is None and CHAMPION in follower:
        client.delete_registered_model_alias(encoders, CHAMPION)
    elif encoder is not None and str(follower.get(CHAMPION)) != str(encoder.version):
        client.set_registered_model_alias(encoders, CHAMPION, encoder.version)


def _move_alias(client: Any, name: str, version: Any, request: Mapping[str, Any]) -> Verdict:
    """Make a version the champion if it is better; held again against one that another study has made it meanwhile.

    What was decided stands in the tags of the version, a refusal as well.
    """
    policy = request.get("policy", BETTER)
    if policy == NEVER and str(client.get_registered_model(name).aliases.get(CHAMPION)) != str(version.version):
        verdict = Verdict(False, "tracking.promotion=never")
        _record(client, name, version.version, verdict)
        return verdict
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
            front, rule = request["front"], request["rule"]
            verdict = promote(current.tags, str(current.version), request["tags"], front, rule, constraints, policy)
            verdict = verdict._replace(against=int(current.version))
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
    request = {
        "tags": tags,
        "front": [own],
        "constraints": json.loads(tags.get(CONSTRAINTS, "[]")),
        "rule": tags.get(RULE, "nearest_to_ideal"),
        "policy": policy,
    }
    verdict = _move_alias(client, name, version, request)
    _follow(client, name)
    return verdict


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
        _follow(client, name)
        return Verdict(True, told.removesuffix("; "))
    before = None if current is None else _before(client, name, str(current.version))
    if current is None or before is None:
        raise UserError(f"{name} has had no champion before {'this one' if current else 'that is still there'}")
    kept = [version for version in champions(client, name) if version != str(current.version)]
    client.set_registered_model_tag(name, CHAMPIONS, json.dumps(kept))
    client.set_registered_model_alias(name, CHAMPION, before.version)
    _follow(client, name)
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


def client_of(name: str, uri: str) -> Any:
    """MLflow's client for an address that answers and has this model. Raises UserError for one that does not."""
    if uri.startswith("sqlite:///") and not os.path.exists(uri.removeprefix("sqlite:///")):
        raise UserError(
            f"there is no MLflow database {uri.removeprefix('sqlite:///')}; "
            "run a study here first, or give --tracking-uri"
        )
    try:
        client = mlflow_client(uri)
        client.get_registered_model(name)
    except Exception as error:
        if getattr(error, "error_code", "") not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            check_answers(uri, "the MLflow server")  # in our words, where nothing answers at all
            reason = redact(next(iter(str(error).splitlines()), type(error).__name__))
            raise UserError(f"the MLflow server {without_userinfo(uri)} refuses: {reason}") from None
        names = sorted(model.name for model in client.search_registered_models(max_results=MOST_LISTED))
        more = " and more" if len(names) == MOST_LISTED else ""
        known, where, hint = ", ".join(names) or "none", without_userinfo(uri), did_you_mean(name, names)
        text = f"there is no registered model {name!r} at {where}; it has {known}{more}"
        raise UserError(f"{text}.{hint}" if hint else text) from None
    return client


def version_of(client: Any, name: str, alias_or_version: str | int | None) -> Any:
    """The version of a model by its number or an alias, the newest one for None. Raises UserError for none."""
    from mlflow.exceptions import MlflowException

    if alias_or_version is None:
        found = client.search_model_versions(f"name = '{name}'")
        if not found:
            raise UserError(f"the registered model {name!r} has no versions")
        return max(found, key=lambda version: int(version.version))
    alias_or_version = str(alias_or_version)
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
    trial: str = version.tags.get(TRIAL, "")
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


class NoPartner(UserError):
    """An encoder or a decoder was registered without the other."""


def name_and_version(reference: str) -> tuple[str, str]:
    """The model of a reference, and the alias or number of its version. Raises UserError for half a reference."""
    mark = next((mark for mark in "@/" if mark in reference), None)
    if mark is None:
        return reference, CHAMPION
    name, _, which = reference.partition("@") if mark == "@" else reference.rpartition("/")
    if not name or not which:
        what = "the name of a model" if not name else "an alias" if mark == "@" else "a version"
        raise UserError(f"{reference!r} lacks {what}; give NAME, NAME@ALIAS or NAME/VERSION")
    return name, which


def load(name: str, uri: str, alias_or_version: str | int = CHAMPION, *, encoder: bool = False) -> Published:
    """The registered decoder of this name, and on request the encoder of the same trial; the encoder's name does too.

    Raises UserError when server, model, alias or version are missing.
    """
    quiet_mlflow()
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")  # our models need no pickle
    import mlflow

    client = client_of(name, uri)
    version = version_of(client, name, alias_or_version)
    if "prior" not in version.tags:
        raise UserError(
            f"version {version.version} of {name!r} says nothing about its prior; it was not registered by aae_ray"
        )
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    networks: dict[str, nn.Module] = {}
    about = dict(version.tags)
    for kind in (DECODER, ENCODER) if encoder else (DECODER,):
        own = _partner(client, version, kind)
        reference = f"models:/{own.name}/{own.version}"
        try:
            local = mlflow.artifacts.download_artifacts(reference)
            networks[kind] = mlflow.pytorch.load_model(local)
            about = (mlflow.models.get_model_info(local).metadata or {}) | about
        except Exception as error:
            raise UserError(f"{reference} cannot be loaded: {_first_line(error)}") from None
    return published(name, str(version.version), networks, about)


def _partner(client: Any, version: Any, kind: str) -> Any:
    """The version of this kind that is of the same trial. Raises UserError where there is none."""
    own = ENCODER if version.name.endswith(f"-{ENCODER}") else DECODER
    if kind == own:
        return version
    names = (encoder_name(version.name),) if kind == ENCODER else decoder_names(version.name)
    for name in names:
        known = client.search_registered_models(f"name = '{name}'")
        if known and (found := version_of_trial(client, name, version.tags.get(TRIAL))):
            return found
    raise NoPartner(
        f"{version.name} version {version.version} has no {kind} beside it: it was registered alone, by an earlier "
        "release or another program; run its study again, or name a checkpoint of it"
    )


def load_exported(folder: Path, *, encoder: bool = False) -> Published:
    """A decoder, and on request its encoder, from the folders that a study has exported them to: either's folder will
    do. Raises UserError where they are not there, or not ours."""
    quiet_mlflow()
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    import mlflow

    networks: dict[str, nn.Module] = {}
    about: dict[str, Any] = {}
    for kind in (DECODER, ENCODER) if encoder else (DECODER,):
        own = folder.resolve().parent.parent / kind / folder.resolve().name
        if not (own / "MLmodel").exists():
            raise NoPartner(
                f"{folder} has no {kind} beside it: there is no {own}; run its study again, or name a checkpoint"
            )
        try:
            networks[kind] = mlflow.pytorch.load_model(str(own))
            about |= mlflow.models.get_model_info(str(own)).metadata or {}
        except Exception as error:
            raise UserError(f"{own} cannot be loaded: {_first_line(error)}") from None
    if "prior" not in about:
        raise UserError(f"{folder} says nothing about its prior; it was not exported by aae_ray")
    return published(str(folder), "", networks, about)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def published(name: str, version: str, networks: Mapping[str, nn.Module], about: Mapping[str, Any]) -> Published:
    """A loaded model, by what its tags and metadata say of it."""
    components = int(about.get("prior_components", 10))
    return Published(
        name=name,
        version=version,
        decoder=networks[DECODER],
        encoder=networks.get(ENCODER),
        task=about.get("task", "unsupervised"),
        prior=Prior(about["prior"], int(about["latent_dim"]), float(about["prior_scale"]), components),
        label_shares_K=_label_shares(int(about.get("classes", 0)), about.get("label_shares", "")),
        data_digest=about.get("data.digest", ""),
        split=about.get(SPLIT_DIGEST, ""),
        kind=_kind(about.get("image_shape", ""), json.loads(about.get(ROWS, "null"))),
        settings={key: value for key, value in about.items() if key in dotted_fields()},
        class_names=tuple(json.loads(about.get(CLASS_NAMES, "[]"))),
        value_range=None if (ends := json.loads(about.get(VALUE_RANGE, "null"))) is None else (ends[0], ends[1]),
        reconstruction_mse=float(about[RECONSTRUCTION]) if RECONSTRUCTION in about else None,
    )


def _kind(image_shape: str, rows: Mapping[str, Any] | None) -> ExampleKind | None:
    """What a version's tags and metadata say of the examples that it was trained on; None where they say nothing."""
    return recorded_kind([int(side) for side in image_shape.split("x")], rows) if image_shape else None


def _label_shares(classes: int, recorded: str) -> Tensor | None:
    """p(y) as a version's tags have it: by its shares, or by the number of classes alone where it is uniform."""
    if recorded:
        return torch.tensor([float(share) for share in recorded.split(",")], dtype=torch.float64)
    return uniform_shares(classes) if classes else None
