"""How unlike those that a model was trained on an image or a row is, by its reconstruction and by its code.

Shapes: N examples, X numbers of one in its own shape, D all of them.
"""

from typing import NamedTuple

from torch import Tensor

from aae_ray.autoencoder.published import Encoded, Published
from aae_ray.errors import UserError


class Scores(NamedTuple):
    """Of each example, (N,): the higher, the more unlike."""

    reconstruction_error_N: Tensor  # squared, a mean over pixels in [0, 1], or columns in standard deviations
    prior_distance_N: Tensor  # of the code, as `Prior.distance`
    anomaly_score_N: Tensor  # of both


def scores(model: Published, x_NX: Tensor, encoded: Encoded, labels_N: Tensor | None = None) -> Scores:
    """The anomaly score is -log p(x|z) - log p(z) of an example and its code, up to a constant, in nats: D errors over
    twice the variance of the pixels, and half the square of the code's distance from the prior.

    The model's own reconstruction error of validation images is that variance, and the prior is taken as a Gaussian
    around the nearest point where it is. Reconstruction and prior together are what Pidhorskyi et al. 2018 judge
    novelty of an adversarial autoencoder by; the Gaussian decoder is An and Cho's of 2015. Raises UserError where the
    variance is not known, or the decoder needs labels that there are not.
    """
    if model.reconstruction_mse is None:
        raise UserError(f"{model} does not say how well it reconstructs validation images; run its study again")
    error_N = model.squared_error(x_NX, model.reconstruct(encoded, labels_N))
    distance_N = model.prior.distance(encoded.z_NZ)
    nats_N = x_NX[0].numel() * error_N / (2 * model.reconstruction_mse) + 0.5 * distance_N.square()
    return Scores(error_N, distance_N, nats_N)
