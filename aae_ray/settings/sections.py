"""The parts of the tree of settings: every key, with its kind, its default and what it says of itself."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from aae_ray.settings.values import (
    Channels,
    Colour,
    Columns,
    Constraints,
    Duration,
    Experiment,
    Float,
    Folder,
    Fraction,
    Int,
    LabelPrior,
    MaybeNames,
    Milestones,
    ModelName,
    Momentum,
    Name,
    Names,
    OptionalRate,
    PixelScale,
    Positive,
    PosteriorName,
    PriorName,
    Rate,
    Size,
    Widths,
)

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


class Data(Section):
    name: Name = Field(
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
        None,
        description="images of the test part, stored like those of `data.path`, which then gives the others; labels "
        "may be missing",
    )
    cache: str | None = Field(None, description="folder of prepared data; ~/.cache/aae_ray when not given")
    shared: Folder | None = Field(
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
        "auto", description="auto: the GPU of a worker that asks for one, else the CPU; cpu: also where it holds a GPU"
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
    experiment: Experiment = Field(None, description="MLflow experiment; aae/<data> when not given")
    register_model: bool = Field(True, description="whether the best decoder is registered when the study ends")
    promotion: Literal["evidence", "better", "never"] | None = Field(
        None,
        description="when a decoder becomes the champion of its name. evidence: on new seeds of both it is better by "
        "study.select, by more than two standard errors; better: by its one measurement; never: by hand alone. "
        "evidence where study.confirm.finalists are confirmed, else better, when not given",
    )
    model_name: ModelName = Field(
        None,
        description="registered decoder, aae-<data>-decoder when not given; its encoder follows its name",
    )


class Budget(Section):
    trials: Positive = Field(24, description="configurations in all; further seeds of them are trials beside these")
    wall_clock: Duration | None = Field(
        None,
        description="such as 90s, 10m or 2h, from the start of the first trial; one that needs at most a twentieth of "
        "it more still comes to its end; no limit when not given",
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
    price_per_spot_hour: Float | None = Field(
        None,
        gt=0,
        description="what a machine on spot costs an hour, in the currency of study.price_per_worker_hour: hours of "
        "machines are told with their cost, where the cluster's file has both kinds",
    )
    price_per_on_demand_hour: Float | None = Field(None, gt=0, description="... and a machine on demand")


class StudySettings(Section):
    """What a study is, beside what each of its trials is."""

    name: Name = Field(
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
    folder: Folder = Field(
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
    storage_timeout: Duration = Field(
        300,
        description="the study stops, to be resumed, after this long in which nothing could be written to a "
        "study.folder that is elsewhere, as with credentials that have expired",
    )
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


def setting(settings: BaseModel, key: str) -> Any:
    """The value under a dotted key."""
    node: Any = settings
    for part in key.split("."):
        node = getattr(node, part)
    return node
