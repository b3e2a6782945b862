"""What a run is: one frozen, typed, strict tree, with one dotted spelling of every key.

`optim.discrimination_lr` is written so in a YAML file, on the command line, in Optuna, in MLflow and in the code that
builds the optimizer. Files and command lines are read in `reading`.
"""

import functools
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    model_validator,
)
from pydantic.fields import FieldInfo

from aae_ray.errors import Kind, Problem, SettingsError, unknown_key

# ------------------------------------------------------------------------------------------------------- value types

MAX_SIDE = 4096  # pixels of an image's side: more is damaged, or would ask for all memory


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected a number, got true or false")
    return value


def _widths(value: Any) -> Any:
    """`256`, `"128-64"` and `[128, 64]` all name the widths of hidden layers."""
    if isinstance(value, str) and re.fullmatch(r"\d+(-\d+)*", value):
        return tuple(int(width) for width in value.split("-"))
    if isinstance(value, str):
        raise ValueError("expected widths such as 128-64")
    return (value,) if isinstance(value, int) and not isinstance(value, bool) else value


def _seconds(value: Any) -> Any:
    """`90`, `90s`, `10m`, `2h` and `1h30m` are durations."""
    if isinstance(value, str) and value and re.fullmatch(r"(\d+h)?(\d+m)?(\d+s)?", value):
        units = {"h": 3600, "m": 60, "s": 1}
        return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([hms])", value))
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        written = _as_duration(value)
        hint = f"; {value.strip()} is written {written}" if written else ""
        raise ValueError(f"expected a number of seconds, or a duration such as 90s, 10m or 2h{hint}") from None


def _as_duration(text: str) -> str | None:
    """A duration in words, such as `2 minutes` or `1.5 h`, as a setting has it; None for anything else."""
    units = {"d": 86400, "h": 3600, "m": 60, "s": 1}
    part = r"(\d+(?:\.\d+)?)\s*(d|h|m|s)(?:ays?|ours?|rs?|in(?:ute)?s?|ec(?:ond)?s?)?\b[\s,]*"
    if not re.fullmatch(f"\\s*(?:{part})+", text, re.IGNORECASE):
        return None
    found = re.findall(part, text, re.IGNORECASE)
    minutes, seconds = divmod(round(sum(float(number) * units[unit.lower()] for number, unit in found)), 60)
    shown = zip((*divmod(minutes, 60), seconds), "hms", strict=True)
    return "".join(f"{amount}{unit}" for amount, unit in shown if amount)


def _name(value: str) -> str:
    """A part of the names of folders, runs, experiments and models, in all of which it must be the same."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", value):
        raise ValueError(
            "expected letters, digits, dots, dashes and underscores, at most 100 of them, and neither a dot nor a dash "
            "first"
        )
    return value


def _model_name(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"(?! )[A-Za-z0-9_][A-Za-z0-9._ -]{0,199}(?<! )", value):
        raise ValueError(
            "expected letters, digits, dots, dashes, underscores and spaces between them, at most 200 in all, and "
            "neither a dot nor a dash first"
        )
    return value


def _experiment(value: str | None) -> str | None:
    if value is not None and (not value.strip() or len(value) > 500 or not value.isprintable()):
        raise ValueError("expected a line of text, of 1 to 500 letters")
    return value


def _folder(value: str) -> str:
    """A path, or a URI of a file system that there is."""
    scheme, remote, rest = value.partition("://")
    if remote and scheme not in FILE_SYSTEMS:
        raise ValueError(f"expected a folder, or a URI that begins with one of {', '.join(FILE_SYSTEMS)}")
    if not value.strip() or (remote and not rest.strip("/")):
        raise ValueError("expected a folder, or a URI such as s3://BUCKET/studies")
    if not remote and (not value.isprintable() or any(len(os.fsencode(part)) > 255 for part in value.split("/"))):
        raise ValueError("expected a path that can be printed, no part of which is longer than 255 bytes")
    return value


def _fractions(value: Any) -> Any:
    """`0.5,0.8`, as a list is recorded, is a list."""
    if isinstance(value, str) and re.fullmatch(r"[\d.,eE+-]*", value):
        return tuple(part for part in value.split(",") if part)
    if isinstance(value, str):
        raise ValueError("expected a list such as [0.5, 0.8]")
    return (value,) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _label_prior(value: Any) -> str | tuple[float, ...]:
    """`uniform`, `labels`, or shares such as [0.5, 0.3, 0.2], also as they are recorded."""
    if value in ("uniform", "labels"):
        return str(value)
    try:
        shares = tuple(float(_not_bool(share)) for share in _fractions(value))
    except (TypeError, ValueError):
        shares = ()
    if len(shares) < 2 or not all(0 < share < math.inf for share in shares):
        raise ValueError("expected uniform, labels, or a list of two or more shares above 0, such as [0.5, 0.3, 0.2]")
    return shares


def _names(value: Any) -> Any:
    """One name, or several joined by commas as a list is recorded, is a list."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _columns(value: Any) -> Any:
    """`a,b`, or a list, also as it is recorded: in JSON, where a name has a comma."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError('expected names of columns such as a,b, or a list such as ["a", "b, c"]') from None
    names = _names(value)
    if isinstance(names, list | tuple) and len(set(names)) < len(names):
        raise ValueError("expected each column once")
    return names


def _scale(value: Any) -> str:
    """`-1:1`, the values that become black and white, or `observed`."""
    low, colon, high = str(value).partition(":")
    try:
        ends = (float(low), float(high)) if colon else (0.0, 0.0)
    except ValueError:
        ends = (0.0, 0.0)
    if value == "observed":
        return "observed"
    if ends[0] == ends[1] or not all(map(math.isfinite, ends)):
        raise ValueError("expected LOW:HIGH, the values that become black and white, such as 0:16, or observed")
    return f"{low}:{high}"


def _size(value: Any) -> str:
    """`32` and `32x32` are the same height and width."""
    match = re.fullmatch(r"(\d{1,4})(?: ?x ?(\d{1,4}))?", str(value))
    sides = [int(side) for side in match.groups(default=match[1])] if match else []
    if not sides or not all(1 <= side <= MAX_SIDE for side in sides):
        raise ValueError(f"expected HEIGHTxWIDTH in pixels such as 32x24, or one side of a square, at most {MAX_SIDE}")
    return "x".join(map(str, sides))


def _colour(value: Any) -> str:
    """A name of CSS, or #rrggbb."""
    from PIL import ImageColor

    try:
        levels = len(ImageColor.getrgb(value))
    except (AttributeError, TypeError, ValueError):
        levels = 0
    if levels != 3:
        raise ValueError("expected a colour such as white, black or '#ff8000' (in quotes: # begins a comment)")
    return str(value)


def _channels(value: int) -> int:
    if value not in (1, 3):
        raise ValueError("expected 1 (grey) or 3 (colour)")
    return value


def _constraint(value: str) -> str:
    """`val/jsd_nats<=0.1` as `val/jsd_nats <= 0.1`: a metric, its side and a finite bound, each a word."""
    metric, side, bound = (
        (part.strip() for part in re.split("(<=|>=)", value, maxsplit=1)) if "=" in value else [""] * 3
    )
    try:
        finite = math.isfinite(float(bound))
    except ValueError:
        finite = False
    if not finite or not metric or " " in metric:
        raise ValueError("expected a metric, <= or >=, and a number, such as val/reconstruction_mse <= 0.03")
    return f"{metric} {side} {bound}"


FILE_SYSTEMS = ("file", "s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss")  # of pyarrow

Int = Annotated[int, BeforeValidator(_not_bool)]
Float = Annotated[float, BeforeValidator(_not_bool), Field(allow_inf_nan=False)]
Positive = Annotated[Int, Field(ge=1)]
Rate = Annotated[Float, Field(gt=0, le=10)]
Momentum = Annotated[Float, Field(ge=0, lt=1)]
Fraction = Annotated[Float, Field(ge=0, lt=1)]
Widths = Annotated[tuple[Positive, ...], BeforeValidator(_widths), Field(min_length=1, max_length=8)]
OptionalRate = Annotated[Float, Field(ge=0, le=10)]
Milestones = Annotated[tuple[Annotated[Float, Field(gt=0, lt=1)], ...], BeforeValidator(_fractions)]
LabelPrior = Annotated[str | tuple[float, ...], PlainValidator(_label_prior)]
Names = Annotated[tuple[str, ...], BeforeValidator(_names), Field(min_length=1)]
Columns = Annotated[tuple[str, ...], BeforeValidator(_columns), Field(min_length=1)]
MaybeNames = Annotated[tuple[str, ...], BeforeValidator(_names)]
Constraints = Annotated[tuple[Annotated[str, AfterValidator(_constraint)], ...], BeforeValidator(_names)]
Duration = Annotated[Float, BeforeValidator(_seconds), Field(gt=0)]
PixelScale = Annotated[str, PlainValidator(_scale)]
Size = Annotated[str, PlainValidator(_size)]
Colour = Annotated[str, PlainValidator(_colour)]
Channels = Annotated[Int, AfterValidator(_channels)]

PriorName = Literal["gaussian", "uniform", "mixture", "swiss_roll"]
PosteriorName = Literal["deterministic", "gaussian", "universal"]
TaskName = Literal[
    "unsupervised",
    "label_informed",
    "supervised",
    "semi_supervised",
    "clustering",
    "reduction",
    "semi_supervised_reduction",
    "vae",
    "wae_mmd",
]


# What may change while the weights stay: rates, momenta, noise and weights of losses.
CHANGES_UNDER_WAY = (
    "optim.reconstruction_lr",
    "optim.discrimination_lr",
    "optim.regularization_lr",
    "optim.classification_lr",
    "optim.reencoding_lr",
    "optim.reconstruction_momentum",
    "optim.adversarial_momentum",
    "optim.classification_momentum",
    "optim.beta2",
    "model.decoder_std",
    "train.input_noise",
    "train.input_dropout",
    "train.input_warp",
    "train.style_noise",
    "train.label_noise",
    "train.r1_penalty",
    "train.mmd_weight",
)


class Section(BaseModel):
    """A part of the tree: unknown keys are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


# --------------------------------------------------------------------------------------------------------- the tree


class Data(Section):
    name: Annotated[str, AfterValidator(_name)] = Field(
        "digits",
        description="digits, a published set (mnist, fashion-mnist, kmnist, emnist-letters, svhn, cifar10, ...), or a "
        "name for your own",
    )
    path: str | None = Field(
        None,
        description="file or folder of images: Parquet, pictures in a folder for each class, NumPy (.npy, .npz), IDX, "
        "or what Hugging Face's save_to_disk wrote; or of rows of numbers: CSV or Parquet; or files of a published "
        "set, which are downloaded when not given. Parquet may be at a URI, such as s3://BUCKET/faces",
    )
    kind: Literal["auto", "images", "rows"] = Field(
        "auto",
        description="what a table (CSV, Parquet, a saved Hugging Face dataset) holds: images; rows of numbers, a "
        "column each, which are standardised; auto: images where it has a column of them, or columns pixel0, pixel1, "
        "..., and rows where all its columns but label and split are numbers",
    )
    columns: Columns | None = Field(
        None, description="columns of rows of numbers, in this order; all that hold numbers when not given"
    )
    image_column: str | None = Field(
        None, description="column or array of images; found by its type or name when not given"
    )
    label_column: str | None = Field(
        None,
        description="column or array of labels; `label` is taken if it is there (of arrays also `y` and the like), and "
        "with none no column",
    )
    scale: PixelScale | None = Field(
        None,
        description="LOW:HIGH, the pixel values that become black and white, such as 0:16, -1:1 or 255:0 (inverted), "
        "or observed, the lowest and the highest of the set; when not given, whole numbers are 0:255, fractions 0:1 "
        "and pictures as they are shown",
    )
    background: Colour | None = Field(
        None, description="colour such as white or '#ff8000' that shows through where a picture is transparent"
    )
    channels: Channels | None = Field(
        None, description="1: colour becomes grey (ITU-R 601); 3: grey becomes colour; as they are when not given"
    )
    size: Size | None = Field(
        None, description="HEIGHTxWIDTH, or one side of a square, to which images are resized; none when not given"
    )
    crop: Literal["center", "none"] = Field(
        "center",
        description="of images that are not of the proportions of data.size: center cuts what sticks out, evenly on "
        "both sides; none stretches the whole image",
    )
    resample: Literal["lanczos", "area", "bicubic", "bilinear", "nearest"] = Field(
        "lanczos", description="filter of data.size; all but nearest average over what an output pixel covers"
    )
    transpose: bool | None = Field(
        None, description="whether rows and columns of the images change places, as EMNIST's files need it"
    )
    split_column: str | None = Field(
        None,
        description="Parquet column of words such as train, validation and test, which give the parts; `split` is "
        "taken if it is there, and with none no column",
    )
    test_path: str | None = Field(
        None, description="images of the test part, stored like those of `data.path`, which then gives the others"
    )
    cache: str | None = Field(None, description="folder of prepared data; ~/.cache/aae_ray when not given")
    shared: Annotated[str, AfterValidator(_folder)] | None = Field(
        None,
        description="URI, or folder that all nodes see, where the first one puts prepared data and the others fetch "
        "them; when data.path and study.folder are URIs, `data` below study.folder",
    )
    split_seed: Int = Field(0, ge=0, description="which images are for training, validation and test")
    validation_fraction: Fraction = Field(0.2, gt=0, description="share of the images that is held out for validation")
    test_fraction: Fraction = Field(
        0.2,
        gt=0,
        description="share held out for the test; not used where a set brings its own, but counted: with the share for "
        "validation it must leave images to train on",
    )
    labels: Float | None = Field(
        None,
        gt=0,
        description="labels that training knows, drawn by `seed`: a number, or a fraction of the training images below "
        "1; all when not given",
    )
    labels_drawn: Literal["evenly", "in_proportion"] = Field(
        "evenly",
        description="how many of `data.labels` each class has: as many as the others, or in proportion to its share of "
        "the training images, but one at least",
    )

    @property
    def scale_ends(self) -> tuple[float, float] | None:
        """The values that become black and white; None where they are not given or those of the set."""
        if self.scale in (None, "observed"):
            return None
        low, _, high = str(self.scale).partition(":")
        return float(low), float(high)

    @property
    def size_HW(self) -> tuple[int, int] | None:
        """Height and width to which images are resized."""
        if self.size is None:
            return None
        height, _, width = self.size.partition("x")
        return int(height), int(width)


class Model(Section):
    network: Literal["dense", "convolutional"] = Field("dense", description="kind of encoder and decoder")
    hidden: Widths = Field(
        (128, 64),
        description="widths of the encoder's hidden layers, e.g. 128-64, which the decoder mirrors; a convolutional "
        "network has one dense layer, of the last width",
    )
    channels: Widths = Field(
        (32, 64), description="channels of the convolutional layers, each of which halves the image"
    )
    discriminator_hidden: Widths = Field((128, 128), description="widths of the discriminator's hidden layers")
    discriminator_slope: Float = Field(
        0.0, ge=0, lt=1, description="slope of the discriminator's rectifiers below zero, such as 0.2; 0: plain ReLU"
    )
    discriminator_spectral_norm: bool = Field(
        False, description="whether the largest singular value of each of the discriminator's layers is held at one"
    )
    latent_dim: Int = Field(8, ge=2, le=4096, description="size of the code z")
    prior: PriorName = Field("gaussian", description="p(z), the distribution imposed on the codes")
    prior_scale: Float = Field(
        1.0, gt=0, description="standard deviation of the Gaussian; multiplies the geometry of the others"
    )
    prior_components: Int = Field(
        10, ge=2, le=1000, description="Gaussians of the mixture, and segments of the swiss roll that a label selects"
    )
    label_prior: LabelPrior = Field(
        "uniform",
        description="p(y), the distribution imposed on classes or clusters: uniform, as in the paper; labels, the "
        "classes' shares among the labels that training knows (uniform too where `data.labels` are drawn evenly); or "
        "shares such as [0.5, 0.3, 0.2], of which the sum does not matter",
    )
    posterior: PosteriorName = Field("deterministic", description="q(z|x)")
    noise_dim: Positive | None = Field(
        None, description="noise inputs of the universal approximator; the latent size when not given"
    )
    posterior_std_floor: Float = Field(
        0.0,
        ge=0,
        le=100,
        description="least standard deviation of the Gaussian posterior, in units of the code; 0: none",
    )
    clusters: Int = Field(16, ge=2, le=10_000, description="clusters of the tasks clustering and reduction")
    head_distance: Float = Field(
        5.0, gt=0, description="distance below which two cluster heads of a reduction repel each other"
    )
    initialization: Literal["pytorch", "normal"] = Field(
        "pytorch", description="normal: N(0, 0.01^2) weights, zero biases (the paper)"
    )
    normalization: Literal["none", "batch", "layer"] = Field(
        "none",
        description="of the encoder's hidden layers: batch, over the images of a phase's batch, as in the paper's "
        "clustering; layer, within each image",
    )
    decoder_std: Float = Field(
        1.0, gt=0, description="standard deviation of the VAE's p(x|z): weighs reconstruction against KL"
    )
    output: Literal["sigmoid", "linear"] = Field(
        "sigmoid",
        description="last layer of the decoder of images, with pixels in [0, 1]; that of rows of numbers is linear",
    )


class Optim(Section):
    algorithm: Literal["adam", "sgd"] = Field("adam", description="sgd has momentum, as in the paper")
    reconstruction_lr: Rate = Field(
        1e-3, description="learning rate of the phases reconstruct, negative_elbo (the VAE's) and wae_mmd"
    )
    discrimination_lr: Rate = Field(2e-4, description="learning rate of the phase discriminate")
    regularization_lr: Rate = Field(2e-4, description="learning rate of the phase regularize")
    classification_lr: Rate = Field(1e-3, description="learning rate of the phase classify")
    reencoding_lr: OptionalRate = Field(
        0.0,
        description="learning rate of the phase reencode, in which the encoder finds the draws of p(y)p(z) behind "
        "decoded images; 0: there is no such phase",
    )
    reconstruction_momentum: Momentum = Field(
        0.9, description="SGD's momentum or Adam's beta1, of the same phases and of reencode"
    )
    adversarial_momentum: Momentum = Field(
        0.5, description="the same, phases discriminate and regularize; the paper has 0.1"
    )
    classification_momentum: Momentum = Field(0.9, description="the same, phase classify")
    beta2: Momentum = Field(0.999, description="Adam's second decay")
    lr_milestones: Milestones = Field((), description="fractions of train.epochs at which every rate drops")
    lr_decay: Float = Field(0.1, gt=0, le=1, description="factor of each drop")


class Train(Section):
    epochs: Positive = Field(27, description="the budget of one trial")
    batch_size: Positive = Field(100, description="images per step over all workers")
    labelled_batch_size: Positive = Field(
        100, description="labelled images per step of the phase classify; all of them where there are fewer"
    )
    input_noise: Float = Field(0.0, ge=0, le=10, description="standard deviation of noise on the encoder's images")
    input_dropout: Fraction = Field(0.0, description="share of the encoder's pixels that are dropped")
    input_warp: Float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="how far the encoder's images are turned, sheared, scaled and moved at random: standard deviation "
        "of each entry of an affine map, lengths in half sides; they are reconstructed as they were",
    )
    style_noise: Float = Field(
        0.0, ge=0, description="standard deviation of noise on what the style discriminator sees, codes and prior alike"
    )
    label_noise: Float = Field(0.0, ge=0, description="the same for the label discriminator")
    reconstruction_reduction: Literal["half_sum", "sum", "mean"] = Field(
        "half_sum",
        description="half the squared error summed over pixels; sum; or mean over pixels; averaged over the batch",
    )
    adversarial_loss: Literal["non_saturating", "minimax"] = Field(
        "non_saturating", description="what the encoder minimises to fool the discriminator"
    )
    discriminator_steps: Int = Field(
        1,
        ge=1,
        le=100,
        description="steps of the phase discriminate for each of the others, on the same images and new draws",
    )
    r1_penalty: Float = Field(
        0.0,
        ge=0,
        description="weight of half the squared gradient of the discriminator's logits at draws of the prior; 0: none",
    )
    ema_decay: Fraction = Field(
        0.0,
        description="decay of an exponential moving average of the weights, step by step, which is what is measured "
        "and published; 0: the weights themselves are",
    )
    mmd_weight: Float = Field(
        10.0, gt=0, description="weight of the squared maximum mean discrepancy in the task wae_mmd"
    )
    dtype: Literal["float32", "float64"] = Field("float32", description="precision of the mathematics")
    mixed_precision: bool = Field(
        False, description="products in bfloat16 while training, weights and losses as train.dtype says"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: the GPU that the worker was given, else the CPU"
    )


class Health(Section):
    stop: bool = Field(
        True, description="whether an unhealthy trial is ended, with a named reason; a diverged one always is"
    )
    grace_fraction: Fraction = Field(0.3, description="share of train.epochs before which only divergence ends a trial")
    patience: Positive = Field(3, description="epochs in a row for which an unhealthy sign must show")
    saturated_loss_nats: Float = Field(
        0.01,
        ge=0,
        description="discriminator loss below which it is saturated: codes and prior told apart with ease",
    )
    dead_logit_std: Float = Field(1e-4, ge=0, description="spread of a discriminator's logits below which it is dead")
    collapsed_code_std: Float = Field(
        0.01,
        ge=0,
        description="spread of the codes, in prior standard deviations, below which they have collapsed",
    )
    collapsed_clusters_nats: Float = Field(
        0.69,
        ge=0,
        description="entropy of the clusters' sizes below which they have collapsed: less than two of equal size have; "
        "or half the entropy of p(y), where that is less",
    )


class Tracking(Section):
    uri: str | None = Field(
        None,
        description="MLflow server or database; MLFLOW_TRACKING_URI or sqlite:///mlflow.db when not given",
    )
    experiment: Annotated[str | None, AfterValidator(_experiment)] = Field(
        None, description="MLflow experiment; aae/<data> when not given"
    )
    register_model: bool = Field(True, description="whether the best decoder is registered when the study ends")
    promotion: Literal["evidence", "better", "never"] | None = Field(
        None,
        description="when a decoder becomes the champion of its name. evidence: on new seeds of both it is better by "
        "study.select, by more than two standard errors; better: by its one measurement; never: by hand alone. "
        "evidence where study.confirm.finalists are confirmed, else better, when not given",
    )
    model_name: Annotated[str | None, AfterValidator(_model_name)] = Field(
        None,
        description="registered decoder, aae-<data>-decoder when not given; its encoder follows its name",
    )


class Budget(Section):
    trials: Positive = Field(24, description="configurations in all; further seeds of them are trials beside these")
    wall_clock: Duration | None = Field(
        None, description="such as 90s, 10m or 2h, from the start of the first trial; no limit when not given"
    )
    worker_hours: Float | None = Field(
        None, gt=0, description="hours of all workers together (GPU-hours on GPUs); no limit when not given"
    )
    failures_in_a_row: Positive = Field(5, description="the study stops after this many failed trials in a row")


class Sampler(Section):
    type: Literal["tpe", "gp", "nsga2", "random", "qmc", "grid"] = Field(
        "tpe",
        description="tpe and nsga2 learn from every trial, gp (constrained log-EHVI) from complete ones alone; qmc: a "
        "sequence that fills the space evenly; grid: every point of the space once",
    )
    seed: Int = Field(0, ge=0, lt=2**32, description="its seed")
    n_startup_trials: Positive = Field(
        10, description="ended trials (of gp: complete ones) before which it draws at random"
    )
    n_ei_candidates: Positive = Field(24, description="draws of which tpe takes the best one")
    gamma: Float = Field(
        0.1,
        gt=0,
        description="trials that tpe takes for good: their number, or a fraction below 1 of those that ended",
    )
    multivariate: bool = Field(False, description="whether tpe draws all parameters together")
    group: bool = Field(False, description="... those together that occur together, where the space has conditions")
    constant_liar: bool = Field(True, description="whether tpe keeps away from the trials that are under way")
    population_size: Annotated[Int, Field(ge=2)] | None = Field(
        None, description="of nsga2; a fifth of study.budget.trials, and at most 50, when not given"
    )
    qmc_type: Literal["sobol", "halton"] = Field("sobol", description="sequence of qmc")
    scramble: bool = Field(True, description="whether study.sampler.seed moves the sequence's points")


class Pruner(Section):
    type: Literal["asha", "median", "pbt", "none"] = Field(
        "asha",
        description="what becomes of trials that are behind at a rung: asha pauses them until later results put them "
        "ahead; median stops those that are behind half of the others; in pbt they take over weights and settings of "
        "better ones, some of these settings changed",
    )
    grace_period: Positive = Field(3, description="first rung, in epochs; of pbt the distance of all rungs")
    reduction_factor: Int = Field(
        3, ge=2, description="each rung is this many times the one before and keeps one in as many trials"
    )
    quantile: Float = Field(
        0.25, gt=0, le=0.5, description="of pbt: share of the trials that take over from others, and of their donors"
    )
    mutation_factor: Float = Field(1.25, gt=1, description="of pbt: by which settings are multiplied or divided")
    mutate: MaybeNames = Field(
        (), description="of pbt: searched settings that change; all that may change under way when not given"
    )
    metric: str = Field("front", description="front: non-dominated rank over all objectives; or the name of one metric")


class Confirm(Section):
    finalists: Int = Field(
        0, ge=0, description="best trials of the front that are trained again when the search is over; 0: none"
    )
    seeds: Int = Field(
        3, ge=2, description="new seeds of each, of which mean and standard error are the evidence for a promotion"
    )


class Cluster(Section):
    on_demand_after: Duration | None = Field(
        600,
        description="where work has waited this long and no machine on spot has come, machines on demand are asked "
        "for, in a cluster whose file has both; spot is waited for for ever when not given",
    )


class StudySettings(Section):
    """What a study is, beside what each of its trials is."""

    name: Annotated[str, AfterValidator(_name)] = Field(
        "study",
        description="prefix of the study's folder and MLflow run",
    )
    objectives: Names = Field(
        ("val/reconstruction_mse", "val/jsd_nats"),
        description="metrics to optimise; the table of metrics knows the directions",
    )
    constraints: Constraints = Field(
        (), description="such as [val/reconstruction_mse <= 0.03]: who violates one is worse than all who do not"
    )
    budget: Budget = Budget()
    sampler: Sampler = Sampler()
    pruner: Pruner = Pruner()
    seeds_per_trial: Positive = Field(
        1,
        description="seeds with which a configuration is trained where they can change the verdict, each a trial of "
        "its own beyond study.budget.trials; its objectives are the means over them",
    )
    seeds_from_rung: Positive | None = Field(
        None,
        description="epoch of the rung from which on further seeds are trained, with study.pruner.type asha; when not "
        "given they begin with configurations that were trained to their end",
    )
    confirm: Confirm = Confirm()
    cluster: Cluster = Cluster()
    workers_per_trial: Positive = Field(1, description="data-parallel workers of a gang")
    resources_per_worker: dict[str, Annotated[Float, Field(gt=0)]] = Field(
        {"CPU": 1}, min_length=1, description="Ray resources of one worker, e.g. {GPU: 1, CPU: 4}"
    )
    concurrent_trials: Positive | None = Field(
        None, description="gangs at a time; as many as the cluster holds when not given"
    )
    folder: Annotated[str, AfterValidator(_folder)] = Field(
        "runs",
        description="where studies keep their state: a folder that all nodes see, or a URI such as s3://BUCKET/studies",
    )
    max_failures: Int = Field(2, ge=0, description="times a trial is retried from its checkpoint when a worker dies")
    max_preemptions: Int = Field(
        20, ge=0, description="... and times when its machine is taken away, or lost, which count by themselves"
    )
    price_per_worker_hour: Float | None = Field(
        None, gt=0, description="what a worker costs an hour, in your currency: hours are told with their cost as well"
    )
    start_timeout: Duration = Field(
        600, description="after this long without its workers a gang counts as one that cannot start"
    )
    capacity_timeout: Duration = Field(
        1800,
        description="the study stops after this long without a machine for any gang; until then it waits for those "
        "that are being started, or come back",
    )
    step_timeout: Duration = Field(1800, description="after this long without an answer a gang counts as hung")
    keep: Literal["front", "best", "all"] = Field(
        "front",
        description="checkpoints that stay when trials have ended. front: those of the front, and of paused trials, "
        "with which an extension can go on; best: when the study has ended, that of the best trial alone; all",
    )
    finalists: Literal["best", "front", "all"] = Field(
        "front", description="trials that are measured on the test images when the study ends"
    )
    select: str = Field(
        "nearest_to_ideal",
        description="rule that picks the best trial of the front: nearest_to_ideal, each objective scaled by its best "
        "and worst; first_objective; hypervolume, what a trial adds to the front; or the name of a metric",
    )

    @property
    def bounds(self) -> tuple[tuple[str, str, float], ...]:
        """Metric, side and bound of each constraint."""
        parts = (text.split() for text in self.constraints)
        return tuple((metric, side, float(bound)) for metric, side, bound in parts)

    @property
    def deciding_metrics(self) -> tuple[str, ...]:
        """Those that decide what becomes of trials: objectives, the pruner's, the choice's, those of constraints."""
        named = (name for name in (self.pruner.metric, self.select) if "/" in name)  # a rule's name has none
        return (*self.objectives, *named, *(metric for metric, _, _ in self.bounds))


class RunSettings(Section):
    """What a trial is: all that its weights depend on, and all that the mathematics and the training see.

    Defaults stand here and nowhere else.
    """

    seed: Int = Field(0, ge=0, lt=2**32, description="initial weights, batch order and noise")
    task: TaskName = Field(
        "unsupervised",
        description="the adversarial autoencoder of the paper's section 2 and its variants; vae: the baseline",
    )
    data: Data = Data()
    model: Model = Model()
    optim: Optim = Optim()
    train: Train = Train()
    health: Health = Health()


class Settings(RunSettings):
    """One file of the user: what its trials share, where they are recorded, and what the study is."""

    tracking: Tracking = Tracking()
    study: StudySettings = StudySettings()

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """Where workers train: on a GPU if they have one, and are not kept from it."""
        return "cpu" if self.train.device == "cpu" or "GPU" not in self.study.resources_per_worker else "cuda"

    @model_validator(mode="after")
    def _rules_hold(self) -> "Settings":
        if broken := broken_rules(self):
            raise BrokenRules(broken)
        return self


# ------------------------------------------------------------------------------------------------------------- rules


@dataclass(frozen=True)
class Rule:
    """What values of several keys must fulfil together, where each of them is right by itself."""

    keys: tuple[str, ...]  # no two rules have the same
    holds: Callable[..., bool]  # of the values of the keys, in their order
    text: str  # when it is broken; `{prior}` stands for the value of model.prior, which is one of the keys


def _plain_address(folder: str) -> bool:
    """Whether a host or bucket, and a port, is all that stands before the path of a URI. A secret may hold a slash."""
    _, remote, rest = folder.partition("://")
    return not remote or re.match(r"[^@:/?#]*(:\d*)?([/?#]|$)", rest) is not None


def largest_population(trials: int) -> int:
    """The population of nsga2 with which a budget of trials has five generations; two of it are needed at least."""
    return max(trials // 5, 2)


# Settings that not all types take, each with those that do.
SAMPLER_SETTINGS: dict[str, tuple[str, ...]] = {
    "n_startup_trials": ("tpe", "gp"),
    "n_ei_candidates": ("tpe",),
    "gamma": ("tpe",),
    "multivariate": ("tpe",),
    "group": ("tpe",),
    "constant_liar": ("tpe",),
    "population_size": ("nsga2",),
    "qmc_type": ("qmc",),
    "scramble": ("qmc",),
}
PRUNER_SETTINGS: dict[str, tuple[str, ...]] = {
    "reduction_factor": ("asha", "median", "none"),  # with none, trials are still measured in full at the rungs
    "quantile": ("pbt",),
    "mutation_factor": ("pbt",),
    "mutate": ("pbt",),
}


WITHOUT_CONDITIONS = ("gp", "nsga2")  # types that learn only from parameters that all trials have


def _taken(section: type[Section], name: str, types: tuple[str, ...]) -> Rule:
    """A setting of the sampler or pruner has its default where its type does not take it."""
    of = f"study.{section.__name__.lower()}"
    key, kind, default = f"{of}.{name}", f"{of}.type", section.model_fields[name].default
    return Rule(
        (kind, key),
        lambda chosen, value: chosen in types or value == default,
        f"{key} is a setting of {kind} {' and '.join(types)}, and not of {{type}}; remove it, got {{{name}}}",
    )


_WITH_CLASSES = ("supervised", "semi_supervised", "semi_supervised_reduction")
_WITH_CLUSTERS = ("clustering", "reduction")

RULES: tuple[Rule, ...] = (
    Rule(
        ("data.path", "data.test_path"),
        lambda path, test_path: path is not None or test_path is None,
        "data.test_path is the test part of the images in data.path; give that, too, got {test_path}",
    ),
    Rule(
        ("data.kind", "data.columns"),
        lambda kind, columns: kind != "images" or columns is None,
        "data.columns names columns of rows of numbers, and data.kind is images; remove one of them, or name the "
        "column of images with data.image_column",
    ),
    Rule(
        ("data.kind", "data.image_column"),
        lambda kind, column: kind != "rows" or column is None,
        "data.image_column names a column of images, and data.kind is rows; remove one of them, got {image_column}",
    ),
    Rule(
        ("data.columns", "data.image_column"),
        lambda columns, column: columns is None or column is None,
        "data.columns names columns of rows of numbers, and data.image_column one of images; remove one of them, got "
        "{image_column}",
    ),
    Rule(
        ("data.scale", "data.test_path"),
        lambda scale, test_path: scale != "observed" or test_path is None,
        "data.scale=observed takes another black and white from data.test_path than from data.path, and their images "
        "could not be compared; give the values that are black and white in both, data.scale=LOW:HIGH",
    ),
    Rule(
        ("data.validation_fraction", "data.test_fraction"),
        lambda validation, test: validation + test < 1,
        "data.validation_fraction and data.test_fraction leave no images to train on; their sum must be below 1, "
        "got {validation_fraction:g} and {test_fraction:g}",
    ),
    Rule(
        ("data.labels",),
        lambda labels: labels is None or labels < 1 or labels == int(labels),
        "data.labels must be a whole number or a fraction below 1, got {labels:g}",
    ),
    Rule(
        ("data.size", "data.crop"),
        lambda size, crop: size is not None or crop == "center",
        "data.crop is a matter of data.size, which is not given; give it, or remove data.crop",
    ),
    Rule(
        ("data.size", "data.resample"),
        lambda size, resample: size is not None or resample == "lanczos",
        "data.resample is the filter of data.size, which is not given; give it, or remove data.resample",
    ),
    Rule(
        ("task", "model.posterior", "model.prior"),
        lambda task, posterior, prior: task != "vae" or (posterior == "gaussian" and prior in ("gaussian", "mixture")),
        "task vae needs model.posterior gaussian and model.prior gaussian or mixture (its KL term takes their "
        "densities), got {posterior} and {prior}",
    ),
    Rule(
        ("task", "model.prior"),
        lambda task, prior: task != "label_informed" or prior in ("mixture", "swiss_roll"),
        "task label_informed needs model.prior mixture or swiss_roll, whose parts belong to the classes, got {prior}",
    ),
    Rule(
        ("task", "model.clusters", "train.batch_size"),
        lambda task, clusters, batch_size: task not in _WITH_CLUSTERS or clusters <= batch_size,
        "model.clusters is more than train.batch_size can fill: each cluster should have an image in a batch, "
        "got {clusters} and {batch_size}",
    ),
    Rule(
        ("model.normalization", "train.batch_size"),
        lambda normalization, batch_size: normalization != "batch" or batch_size >= 2,
        "model.normalization batch needs a train.batch_size of at least 2, because one image alone does not differ "
        "from its mean, got {batch_size}",
    ),
    Rule(
        ("task", "model.normalization", "train.labelled_batch_size"),
        lambda task, normalization, batch_size: (
            normalization != "batch" or "semi_supervised" not in task or batch_size >= 2
        ),
        "model.normalization batch needs a train.labelled_batch_size of at least 2, because one image alone does not "
        "differ from its mean, got {labelled_batch_size}",
    ),
    Rule(
        ("train.mixed_precision", "train.dtype"),
        lambda mixed, dtype: not mixed or dtype != "float64",
        "train.mixed_precision computes products of float32 in bfloat16 and leaves train.dtype float64 alone; "
        "remove one of them",
    ),
    Rule(
        ("task", "data.labels"),
        lambda task, labels: task != "supervised" or labels is None,
        "task supervised needs the label of every image, and data.labels leaves some out; remove data.labels, "
        "got {labels:g}",
    ),
    Rule(
        ("task", "model.label_prior"),
        lambda task, shares: (
            shares == "uniform" or task in _WITH_CLASSES or (task in _WITH_CLUSTERS and shares != "labels")
        ),
        "task {task} has no labels of which model.label_prior could be the distribution; let it be uniform, "
        "got {label_prior}",
    ),
    Rule(
        ("task", "model.clusters", "model.label_prior"),
        lambda task, clusters, shares: (
            task not in _WITH_CLUSTERS or not isinstance(shares, tuple) or len(shares) == clusters
        ),
        "model.label_prior must have a share for each of model.clusters, got {label_prior} and {clusters}",
    ),
    Rule(
        ("study.folder",),
        _plain_address,
        "study.folder must have no user and no password in its address, as they would be written to the journal; "
        "use the environment's AWS credentials",
    ),
    *(
        Rule(
            (key,),
            lambda address: address is None or _plain_address(address),
            f"{key} must have no user and no password in its address, as they would be written to the journal; use the "
            "environment's AWS credentials",
        )
        for key in ("data.path", "data.test_path", "data.shared")
    ),
    Rule(
        ("study.pruner.type", "study.confirm.finalists"),
        lambda kind, finalists: kind != "pbt" or not finalists,
        "study.pruner.type pbt changes settings under way, so that finalists cannot be trained again alike; "
        "let study.confirm.finalists be 0, got {finalists}",
    ),
    *(_taken(Sampler, name, types) for name, types in SAMPLER_SETTINGS.items()),
    *(_taken(Pruner, name, types) for name, types in PRUNER_SETTINGS.items()),
    Rule(
        ("study.sampler.gamma",),
        lambda gamma: gamma < 1 or gamma == int(gamma),
        "study.sampler.gamma must be a whole number of trials or a fraction below 1, got {gamma:g}",
    ),
    Rule(
        ("study.sampler.type", "study.sampler.multivariate", "study.sampler.group"),
        lambda kind, multivariate, group: kind != "tpe" or multivariate or not group,
        "study.sampler.group needs study.sampler.multivariate; give study.sampler.multivariate=true as well",
    ),
    Rule(
        ("study.sampler.population_size", "study.budget.trials"),
        lambda size, trials: size is None or size <= largest_population(trials),
        "study.sampler.population_size is more than a fifth of study.budget.trials, so that there are too few "
        "generations to learn in, got {population_size} of {trials}",
    ),
)


class BrokenRules(ValueError):
    """Settings that break rules; pydantic makes a ValidationError of it, and keeps this one in its details."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        self.problems = problems
        super().__init__(problems)

    def __str__(self) -> str:
        return "\n".join(problem.text for problem in self.problems)


def broken_rules(settings: "Settings") -> tuple[Problem, ...]:
    """A problem for every rule that these values break."""
    problems = []
    for rule in RULES:
        values = [setting(settings, key) for key in rule.keys]
        if not rule.holds(*values):
            names = (key.rpartition(".")[2] for key in rule.keys)
            text = rule.text.format(**dict(zip(names, values, strict=True)))
            problems.append(Problem(rule.keys, Kind.RULE, "settings", text))
    return tuple(problems)


# ------------------------------------------------------------------------------------------------------- dotted keys


@functools.cache
def dotted_fields(section: type[BaseModel] = Settings, prefix: str = "") -> dict[str, FieldInfo]:
    """Every leaf of the tree under its dotted key, in the order of the tree."""
    fields: dict[str, FieldInfo] = {}
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            fields |= dotted_fields(field.annotation, f"{prefix}{name}.")
        else:
            fields[prefix + name] = field
    return fields


def flatten(settings: RunSettings) -> dict[str, str | int | float | bool | None]:
    """The tree as dotted keys with plain values, as MLflow records it; widths as `128-64`, lists joined by commas."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            if any(isinstance(item, str) and "," in item for item in value):
                return json.dumps(value)
            return ("-" if all(isinstance(item, int) for item in value) else ",").join(map(str, value))
        return ",".join(f"{key}={amount:g}" for key, amount in value.items()) if isinstance(value, dict) else value

    return {key: plain(setting(settings, key)) for key in dotted_fields(type(settings))}


def run_values(settings: Settings) -> dict[str, Any]:
    """What a worker needs to know of a study's settings: a trial's own, and the rungs at which it reports."""
    keys = [*dotted_fields(RunSettings), *(key for key in dotted_fields() if key.startswith("study.pruner."))]
    return {key: setting(settings, key) for key in keys}


def setting(settings: RunSettings, key: str) -> Any:
    """The value under a dotted key."""
    node: Any = settings
    for part in key.split("."):
        node = getattr(node, part)
    return node


def epoch_at(fraction: float, epochs: int) -> int:
    """The first epoch by which this fraction of the budget has passed: 55 for 0.55 of 100, whose product is more."""
    return math.ceil(fraction * epochs - 1e-9)


def replace(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """A copy with these dotted keys changed; the whole tree is checked again."""
    changed = settings.model_dump()
    for key, value in values.items():
        if key not in dotted_fields():
            raise SettingsError([unknown_key(key, dotted_fields(), "settings", "is not a setting")])
        *path, leaf = key.split(".")
        node = changed
        for part in path:
            node = node[part]
        node[leaf] = value
    return Settings.model_validate(changed)
