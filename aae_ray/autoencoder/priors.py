"""Priors p(z): the distributions that are imposed on the codes.

A prior only has to be sampled (Makhzani et al. 2015, section 2). The paper shows the mixture and the swiss roll as
pictures and gives no coordinates; theirs here are those of the public implementations that reproduce the pictures.
Both live in the first two coordinates, the remaining ones are Gaussian, so that prior and latent size can be searched
together.

Shapes: N samples, Z code.
"""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from aae_ray import settings

MIXTURE_COMPONENTS = 10
MIXTURE_RADIUS = 1.4
MIXTURE_STD = (0.5, 0.05)  # along and across the ray from the origin
ROLL_RADIUS = 3.0
ROLL_ANGLE = 4 * math.pi  # two turns


def _gaussian(count: int, generator: Generator, dtype: torch.dtype) -> Tensor:
    return torch.randn(count, 2, generator=generator, dtype=dtype)


def _uniform(count: int, generator: Generator, dtype: torch.dtype) -> Tensor:
    return 2 * torch.rand(count, 2, generator=generator, dtype=dtype) - 1


def _mixture(count: int, generator: Generator, dtype: torch.dtype) -> Tensor:
    """Component k of ten: N(0, diag(0.5^2, 0.05^2)) shifted by 1.4 along the first axis, then turned by 2 pi k / 10."""
    component_N = torch.randint(MIXTURE_COMPONENTS, (count,), generator=generator)
    turn_N = (2 * math.pi / MIXTURE_COMPONENTS) * component_N.to(dtype)
    along_N, across_N = (
        torch.randn(count, 2, generator=generator, dtype=dtype) * torch.tensor(MIXTURE_STD, dtype=dtype)
    ).unbind(1)
    along_N = along_N + MIXTURE_RADIUS
    cos_N, sin_N = turn_N.cos(), turn_N.sin()
    return torch.stack([along_N * cos_N - across_N * sin_N, along_N * sin_N + across_N * cos_N], dim=1)


def _swiss_roll(count: int, generator: Generator, dtype: torch.dtype) -> Tensor:
    """Radius 3 sqrt(u), angle 4 pi sqrt(u), with u uniform on [0, 1]."""
    root_N = torch.rand(count, generator=generator, dtype=dtype).sqrt()
    angle_N = ROLL_ANGLE * root_N
    return ROLL_RADIUS * torch.stack([root_N * angle_N.cos(), root_N * angle_N.sin()], dim=1)


def _roll_std() -> tuple[float, float]:
    """With t = sqrt(u), of density 2t: E x = 4 R / a^2, E y = -2 R / a, E x^2, E y^2 = R^2 (1/4 +- 3 / (2a)^2)."""
    radius, angle = ROLL_RADIUS, ROLL_ANGLE
    wobble = 3 / (2 * angle) ** 2
    mean_x, mean_y = 4 * radius / angle**2, -2 * radius / angle
    return (
        math.sqrt(radius**2 * (0.25 + wobble) - mean_x**2),
        math.sqrt(radius**2 * (0.25 - wobble) - mean_y**2),
    )


_MIXTURE_COORDINATE_STD = math.sqrt((MIXTURE_RADIUS**2 + MIXTURE_STD[0] ** 2 + MIXTURE_STD[1] ** 2) / 2)

# name -> how the first two coordinates are drawn, and their standard deviations, at scale 1
_PLANES: dict[str, tuple[Callable[[int, Generator, torch.dtype], Tensor], tuple[float, float]]] = {
    "gaussian": (_gaussian, (1.0, 1.0)),
    "uniform": (_uniform, (3**-0.5, 3**-0.5)),
    "mixture": (_mixture, (_MIXTURE_COORDINATE_STD, _MIXTURE_COORDINATE_STD)),
    "swiss_roll": (_swiss_roll, _roll_std()),
}


class Prior:
    """p(z) for codes of any size of at least 2.

    `scale` is the standard deviation of the Gaussian, and multiplies the geometry of the other priors. The uniform
    prior is uniform in every coordinate; the mixture and the swiss roll are completed by Gaussian coordinates.
    """

    def __init__(self, name: str, latent_dim: int, scale: float = 1.0) -> None:
        self.name, self.latent_dim, self.scale = name, latent_dim, scale
        self._plane, plane_std = _PLANES[name]
        self._rest = _uniform if name == "uniform" else _gaussian
        rest_std = plane_std[0] if name == "uniform" else 1.0
        self.std_Z = scale * torch.tensor([*plane_std, *[rest_std] * (latent_dim - 2)])

    def sample(self, count: int, generator: Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """`count` independent draws, shape (count, Z), on the generator's device (the CPU)."""
        planes = [self._plane(count, generator, dtype)]
        planes += [self._rest(count, generator, dtype) for _ in range(2, self.latent_dim, 2)]
        return self.scale * torch.cat(planes, dim=1)[:, : self.latent_dim]


def build_prior(model: settings.Model) -> Prior:
    """The prior that the settings name."""
    return Prior(model.prior, model.latent_dim, model.prior_scale)
