"""One protocol for what a trained model is worth: its samples against real images, its codes against their prior.

Seeds and sizes are fixed, so that models of any task compare. Samples are held against the test images, features of
both come from the data's own judge; a floor says what real images get.

Shapes: N test images, M samples, C channels, H height, W width, D pixels, Z code.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from aae_ray.autoencoder.kinds import RowKind
from aae_ray.autoencoder.phases import TASKS
from aae_ray.autoencoder.published import Published, some_names
from aae_ray.datasets.classes import UNKNOWN
from aae_ray.datasets.dataset import Dataset, class_names
from aae_ray.datasets.images import examples, given_examples
from aae_ray.datasets.splits import Indices
from aae_ray.errors import UserError
from aae_ray.evaluation import drawing as figures
from aae_ray.evaluation import sample_quality as quality
from aae_ray.evaluation.clustering_metrics import assign_by_majority
from aae_ray.evaluation.confusion import Confusion
from aae_ray.evaluation.constants import Constants, data_key, prior_key
from aae_ray.evaluation.diagnostics import Diagnostic, diagnose
from aae_ray.evaluation.drawing_rows import column_histograms
from aae_ray.evaluation.encoding import own_labels
from aae_ray.evaluation.held_out import PROTOCOL_SEED, TINY, HeldOutMetrics, some_of
from aae_ray.evaluation.judge import SMALLEST, Judge
from aae_ray.settings import RunSettings

PARZEN_SAMPLES = 10_000
PARZEN_VALIDATION = 1000  # images that choose the window
MOST = 10_000  # samples and images that are compared
NEIGHBOURS = 5  # of precision, recall, density and coverage
CODES = 2000  # whose distances to the prior are taken
BLOCK = 1000  # images that are held at a time, to find the nearest ones and to be encoded
SHOWN = 32  # samples in the sheet of nearest images
NEAREST_SHEET, COLUMNS_SHEET, CONFUSION_SHEET = "nearest.png", "columns.png", "confusion.png"
FARTHEST = 3  # columns that are named, in which samples differ most from real rows
PARZEN_ADVICE = (
    "a Parzen score above that of real images is not evidence of better samples: "
    "blurred, centroid-like samples score higher than real ones"
)

# a number of samples -> examples (M, X) as networks see them, images in [0, 1], the same ones each time
Draw = Callable[[int], Tensor]


@dataclass
class FinalEvaluation:
    """Metrics by name, the sheet of nearest images, the samples' classes, illnesses, and remarks for the reader."""

    metrics: dict[str, float] = field(default_factory=dict)
    nearest_sheet: bytes = b""  # of images; of rows, how the values of each column are spread
    sheet_name: str = NEAREST_SHEET
    class_shares: tuple[float, ...] = ()  # of the samples, as the judge sees them; empty without a judge
    diagnostics: tuple[Diagnostic, ...] = ()
    remarks: list[str] = field(default_factory=list)  # with what the diagnostics say
    confusion: Confusion | None = None  # on the test images, of a classifier

    @property
    def sheets(self) -> dict[str, bytes]:
        """The figures by the names of their files, as PNG."""
        drawn = {self.sheet_name: self.nearest_sheet}
        if self.confusion and self.has_confusion_sheet:
            drawn[CONFUSION_SHEET] = figures.confusion_matrix(self.confusion)
        return drawn

    @property
    def has_confusion_sheet(self) -> bool:
        """Whether there is a confusion matrix, of no more classes than a picture can show."""
        return self.confusion is not None and len(self.confusion.names) <= figures.MOST_CLASSES


def evaluate_model(
    evaluation: HeldOutMetrics, judge: Judge | None, last_report: Mapping[str, float]
) -> FinalEvaluation:
    """What a whole model is worth: the metrics of its training on the test images, its samples and its codes.

    `last_report` are the metrics that its training ended with, which also show what it is ill of.
    """
    result = evaluate_samples(evaluation.samples, evaluation.dataset, judge, evaluation.constants)
    test = evaluation.cheap("test") | evaluation.costly("test")
    result.metrics = test | result.metrics | evaluate_condition(evaluation, judge) | evaluate_codes(evaluation)
    result.confusion = evaluation.confusion("test")
    name_illnesses(result, last_report, evaluation.settings)
    return result


@torch.no_grad()
def evaluate_encoder(result: FinalEvaluation, model: Published, dataset: Dataset) -> None:
    """Add what a published classifier gets wrong on the test images, whose classes it knows by their names; its
    clusters are named by the majority of their validation images."""
    test, kind = dataset.labelled(dataset.test), TASKS[model.task].y
    answers = [y_BK.argmax(1) for y_BK in _probabilities(model, dataset, test)]
    if not answers:
        return
    answers_N, labels_N = torch.cat(answers), torch.from_numpy(np.asarray(dataset.labels_N)[test])
    if kind == "clusters":
        val = dataset.labelled(dataset.val)
        if not len(val):
            return
        known_NK = torch.cat(list(_probabilities(model, dataset, val))).clamp(min=TINY).log()
        known_N = torch.from_numpy(np.asarray(dataset.labels_N)[val])
        names, metric = class_names(dataset), "test/majority_error"
        answers_N = assign_by_majority(known_NK, known_N)[answers_N]
    else:
        own_N, names, metric = own_labels(model, dataset), model.class_names, "test/classification_error"
        assert own_N is not None
        if not names:
            names = class_names(dataset)
            if len(names) != model.labels:
                told = f"the model knows {model.labels} classes, and the data {len(names)}"
                result.remarks.append(f"no errors by class: {told}")
                return
        known_N = own_N[test] != UNKNOWN
        if foreign := sorted({class_names(dataset)[label] for label in labels_N[~known_N].tolist()}):
            told = f"{int((~known_N).sum())} of {len(test)} test {dataset.kind.noun} are of classes that the model does"
            told += " not know"
            result.remarks.append(f"{told}, and left out of the errors by class: {some_names(foreign)}")
        answers_N, labels_N = answers_N[known_N], own_N[test][known_N]
        if not len(labels_N):
            return
    result.confusion = Confusion.of(answers_N, labels_N, names)
    result.metrics[metric] = result.confusion.error


def _probabilities(model: Published, dataset: Dataset, rows: Indices) -> Iterator[Tensor]:
    """Those of the classes or clusters of images (B, K), a block at a time; nothing of an encoder that gives none."""
    for start in range(0, len(rows), BLOCK):
        y_BK = model.encode(given_examples(dataset, rows[start : start + BLOCK])).y_NK
        if y_BK is None:
            return
        yield y_BK


def name_illnesses(result: FinalEvaluation, last_report: Mapping[str, float], settings: RunSettings) -> None:
    """Add the diagnostics, and what they say to the remarks."""
    result.diagnostics = diagnose({**last_report, **result.metrics}, settings)
    result.remarks += [diagnostic.text for diagnostic in result.diagnostics]


def final_evaluation_tags(result: FinalEvaluation, judge: Judge | None) -> dict[str, str]:
    """What is recorded of a final evaluation and is not a number: the judge, the samples' classes, remarks."""
    tags = {"aae.remarks": "; ".join(result.remarks)} if result.remarks else {}
    if result.confusion:
        tags |= {"aae.class_errors": "; ".join(result.confusion.lines())}
    if result.diagnostics:
        tags |= {"aae.diagnostics": ",".join(diagnostic.kind for diagnostic in result.diagnostics)}
    if judge:
        tags |= {"aae.judge": judge.digest}
        tags |= {"aae.class_shares": ",".join(f"{share:.4f}" for share in result.class_shares)}
    return tags


def evaluate_samples(
    draw: Draw, dataset: Dataset, judge: Judge | None, constants: Constants | None = None
) -> FinalEvaluation:
    """What samples are worth; without a judge (no labels, or tiny images) less the metrics on its features.

    `constants` are those of the models that were evaluated before in this process.
    """
    constants = Constants() if constants is None else constants
    if isinstance(dataset.kind, RowKind):
        return _evaluate_rows(draw, dataset, dataset.kind, constants)
    result = FinalEvaluation()
    samples_MCHW = draw(PARZEN_SAMPLES).cpu()
    if not samples_MCHW.isfinite().all():
        result.remarks.append("samples hold values that are not finite, which count as black")
    samples_MCHW = dataset.kind.finite(samples_MCHW)
    test_NCHW = examples(dataset, some_of(dataset.test, MOST))
    if judge is None:
        labelled = all(len(dataset.labelled(part)) for part in (dataset.train, dataset.test))
        why = f"{SMALLEST} x {SMALLEST} pixels" if labelled else "labels"
        result.remarks.append(f"without {why} there is no judge: FID, KID, coverage and classes are left out")
    else:
        assert dataset.labels_N is not None
        labels_N = np.asarray(dataset.labels_N)
        real_K = torch.from_numpy(np.bincount(labels_N[labels_N != UNKNOWN]))
        histogram = quality.class_histogram(judge.probabilities(samples_MCHW), real_K)
        result.metrics |= _judged(samples_MCHW, test_NCHW, dataset, judge, constants) | _classes(histogram)
        result.class_shares = histogram.share_K
        if "quality/coverage" not in result.metrics:
            result.remarks.append(f"FID, KID and coverage need more than {NEIGHBOURS} training and test images")
        if histogram.missing:
            names = class_names(dataset)
            classes = ", ".join(names[label] for label in histogram.missing)
            result.remarks.append(f"coverage warning: samples rarely show class {classes}")
    _parzen(result, samples_MCHW, test_NCHW, dataset, constants)
    fake_NCHW = samples_MCHW[:SHOWN]
    blocks = (dataset.train[start : start + BLOCK] for start in range(0, len(dataset.train), BLOCK))
    nearest_M = quality.nearest_images(fake_NCHW.flatten(1), (examples(dataset, rows).flatten(1) for rows in blocks))
    texts, nearest_NCHW = ("sample", "nearest training image"), examples(dataset, dataset.train[nearest_M.numpy()])
    result.nearest_sheet = figures.reconstructions(fake_NCHW, nearest_NCHW, texts)
    return result


def _evaluate_rows(draw: Draw, dataset: Dataset, kind: RowKind, constants: Constants) -> FinalEvaluation:
    """What rows are worth: how the values of each column are spread, and how columns go together."""
    result = FinalEvaluation(sheet_name=COLUMNS_SHEET)
    count = min(len(dataset.test), len(dataset.train), MOST)
    samples_MD = draw(count).cpu()
    if not samples_MD.isfinite().all():
        result.remarks.append("samples hold values that are not finite, which count as the column's mean")
    samples_MD = kind.finite(samples_MD)
    test_ND, train_ND = (examples(dataset, some_of(rows, count)) for rows in (dataset.test, dataset.train))
    distance_D = quality.column_distances(test_ND, samples_MD)
    floor_D = constants.once(
        ("column distances", data_key(dataset), count), lambda: quality.column_distances(test_ND, train_ND)
    )
    result.metrics = {
        "quality/column_wasserstein": distance_D.mean().item(),
        "quality/column_wasserstein_floor": floor_D.mean().item(),
    }
    if len(kind.columns) > 1:
        result.metrics |= {
            "quality/correlation_error": quality.correlation_error(test_ND, samples_MD),
            "quality/correlation_error_floor": constants.once(
                ("correlation error", data_key(dataset), count), lambda: quality.correlation_error(test_ND, train_ND)
            ),
        }
    farthest = distance_D.argsort(descending=True)[:FARTHEST].tolist()
    told = ", ".join(f"{kind.columns[column]} ({distance_D[column]:.2g})" for column in farthest)
    result.remarks.append(f"samples differ from test rows most in {told}, in standard deviations")
    series = {"test rows": test_ND, "samples": samples_MD}
    units = {name: kind.to_published(rows_ND).numpy() for name, rows_ND in series.items()}
    result.nearest_sheet = column_histograms(units, kind.columns, f"{dataset.name}: samples and test rows")
    return result


@dataclass(frozen=True)
class RealFeatures:
    """Features of test images, and how far those of as many training images are from them: the floors."""

    real_NF: Tensor
    fid: float
    kid: float
    coverage: float


def _real_features(test_NCHW: Tensor, count: int, dataset: Dataset, judge: Judge) -> RealFeatures:
    real_NF = judge.features(test_NCHW[torch.from_numpy(some_of(np.arange(len(test_NCHW)), count))])
    train_NF = judge.features(examples(dataset, some_of(dataset.train, count)))
    return RealFeatures(
        real_NF,
        quality.frechet_distance(real_NF, train_NF),
        quality.kernel_distance(real_NF, train_NF, seed=PROTOCOL_SEED).value,
        quality.prdc(real_NF, train_NF, NEIGHBOURS).coverage,
    )


def _judged(
    samples_MCHW: Tensor, test_NCHW: Tensor, dataset: Dataset, judge: Judge, constants: Constants
) -> dict[str, float]:
    count = min(len(test_NCHW), len(dataset.train), MOST)
    if count <= NEIGHBOURS:
        return {"quality/judge_accuracy": judge.accuracy}
    real = constants.once(
        ("real features", judge.digest, data_key(dataset), count),
        lambda: _real_features(test_NCHW, count, dataset, judge),
    )
    fake_NF = judge.features(samples_MCHW[:count])
    kid = quality.kernel_distance(real.real_NF, fake_NF, seed=PROTOCOL_SEED)
    balls = quality.prdc(real.real_NF, fake_NF, NEIGHBOURS)
    return {
        "quality/fid_local": quality.frechet_distance(real.real_NF, fake_NF),
        "quality/fid_local_floor": real.fid,
        "quality/kid_local": kid.value,
        "quality/kid_local_se": kid.standard_error,
        "quality/kid_local_floor": real.kid,
        "quality/precision": balls.precision,
        "quality/recall": balls.recall,
        "quality/density": balls.density,
        "quality/coverage": balls.coverage,
        "quality/coverage_floor": real.coverage,
        "quality/judge_accuracy": judge.accuracy,
    }


def _classes(histogram: quality.ClassHistogram) -> dict[str, float]:
    return {
        "quality/class_kl_nats": histogram.kl_to_real_nats,
        "quality/class_confidence": histogram.confidence,
        "quality/class_entropy_nats": histogram.entropy_nats,
        "quality/classes_missing": float(len(histogram.missing)),
    }


def _parzen(
    result: FinalEvaluation, samples_MCHW: Tensor, test_NCHW: Tensor, dataset: Dataset, constants: Constants
) -> None:
    """The log-likelihood by the paper's protocol beside that of as many real training images (section 3)."""
    validation_ND = examples(dataset, some_of(dataset.val, PARZEN_VALIDATION)).flatten(1)
    test_ND = test_NCHW.flatten(1)
    real = some_of(dataset.train, PARZEN_SAMPLES)
    try:
        score = quality.parzen(samples_MCHW[: len(real)].flatten(1), validation_ND, test_ND)
    except UserError as error:
        result.remarks.append(f"no Parzen score of the samples: {error}")
        return
    try:
        nats = constants.once(
            ("parzen anchor", data_key(dataset), len(real), len(validation_ND), len(test_ND)),
            lambda: quality.parzen(examples(dataset, real).flatten(1), validation_ND, test_ND).nats,
        )
        anchor = {"quality/parzen_anchor_nats": nats}
    except UserError as error:
        anchor = {}
        result.remarks.append(f"no Parzen score of real training images: {error}")
    result.metrics |= anchor | {
        "quality/parzen_nats": score.nats,
        "quality/parzen_nats_se": score.standard_error,
        "quality/parzen_sigma": score.sigma,
        "quality/parzen_samples": float(score.samples),
    }
    result.remarks.append(f"Parzen windows over {score.samples} samples; {PARZEN_ADVICE}")


@torch.no_grad()
def evaluate_condition(evaluation: HeldOutMetrics, judge: Judge | None) -> dict[str, float]:
    """How often samples show the class that the decoder was given; for a cluster, the majority of its images."""
    z_NZ, y_NK = evaluation.prior_decoder_inputs(CODES)
    classes_K = None if y_NK is None else evaluation.classes_of_labels()
    if judge is None or y_NK is None or classes_K is None:
        return {}
    x_MCHW = evaluation.model.decode(z_NZ, y_NK).unflatten(1, evaluation.dataset.shape).cpu()
    shown_M = judge.probabilities(evaluation.model.kind.finite(x_MCHW)).argmax(1)
    given_M = classes_K[y_NK.argmax(1).cpu()]
    return {"quality/conditional_accuracy": (shown_M == given_M).double().mean().item()}


@torch.no_grad()
def evaluate_codes(evaluation: HeldOutMetrics) -> dict[str, float]:
    """What the encoder is worth: reconstruction, codes against prior, prior samples decoded and encoded again."""
    model, images = evaluation.model, evaluation.images
    codes_NZ = evaluation.unit_codes("test")
    count = min(len(codes_NZ), CODES)
    prior_std = model.prior.at_unit_scale.std_Z.double().square().mean().sqrt().item()
    prior = evaluation.unit_prior_codes(count, 0)
    metrics = {
        "quality/imq_mmd": quality.imq_mmd(
            codes_NZ[torch.from_numpy(some_of(np.arange(len(codes_NZ)), count))], prior, prior_std
        ),
        "quality/imq_mmd_floor": evaluation.constants.once(
            ("imq mmd floor", prior_key(model.prior), count),
            lambda: quality.imq_mmd(evaluation.unit_prior_codes(count, 1), prior, prior_std),
        ),
    }
    z_NZ, y_NK = evaluation.prior_decoder_inputs(count)
    x_ND = model.decode(z_NZ, y_NK)
    noise_NE = (
        torch.zeros(count, model.noise_dim, device=images.device, dtype=images.dtype) if model.noise_dim else None
    )
    error_NZ = (model.encode(x_ND, noise_NE).z_BZ - z_NZ).cpu() / model.prior.std_Z
    metrics["quality/reencoding_error"] = error_NZ.square().mean().sqrt().item()
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
