"""What a model is worth on held-out images: the same protocol for every trial, with fixed seeds.

Shapes: N examples, M draws of noise, D pixels, E noise, Z code, K classes or clusters.
"""

import math
from collections.abc import Callable, Hashable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from aae_ray.autoencoder.model import Model
from aae_ray.autoencoder.phases import TASKS
from aae_ray.autoencoder.posteriors import Code
from aae_ray.autoencoder.priors import build_prior, sample_classes
from aae_ray.datasets.classes import UNKNOWN
from aae_ray.datasets.dataset import Dataset, class_names
from aae_ray.datasets.images import Images, examples
from aae_ray.evaluation import clustering_metrics as clusters
from aae_ray.evaluation import divergence, metrics, sample_quality
from aae_ray.evaluation.confusion import Confusion
from aae_ray.evaluation.constants import Constants, data_key, prior_key
from aae_ray.evaluation.judge import Judge, is_judged
from aae_ray.randomness import EVALUATION, generator_for
from aae_ray.settings import RunSettings

CHUNK = 2000  # images encoded at a time
NOISE_DRAWS = 8  # per image, for the share of the codes' variance that is the posterior's noise
NOISE_IMAGES = 512
KID_IMAGES = 2000  # and as many samples, for the kernel distance
TINY = 1e-300  # probability that every label has at least, as no draw is taken of zeros
KL_CODES = 2000  # at most, and as many prior samples, for the KL divergence

JUDGED = "val/kid_local"  # what is measured where a study asks for it alone: it needs a judge

# Protocol seed: fixed for all trials, so that their metrics differ by the model alone. Behind it, what is drawn.
PROTOCOL_SEED = 2015
PRIOR, POSTERIOR, USE_OF_NOISE, FLOOR, PRIOR_LABELS, LABELS = range(6)


def sample_generator() -> torch.Generator:
    """Where the draws behind the samples of the protocol come from."""
    return generator_for(PROTOCOL_SEED, EVALUATION, PRIOR, 0)


def some_of(rows_N: np.ndarray, count: int) -> np.ndarray:
    """So many of the rows, in their order, drawn by the protocol's seed; all of them where there are no more.

    The first ones would not do: of a set that is stored class by class they are of one class.
    """
    if len(rows_N) <= count:
        return rows_N
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(PROTOCOL_SEED)))
    return np.asarray(rows_N[np.sort(random.permutation(len(rows_N))[:count])])


class Encoded(NamedTuple):
    """Held-out images of a part, in its order: codes z, the logits of q(y|x) where there is a label head, and the
    entropies of q(z|x) in nats where it has a density."""

    z_NZ: Tensor
    logits_NK: Tensor | None
    posterior_entropy_N: Tensor | None
    reconstruction_mse: float


def measured(settings: RunSettings, dataset: Dataset) -> set[str]:
    """The metrics with a direction that `HeldOutMetrics` measures of held-out images for this task, prior and data."""
    task, labelled = TASKS[settings.task], bool(len(dataset.labelled(dataset.val)))
    names = {"reconstruction_mse", "jsd_nats", "scaled_sliced_wasserstein"}
    if build_prior(settings.model).has_density:
        names.add("kl_aggregate_nats")
    if is_judged(dataset):
        names.add("kid_local")
    if task.y:
        names.add("joint_jsd_nats")
    if task.label_condition and labelled:
        names.add("part_error")
    if any("label_head" in phase.updates for phase in task.phases):
        names.add("label_entropy_nats")
        if labelled:
            names |= {"classification_error", "balanced_error"}
        if labelled and task.y == "clusters":
            names |= {"majority_error", "hungarian_accuracy", "nmi", "ari"}
    return {f"val/{name}" for name in names}


def diagnosed(settings: RunSettings, dataset: Dataset) -> set[str]:
    """The metrics without a direction that `HeldOutMetrics` takes of held-out images beside those that are `measured`:
    their floors, ceilings, errors and intervals, and what tells of illnesses."""
    names, task, prior = {"val/mean_image_mse", "val/code_std"}, TASKS[settings.task], build_prior(settings.model)
    for name in measured(settings, dataset):
        names |= {other for other in metrics.METRICS if other.startswith(f"{name}_")}
    if settings.model.posterior != "deterministic":
        names.add("val/noise_use")
    if settings.model.posterior == "gaussian" and prior.has_density:
        names |= {"val/kl_posterior_nats", "val/mutual_information_nats"}
    if task.y == "clusters":
        names |= {"val/clusters_used", "val/cluster_entropy_nats"}
    return names


class HeldOutMetrics:
    """Measures a model on the validation or test images. The same noise and prior samples are drawn each time.

    A part is encoded once, and all that is asked of it is answered from there: whoever changes the weights of the model
    says so by `weights_changed`. `constants` are those of the models that were measured before in this process. With a
    judge, samples are held against the images at reports.
    """

    def __init__(
        self,
        settings: RunSettings,
        model: Model,
        dataset: Dataset,
        images: Images,
        constants: Constants | None = None,
        judge: Judge | None = None,
    ) -> None:
        self.settings, self.model, self.dataset, self.images = settings, model, dataset, images
        self.constants = Constants() if constants is None else constants
        self.judge = judge
        self._data, self._prior = data_key(dataset), prior_key(model.prior)
        self._unit_prior = model.prior.at_unit_scale
        self._encodings: dict[str, Encoded] = {}

    def weights_changed(self) -> None:
        """What was encoded is no longer what the model would make of it."""
        self._encodings.clear()

    def cheap(self, part: str) -> dict[str, float]:
        """The metrics that are taken every epoch, named after the part: `val/...` or `test/...`."""
        seen = self._look_at(part)
        values = {
            "reconstruction_mse": seen.reconstruction_mse,
            "mean_image_mse": self._mean_image_mse(part),
            "code_std": metrics.code_std(seen.z_NZ, self.model.prior.std_Z),
            **self._labelling(part, seen.z_NZ, seen.logits_NK),
        }
        return {f"{part}/{name}": value for name, value in values.items()}

    def _labelling(self, part: str, z_NZ: Tensor, logits_NK: Tensor | None) -> dict[str, float]:
        """How the labels that the encoder predicts, or the parts of the prior that it chose, agree with the truth.

        Clusters get their labels from the validation images, by the paper's rule (section 6) and by majority; on these
        images themselves one half names the clusters of the other. Images without a label count for neither.
        """
        task, values = TASKS[self.settings.task], {}
        labelled_N, labels_N = self._labelled(part)
        if task.label_condition and len(labels_N):
            values["part_error"] = (self.model.prior.part_of(z_NZ[labelled_N]) != labels_N).double().mean().item()
        if logits_NK is None:
            return values
        answers_N = logits_NK.argmax(1)
        values["label_entropy_nats"] = metrics.mean_entropy(logits_NK)
        if task.y == "clusters":
            values["clusters_used"] = float(clusters.clusters_used(answers_N, self.model.classes))
            values["cluster_entropy_nats"] = clusters.usage_entropy(answers_N, self.model.classes)
        if not len(labels_N):
            return values
        logits_NK, answers_N = logits_NK[labelled_N], answers_N[labelled_N]
        if task.y == "clusters":
            values["hungarian_accuracy"] = clusters.hungarian_accuracy(answers_N, labels_N)
            values["nmi"] = clusters.normalized_mutual_information(answers_N, labels_N)
            values["ari"] = clusters.adjusted_rand_index(answers_N, labels_N)
            if not len(self.dataset.labelled(self.dataset.val)):
                return values
            answers_N = self._named(part, logits_NK, labels_N, clusters.assign_by_confidence)
            by_majority_N = self._named(part, logits_NK, labels_N, clusters.assign_by_majority)
            values |= _error("majority_error", by_majority_N, labels_N)
            balanced, interval = metrics.balanced_error(by_majority_N, labels_N)
        else:
            balanced, interval = metrics.balanced_error(answers_N, labels_N)
        values |= _with_interval("balanced_error", balanced, interval)
        return values | _error("classification_error", answers_N, labels_N)

    def _named(self, part: str, logits_NK: Tensor, labels_N: Tensor, naming: clusters.Naming) -> Tensor:
        """The label that each image gets from its cluster, (N,)."""
        if part == "val":
            return clusters.named_by_the_other_half(logits_NK, labels_N, naming)
        examples_NK, (labelled_N, known_N) = self._look_at("val").logits_NK, self._labelled("val")
        assert examples_NK is not None
        return naming(examples_NK[labelled_N], known_N)[logits_NK.argmax(1)]

    def confusion(self, part: str) -> Confusion | None:
        """Which classes the label head takes for which others, on the images of a part that have a label; clusters are
        named by the majority of their validation images, as for `majority_error`. None where there is nothing to tell.
        """
        logits_NK, (labelled_N, labels_N) = self._look_at(part).logits_NK, self._labelled(part)
        if logits_NK is None or not len(labels_N) or not len(self.dataset.labelled(self.dataset.val)):
            return None
        answers_N = logits_NK[labelled_N].argmax(1)
        if TASKS[self.settings.task].y == "clusters":
            answers_N = self._named(part, logits_NK[labelled_N], labels_N, clusters.assign_by_majority)
        return Confusion.of(answers_N, labels_N, class_names(self.dataset))

    def classes_of_labels(self) -> Tensor | None:
        """The class that each label of the decoder stands for, (K,): itself, or the majority of its cluster's
        validation images. None where clusters have no labels to be named by."""
        if TASKS[self.settings.task].y == "classes":
            return torch.arange(self.model.classes)
        logits_NK, (labelled_N, labels_N) = self._look_at("val").logits_NK, self._labelled("val")
        if logits_NK is None or not len(labels_N):
            return None
        return clusters.assign_by_majority(logits_NK[labelled_N], labels_N)

    def costly(self, part: str) -> dict[str, float]:
        """The metrics that are taken at rungs and at the end: how far codes are from their prior, and samples from
        images."""
        z_NZ = self.unit_codes(part)
        values = {
            "scaled_sliced_wasserstein": self._prior_slices(len(z_NZ)).distance(z_NZ),
            "scaled_sliced_wasserstein_floor": self._sliced_wasserstein_floor(len(z_NZ)),
            **self._jsd("jsd_nats", (self._prior,), z_NZ, self.unit_prior_codes),
            **self._kl(z_NZ, self._look_at(part).posterior_entropy_N),
        }
        shares_K = self.model.label_shares_K
        if shares_K is not None:
            key, joint_NC = (self._prior, *shares_K.tolist()), torch.cat([z_NZ, self._labels(part)], 1)
            values |= self._jsd("joint_jsd_nats", key, joint_NC, self._joint_prior)
        if self.model.noise_dim:
            values["noise_use"] = self._noise_use(part)
        if self.judge:
            values |= self._kid(part, self.judge)
        return {f"{part}/{name}": value for name, value in values.items()}

    def _jsd(
        self,
        name: str,
        key: tuple[Hashable, ...],
        codes_NZ: Tensor,
        draw_prior: Callable[[int, int], Tensor],
    ) -> dict[str, float]:
        """The bound, its standard error and its floor; `key` tells the prior that is drawn from others."""
        reference = self.constants.once(
            (name, *key, len(codes_NZ)),
            lambda: divergence.PriorReference.of(draw_prior, len(codes_NZ), seed=PROTOCOL_SEED),
        )
        bound = reference.bound(codes_NZ)
        return {name: bound.nats, f"{name}_se": bound.standard_error, f"{name}_floor": bound.floor}

    def _kl(self, z_NZ: Tensor, posterior_entropy_N: Tensor | None) -> dict[str, float]:
        """How far the aggregate posterior is from the prior, and what codes tell of their images, in nats.

        Where posterior and prior have densities, E_x KL(q(z|x) || p(z)) = I(x; z) + KL(q(z) || p(z)) (Hoffman and
        Johnson 2016): the left side is the posterior's entropy in closed form and log p(z) at the drawn codes, so that
        the mutual information has the error of the divergence with its sign turned. Nothing for priors without a
        density: it is infinite of codes beside the swiss roll, or outside of the uniform prior's cube.

        Codes and prior are those at scale 1; entropies of q(z|x) are of the codes themselves.
        """
        prior = self._unit_prior
        if not prior.has_density:
            return {}
        count = min(len(z_NZ), KL_CODES)

        def from_prior(z_NZ: Tensor) -> float:
            return divergence.kl_by_entropy(z_NZ, prior.log_density(z_NZ.double()), prior.std_Z)

        floor = self.constants.once(
            ("kl of prior samples", self._prior, count), lambda: from_prior(self.unit_prior_codes(count, 0))
        )
        aggregate = from_prior(z_NZ[torch.from_numpy(some_of(np.arange(len(z_NZ)), count))]) - floor
        values = {"kl_aggregate_nats": aggregate}
        if posterior_entropy_N is not None:
            entropy_N = posterior_entropy_N.double() - prior.latent_dim * math.log(self.model.prior.scale)
            posterior = -(entropy_N + prior.log_density(z_NZ.double())).mean().item()
            values |= {"kl_posterior_nats": posterior, "mutual_information_nats": posterior - aggregate}
        return values

    def _labels(self, part: str) -> Tensor:
        """A draw of q(y|x) for each image, one-hot, (N, K); the true label where there is no label head.

        No softmax reaches a corner of the simplex, where all draws of p(y) lie, so that probabilities would be told
        from these whatever they say; how far from the corners they are is the mean entropy of q(y|x).
        """
        logits_NK, answers_N = self._look_at(part).logits_NK, self._true_labels(self._indices(part))
        if logits_NK is not None:
            generator = generator_for(PROTOCOL_SEED, EVALUATION, LABELS)
            probabilities_NK = logits_NK.double().softmax(1).nan_to_num()
            answers_N = torch.multinomial(probabilities_NK + TINY, 1, generator=generator).squeeze(1)
        assert answers_N is not None
        return F.one_hot(answers_N, self.model.classes).to(torch.float32)

    def _joint_prior(self, count: int, seed: int) -> Tensor:
        """Draws of p(z) at scale 1 and p(y), (N, Z + K): codes, and one-hot labels behind them."""
        return torch.cat([self.unit_prior_codes(count, seed), self.prior_labels(count, seed)], 1)

    @torch.no_grad()
    def _kid(self, part: str, judge: Judge) -> dict[str, float]:
        """The kernel distance of samples and held-out images, and the one of the mean training image."""
        indices = some_of(self._indices(part), KID_IMAGES)
        key: tuple[Hashable, ...] = (judge.digest, self._data, part)
        real_NF = self.constants.once(("features", *key), lambda: judge.features(examples(self.dataset, indices)))

        def mean_image() -> float:
            image_1CHW = self._mean_image().to(self.images.dtype).unflatten(0, self.dataset.shape).cpu()[None]
            return sample_quality.cubic_mmd(real_NF, judge.features(image_1CHW).expand(len(real_NF), -1))

        samples_NCHW = self.model.kind.finite(self.samples(len(indices)))
        return {
            "kid_local": sample_quality.cubic_mmd(real_NF, judge.features(samples_NCHW)),
            "kid_local_ceiling": self.constants.once(("kid of the mean image", *key), mean_image),
        }

    def codes(self, part: str) -> Tensor:
        """Held-out codes z_NZ in the order of the part, on the CPU, one draw of the posterior each."""
        return self._look_at(part).z_NZ

    def unit_codes(self, part: str) -> Tensor:
        """The same in units of the prior's scale: constants of a prior at scale 1 then hold for all of them."""
        return self.codes(part) / self.model.prior.scale

    @torch.no_grad()
    def decoder_inputs(self, part: str) -> Tensor:
        """Decoder inputs of held-out images, for the scatter figure: codes, in a reduction W y + z (section 7)."""
        seen = self._look_at(part)
        if "cluster_heads" not in self.model.networks:
            return seen.z_NZ
        assert seen.logits_NK is not None
        y_NK = seen.logits_NK.to(self.images.device).softmax(1)
        return self.model.decoder_input(seen.z_NZ.to(self.images.device), y_NK).cpu()

    @torch.no_grad()
    def reconstructions(self, part: str, count: int) -> tuple[Tensor, Tensor]:
        """Some examples of a part and what becomes of them, each (N, X), on the CPU."""
        x_BD, code, y_BK = next(self._encoded(some_of(self._indices(part), min(count, CHUNK))))
        pair = (x_BD, self.model.decode(code.z_BZ, y_BK))
        x_NCHW, answer_NCHW = (images_BD.unflatten(1, self.dataset.shape).cpu() for images_BD in pair)
        return x_NCHW, answer_NCHW

    @torch.no_grad()
    def styles(self, count: int) -> Tensor:
        """A sheet for a decoder that is given a label: a style a row, a label a column, (count * K, C, H, W).

        The first row has the style 0; in a task with clusters these are the images of its cluster heads.
        """
        model, classes = self.model, self.model.classes
        z_NZ = self.prior_codes(count, 0)
        z_NZ[0] = 0
        y_NK = torch.eye(classes).repeat(count, 1)
        inputs = (z_NZ.repeat_interleave(classes, 0), y_NK)
        z_NZ, y_NK = (part.to(self.images.device, self.images.dtype) for part in inputs)
        x_NCHW: Tensor = model.decode(z_NZ, y_NK).unflatten(1, self.dataset.shape).cpu()
        return x_NCHW

    @torch.no_grad()
    def samples(self, count: int) -> Tensor:
        """Examples decoded from draws of the prior, (N, X), on the CPU."""
        return self.model.sample(count, sample_generator()).cpu()

    def prior(self, count: int) -> Tensor:
        """Draws of the prior to show beside the codes, (N, Z); in a reduction W y + z, with y from its own prior."""
        if "cluster_heads" not in self.model.networks:
            return self.prior_codes(count, 0)
        with torch.no_grad():
            return self.model.decoder_input(*self.prior_decoder_inputs(count)).cpu()

    def prior_codes(self, count: int, seed: int) -> Tensor:
        """Draws of p(z), (N, Z), a function of the seed alone, on the CPU."""
        return self.model.prior.scale * self.unit_prior_codes(count, seed)

    def unit_prior_codes(self, count: int, seed: int) -> Tensor:
        """The same draws at scale 1."""
        return self._unit_prior.sample(count, generator_for(PROTOCOL_SEED, EVALUATION, PRIOR, seed))

    def prior_decoder_inputs(self, count: int) -> tuple[Tensor, Tensor | None]:
        """Draws of p(z), (N, Z), and of p(y), (N, K), where the decoder is given a label; on the model's device."""
        z_NZ = self.prior_codes(count, 0).to(self.images.device, self.images.dtype)
        if self.model.label_shares_K is None:
            return z_NZ, None
        return z_NZ, self.prior_labels(count, 0).to(z_NZ)

    def prior_labels(self, count: int, seed: int) -> Tensor:
        """Draws of p(y), one-hot, (N, K), a function of the seed alone, on the CPU."""
        shares_K = self.model.label_shares_K
        assert shares_K is not None
        return sample_classes(count, shares_K, generator_for(PROTOCOL_SEED, EVALUATION, PRIOR_LABELS, seed))

    def _look_at(self, part: str) -> Encoded:
        if part not in self._encodings:
            self._encodings[part] = self._encode(self._indices(part))
        return self._encodings[part]

    @torch.no_grad()
    def _encode(self, indices: np.ndarray) -> Encoded:
        codes, logits, entropies, squared_error, values = [], [], [], 0.0, 0
        for x_BD, code, y_BK in self._encoded(indices):
            squared_error += (self.model.decode(code.z_BZ, y_BK) - x_BD).square().sum(dtype=torch.float64).item()
            values += x_BD.numel()
            codes.append(code.z_BZ.cpu())
            if code.label_logits_BK is not None:
                logits.append(code.label_logits_BK.cpu())
            if code.log_variance_BZ is not None:
                entropies.append(0.5 * (code.log_variance_BZ + math.log(2 * math.pi * math.e)).sum(1).cpu())
        logits_NK, entropy_N = (torch.cat(some) if some else None for some in (logits, entropies))
        return Encoded(torch.cat(codes), logits_NK, entropy_N, squared_error / values)

    def _encoded(self, indices: np.ndarray) -> Iterator[tuple[Tensor, Code, Tensor | None]]:
        """Chunks of images x_BD with their codes and, where the decoder takes it, y_BK: q(y|x), else the truth."""
        generator = generator_for(PROTOCOL_SEED, EVALUATION, POSTERIOR)
        for start in range(0, len(indices), CHUNK):
            rows = indices[start : start + CHUNK]
            x_BD = self.images[rows]
            code = self.model.encode(x_BD, self._noise(len(x_BD), generator))
            y_BK = None if code.label_logits_BK is None else code.label_logits_BK.softmax(1)
            if y_BK is None and self.model.classes:
                truth_N = self._true_labels(rows)
                assert truth_N is not None
                y_BK = F.one_hot(truth_N, self.model.classes).to(x_BD)
            yield x_BD, code, y_BK

    def _true_labels(self, indices: np.ndarray) -> Tensor | None:
        labels_N = self.dataset.labels_N
        return None if labels_N is None else torch.from_numpy(np.asarray(labels_N)[indices])

    def _labelled(self, part: str) -> tuple[Tensor, Tensor]:
        """Those images of a part that have a label, as places in it, and their labels, each (N,)."""
        labels_N = self._true_labels(self._indices(part))
        if labels_N is None:
            labels_N = torch.full((len(self._indices(part)),), UNKNOWN)
        labelled_N = (labels_N != UNKNOWN).nonzero().squeeze(1)
        return labelled_N, labels_N[labelled_N]

    def _noise(self, count: int, generator: torch.Generator) -> Tensor | None:
        if not self.model.noise_dim:
            return None
        return torch.randn(count, self.model.noise_dim, generator=generator, dtype=self.images.dtype).to(
            self.images.device
        )

    @torch.no_grad()
    def _noise_use(self, part: str) -> float:
        x_BD = self.images[some_of(self._indices(part), NOISE_IMAGES)]
        generator = generator_for(PROTOCOL_SEED, EVALUATION, USE_OF_NOISE)
        z_MNZ = torch.stack(
            [self.model.encode(x_BD, self._noise(len(x_BD), generator)).z_BZ for _ in range(NOISE_DRAWS)]
        )
        return metrics.noise_use(z_MNZ.cpu())

    def _prior_slices(self, count: int) -> divergence.PriorSlices:
        std_Z = self._unit_prior.std_Z
        return self.constants.once(
            ("prior slices", self._prior, count),
            lambda: divergence.PriorSlices.of(self.unit_prior_codes(count, 0), std_Z, count, seed=PROTOCOL_SEED),
        )

    def _sliced_wasserstein_floor(self, count: int) -> float:
        return self.constants.once(
            ("sliced wasserstein floor", self._prior, count),
            lambda: self._prior_slices(count).distance(self.unit_prior_codes(count, FLOOR)),
        )

    def _mean_image(self) -> Tensor:
        """The mean training image, (D,)."""
        sums = [x_BD.double().sum(0) for x_BD in self._chunks(self.dataset.train)]
        return torch.stack(sums).sum(0) / len(self.dataset.train)

    def _mean_image_mse(self, part: str) -> float:
        """Squared error per pixel of always predicting the mean training image."""

        def measure() -> float:
            mean_D, indices = self._mean_image(), self._indices(part)
            error = sum((x_BD.double() - mean_D).square().sum().item() for x_BD in self._chunks(indices))
            return float(error) / (len(indices) * self.images.rows_ND.shape[1])

        return self.constants.once(("mean image", self._data, self.images.dtype, part), measure)

    def _chunks(self, indices: np.ndarray) -> Iterator[Tensor]:
        for start in range(0, len(indices), CHUNK):
            yield self.images[indices[start : start + CHUNK]]

    def _indices(self, part: str) -> np.ndarray:
        return self.dataset.val if part == "val" else self.dataset.test


def _error(name: str, answers_N: Tensor, labels_N: Tensor) -> dict[str, float]:
    """The share of answers that are wrong, with its interval."""
    share = (answers_N != labels_N).double().mean().item()
    return _with_interval(name, share, metrics.wilson_interval(share, len(labels_N)))


def _with_interval(name: str, value: float, interval: tuple[float, float]) -> dict[str, float]:
    low, high = interval
    return {name: value, f"{name}_low": low, f"{name}_high": high}
