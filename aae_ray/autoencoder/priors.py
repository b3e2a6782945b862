"""Priors p(z): the distributions that are imposed on the codes.

A prior only has to be sampled (Makhzani et al. 2015, section 2). The paper shows the mixture and the swiss roll as
pictures and gives no coordinates; theirs here are those of the public implementations that reproduce the pictures.
Both live in the first two coordinates, the remaining ones are Gaussian, so that prior and latent size can be searched
together. They have parts, a component or a stretch of the roll, of which a label selects one (section 2.3).

Shapes: N samples, Z code, K classes or clusters, P points of reference or parts of a prior.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from aae_ray import settings

MIXTURE_RADIUS = 1.4
MIXTURE_STD = (0.5, 0.05)  # along and across the ray from the origin
ROLL_RADIUS = 3.0
ROLL_ANGLE = 4 * math.pi  # two turns
ROLL_POINTS = 1000  # to find where on the roll a code lies


Plane = Callable[[int, Generator, torch.dtype, int, Tensor | None], Tensor]


def _gaussian(count: int, generator: Generator, dtype: torch.dtype, parts: int, part_N: Tensor | None) -> Tensor:
    return torch.randn(count, 2, generator=generator, dtype=dtype)


def _uniform(count: int, generator: Generator, dtype: torch.dtype, parts: int, part_N: Tensor | None) -> Tensor:
    return 2 * torch.rand(count, 2, generator=generator, dtype=dtype) - 1


def _mixture(count: int, generator: Generator, dtype: torch.dtype, parts: int, part_N: Tensor | None) -> Tensor:
    """Component k of n: N(0, diag(0.5^2, 0.05^2)) shifted by 1.4 along the first axis, then turned by 2 pi k / n."""
    component_N = torch.randint(parts, (count,), generator=generator)
    if part_N is not None:
        component_N = torch.where(part_N >= 0, part_N, component_N)
    turn_N = (2 * math.pi / parts) * component_N.to(dtype)
    along_N, across_N = (
        torch.randn(count, 2, generator=generator, dtype=dtype) * torch.tensor(MIXTURE_STD, dtype=dtype)
    ).unbind(1)
    along_N = along_N + MIXTURE_RADIUS
    cos_N, sin_N = turn_N.cos(), turn_N.sin()
    return torch.stack([along_N * cos_N - across_N * sin_N, along_N * sin_N + across_N * cos_N], dim=1)


def _swiss_roll(count: int, generator: Generator, dtype: torch.dtype, parts: int, part_N: Tensor | None) -> Tensor:
    """Radius 3 sqrt(u), angle 4 pi sqrt(u), with u uniform on [0, 1], or on [k / n, (k + 1) / n] for segment k."""
    u_N = torch.rand(count, generator=generator, dtype=dtype)
    if part_N is not None:
        u_N = torch.where(part_N >= 0, (part_N + u_N) / parts, u_N)
    return _on_the_roll(u_N)


def _on_the_roll(u_N: Tensor) -> Tensor:
    root_N = u_N.sqrt()
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


def _mixture_std(parts: int) -> tuple[float, float]:
    """Of three components or more the plane's variance is alike in all directions; two lie on the first axis."""
    along, across = MIXTURE_RADIUS**2 + MIXTURE_STD[0] ** 2, MIXTURE_STD[1] ** 2
    return (math.sqrt(along), math.sqrt(across)) if parts == 2 else (math.sqrt((along + across) / 2),) * 2


def _squares(z_NZ: Tensor) -> Tensor:
    return z_NZ.square().sum(1)


def _squares_outside(z_NZ: Tensor) -> Tensor:
    """Of the cube from -1 to 1: 0 inside."""
    return _squares((z_NZ.abs() - 1).clamp(min=0))


def _mixture_offsets(plane_N2: Tensor, parts: int) -> tuple[Tensor, Tensor]:
    """How far each point is from the mean of each component, along its ray and across, (N, P) each."""
    turn_P = torch.arange(parts, dtype=plane_N2.dtype, device=plane_N2.device) * (2 * math.pi / parts)
    x_N1, y_N1 = plane_N2[:, :1], plane_N2[:, 1:]
    along_NP = x_N1 * turn_P.cos() + y_N1 * turn_P.sin() - MIXTURE_RADIUS
    return along_NP, y_N1 * turn_P.cos() - x_N1 * turn_P.sin()


def _squares_to_component(plane_N2: Tensor, parts: int) -> Tensor:
    """To the nearest one, in its standard deviations."""
    along_NP, across_NP = _mixture_offsets(plane_N2, parts)
    return ((along_NP / MIXTURE_STD[0]).square() + (across_NP / MIXTURE_STD[1]).square()).amin(1)


def _squares_to_roll(plane_N2: Tensor, parts: int) -> Tensor:
    """To the nearest of its points, which lie closer to each other towards the centre, where it is narrower."""
    roll_P2 = _on_the_roll(_percentiles(ROLL_POINTS).square().to(plane_N2))
    return torch.cdist(plane_N2, roll_P2).amin(1).square()


def _percentiles(count: int) -> Tensor:
    """Probabilities in the middle of as many equal shares."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def _square_grid(side: int, quantile: Callable[[Tensor], Tensor]) -> Tensor:
    """The first coordinate grows from left to right and the second upwards, as in a scatter plot."""
    values_S = quantile(_percentiles(side))
    return torch.stack([values_S.repeat(side), values_S.flip(0).repeat_interleave(side)], dim=1)


def _mixture_walks(side: int, parts: int) -> Tensor:
    """A component a row: along its ray, from inside to outside."""
    radius_S = MIXTURE_RADIUS + MIXTURE_STD[0] * torch.special.ndtri(_percentiles(side))
    turn_P1 = torch.arange(parts, dtype=torch.float64).unsqueeze(1) * (2 * math.pi / parts)
    return torch.stack([radius_S * turn_P1.cos(), radius_S * turn_P1.sin()], dim=2).flatten(0, 1)


class _Geometry(NamedTuple):
    """The first two coordinates of a prior, at scale 1; `parts` is the number of its components or segments."""

    draw: Plane
    std: Callable[[int], tuple[float, float]]  # of both, by parts
    squares: Callable[[Tensor, int], Tensor]  # points (N, 2), parts -> squared distance to where the prior is, (N,)
    walk: Callable[[int, int], Tensor]  # side, parts -> points (rows * side, 2), a row of side points after the other
    walk_text: str


_PLANES: dict[str, _Geometry] = {
    "gaussian": _Geometry(
        _gaussian,
        lambda parts: (1.0, 1.0),
        lambda plane_N2, parts: _squares(plane_N2),
        lambda side, parts: _square_grid(side, torch.special.ndtri),
        "z1 from left to right and z2 upwards, at the percentiles of the Gaussian",
    ),
    "uniform": _Geometry(
        _uniform,
        lambda parts: (3**-0.5, 3**-0.5),
        lambda plane_N2, parts: _squares_outside(plane_N2),
        lambda side, parts: _square_grid(side, lambda p_S: 2 * p_S - 1),
        "z1 from left to right and z2 upwards, in equal steps",
    ),
    "mixture": _Geometry(
        _mixture,
        _mixture_std,
        _squares_to_component,
        _mixture_walks,
        "a component a row, along its ray from inside to outside, at the percentiles of its Gaussian",
    ),
    "swiss_roll": _Geometry(
        _swiss_roll,
        lambda parts: _roll_std(),
        _squares_to_roll,
        lambda side, parts: _on_the_roll(_percentiles(side * side)),
        "along the roll from its centre, row by row, at its percentiles",
    ),
}


class Prior:
    """p(z) for codes of any size of at least 2.

    `scale` is the standard deviation of the Gaussian, and multiplies the geometry of the other priors. The uniform
    prior is uniform in every coordinate; the mixture and the swiss roll are completed by Gaussian coordinates.
    """

    def __init__(self, name: str, latent_dim: int, scale: float = 1.0, parts: int = 10) -> None:
        self.name, self.latent_dim, self.scale, self.parts = name, latent_dim, scale, parts
        self._plane = _PLANES[name]
        plane_std = self._plane.std(parts)
        self._rest = _uniform if name == "uniform" else _gaussian
        rest_std = plane_std[0] if name == "uniform" else 1.0
        self.std_Z = scale * torch.tensor([*plane_std, *[rest_std] * (latent_dim - 2)])

    @property
    def at_unit_scale(self) -> "Prior":
        """The same geometry at scale 1: of it are the draws of this prior, divided by the scale."""
        return Prior(self.name, self.latent_dim, parts=self.parts)

    def sample(
        self,
        count: int,
        generator: Generator,
        dtype: torch.dtype = torch.float32,
        part_N: Tensor | None = None,
    ) -> Tensor:
        """`count` independent draws, shape (count, Z), on the generator's device (the CPU).

        `part_N` names the component or segment that each draw comes from, -1 any; priors without parts ignore it.
        """
        planes = [self._plane.draw(count, generator, dtype, self.parts, part_N)]
        planes += [self._rest(count, generator, dtype, self.parts, None) for _ in range(2, self.latent_dim, 2)]
        return self.scale * torch.cat(planes, dim=1)[:, : self.latent_dim]

    @property
    def has_density(self) -> bool:
        """Whether `log_density` knows it."""
        return self.name in ("gaussian", "mixture")

    def log_density(self, z_NZ: Tensor) -> Tensor:
        """log p(z), (N,), of the Gaussian and the mixture: what a VAE needs where an adversarial autoencoder samples.

        Raises ValueError for the other priors.
        """
        z_NZ = z_NZ / self.scale
        log_volume = self.latent_dim * math.log(self.scale)
        if self.name == "gaussian":
            return _log_normal(z_NZ, 1.0).sum(1) - log_volume
        if self.name != "mixture":
            raise ValueError(f"the {self.name} prior has no density here")
        along_NP, across_NP = _mixture_offsets(z_NZ[:, :2], self.parts)
        part_NP = _log_normal(along_NP, MIXTURE_STD[0]) + _log_normal(across_NP, MIXTURE_STD[1])
        plane_N = part_NP.logsumexp(1) - math.log(self.parts)
        return plane_N + _log_normal(z_NZ[:, 2:], 1.0).sum(1) - log_volume

    def distance(self, z_NZ: Tensor) -> Tensor:
        """How far codes are from where the prior is, (N,), at scale 1.

        Of the Gaussian it is Mahalanobis's distance from the mean; of the mixture that from the nearest component; of
        the swiss roll from its nearest point, and of the uniform prior from its cube, inside of which it is 0.
        Gaussian coordinates beside a mixture or a roll add their squares.
        """
        z_NZ = z_NZ / self.scale
        rest = _squares_outside if self.name == "uniform" else _squares
        return (self._plane.squares(z_NZ[:, :2], self.parts) + rest(z_NZ[:, 2:])).sqrt()

    def walk(self, side: int) -> Tensor:
        """Codes of a picture of the prior, (rows * side, Z), a row after the other, by the inverse of its distribution
        as in figures 2e and 4 of Makhzani et al.; `walk_text` says how. Coordinates beyond the second are 0.
        """
        plane_N2 = self._plane.walk(side, self.parts)
        return self.scale * torch.nn.functional.pad(plane_N2, (0, self.latent_dim - 2)).to(torch.float32)

    @property
    def walk_text(self) -> str:
        rest = f"; the other {self.latent_dim - 2} coordinates are 0" if self.latent_dim > 2 else ""
        return f"{self._plane.walk_text}{rest}"

    def part_of(self, z_NZ: Tensor) -> Tensor:
        """The component or segment that each code is nearest to, (N,): by angle in the mixture, else on the roll.

        Raises ValueError for a prior without parts.
        """
        plane_N2 = z_NZ[:, :2] / self.scale
        if self.name == "mixture":
            turn_N = torch.atan2(plane_N2[:, 1], plane_N2[:, 0]) * (self.parts / (2 * math.pi))
            return turn_N.round().long() % self.parts
        if self.name == "swiss_roll":
            u_P = (torch.arange(ROLL_POINTS, dtype=z_NZ.dtype) + 0.5) / ROLL_POINTS
            nearest_N = torch.cdist(plane_N2, _on_the_roll(u_P)).argmin(1)
            return (u_P[nearest_N] * self.parts).long()
        raise ValueError(f"the {self.name} prior has no parts")


def _log_normal(x: Tensor, std: float) -> Tensor:
    return -0.5 * (x / std).square() - math.log(std * math.sqrt(2 * math.pi))


def uniform_shares(classes: int) -> Tensor:
    """The paper's p(y) (section 5): all classes alike, (K,), in double precision."""
    return torch.full((classes,), 1 / classes, dtype=torch.float64)


def sample_classes(count: int, shares_K: Tensor, generator: Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draws of the categorical prior p(y) with these shares, exact one-hots, shape (count, K) (section 5)."""
    drawn_N = torch.multinomial(shares_K, count, replacement=True, generator=generator)
    return torch.nn.functional.one_hot(drawn_N, len(shares_K)).to(dtype)


def sample_code(
    prior: Prior, shares_K: Tensor | None, count: int, generator: Generator, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor | None]:
    """Draws of p(z), (count, Z), and then of p(y), (count, K), where the code has a label, whose shares are given."""
    z_NZ = prior.sample(count, generator, dtype)
    return z_NZ, None if shares_K is None else sample_classes(count, shares_K, generator, dtype)


def build_prior(model: settings.Model) -> Prior:
    """The prior that the settings name."""
    return Prior(model.prior, model.latent_dim, model.prior_scale, model.prior_components)
