"""The oracle: an isotropic Gaussian mixture. All that a diffusion model can only estimate is known
exactly of it.

At noise level sigma, p_sigma = sum_k w_k N(m_k, (s_k^2 + sigma^2) I), so density, score and
denoiser are closed forms. It is a teacher like any other, and what every loss is proved against.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from fdistill.diffusion.denoiser import Denoiser


class GaussianMixture(NamedTuple):
    """sum_k weights[k] N(means[k, :], stds[k]^2 I). Arrays of a float dtype; float64 when x64 is
    on.

    With `label[B]` given, sample b belongs to component label[b] alone (-1: to the mixture), which
    makes the mixture a class-conditional teacher.
    """

    weights: jax.Array
    means: jax.Array
    stds: jax.Array

    def _log_joint(self, x, sigma, label=None):
        """log(w_k N(x; m_k, (s_k^2 + sigma^2) I)), [B, K]; components other than the label's are
        -inf."""
        variance = self.stds**2 + _per_sample(x, sigma)[:, None] ** 2
        distance = jnp.sum((x[:, None, :] - self.means) ** 2, axis=-1)
        log_density = -0.5 * distance / variance - 0.5 * x.shape[-1] * jnp.log(
            2 * jnp.pi * variance
        )
        log_weights = jnp.log(jnp.asarray(self.weights))
        if label is None:
            return log_weights + log_density
        chosen = label[:, None] == jnp.arange(len(self.weights))
        log_weights = jnp.where(label[:, None] < 0, log_weights, jnp.where(chosen, 0.0, -jnp.inf))
        return log_weights + log_density

    def log_prob(
        self, x: jax.Array, sigma: jax.typing.ArrayLike = 0.0, label: jax.Array | None = None
    ) -> jax.Array:
        """log p_sigma(x), [B], for x[B, D] and sigma a scalar or [B]."""
        return jax.nn.logsumexp(self._log_joint(x, sigma, label), axis=-1)

    def denoise(
        self, x: jax.Array, sigma: jax.typing.ArrayLike, label: jax.Array | None = None
    ) -> jax.Array:
        """E[x0 | x] = sum_k pi_k(x) (s_k^2 x + sigma^2 m_k)/(s_k^2 + sigma^2), pi_k the posterior
        of the component."""
        posterior = jax.nn.softmax(self._log_joint(x, sigma, label), axis=-1)[..., None]
        noise, data = _per_sample(x, sigma)[:, None, None] ** 2, self.stds[:, None] ** 2
        return jnp.sum(
            posterior * (data * x[:, None, :] + noise * self.means) / (data + noise), axis=1
        )

    def score(
        self, x: jax.Array, sigma: jax.typing.ArrayLike, label: jax.Array | None = None
    ) -> jax.Array:
        """grad_x log p_sigma(x), [B, D]."""
        posterior = jax.nn.softmax(self._log_joint(x, sigma, label), axis=-1)[..., None]
        variance = self.stds[:, None] ** 2 + _per_sample(x, sigma)[:, None, None] ** 2
        return jnp.sum(posterior * (self.means - x[:, None, :]) / variance, axis=1)

    def sample(self, key: jax.Array, n: int) -> jax.Array:
        """n samples of p_0, [n, D]."""
        key_component, key_noise = jax.random.split(key)
        component = jax.random.choice(
            key_component, len(self.weights), (n,), p=jnp.asarray(self.weights)
        )
        means = jnp.asarray(self.means)
        noise = jax.random.normal(key_noise, (n, means.shape[-1]), means.dtype)
        return means[component] + jnp.asarray(self.stds)[component, None] * noise

    def flow(
        self, x: jax.Array, sigma_from: jax.typing.ArrayLike, sigma_to: jax.typing.ArrayLike
    ) -> jax.Array:
        """Exact solution of the probability-flow ODE, for a single Gaussian only.

        x(sigma_to) = m + (x - m) sqrt((s^2 + sigma_to^2)/(s^2 + sigma_from^2)).

        Raises:
          ValueError: if the mixture has more than one component.
        """
        if len(self.weights) != 1:
            raise ValueError(
                f'flow of {len(self.weights)} components has no closed form; '
                'use a sampler, or one Gaussian'
            )
        variance = self.stds[0] ** 2
        return self.means[0] + (x - self.means[0]) * jnp.sqrt(
            (variance + sigma_to**2) / (variance + sigma_from**2)
        )

    def denoiser(self, conditional: bool = False) -> Denoiser:
        """This mixture as a `Denoiser` without parameters, whose feature is x itself.

        Args:
          conditional: labels name components; otherwise they are ignored.
        """

        def apply(params, x, sigma, condition, key=None):
            return self.denoise(x, sigma, condition.get('label') if conditional else None), (x,)

        return Denoiser(lambda key, x, condition: {}, apply, ('label',) if conditional else ())


def mixture(weights: npt.ArrayLike, means: npt.ArrayLike, stds: npt.ArrayLike) -> GaussianMixture:
    """A checked `GaussianMixture`.

    Args:
      weights: [K], positive; normalised to sum 1.
      means: [K, D].
      stds: [K], positive, or one number for all.

    Raises:
      ValueError: on shapes that do not fit or values out of range.
    """
    weights, means = np.asarray(weights, np.float64), np.asarray(means, np.float64)
    if means.ndim != 2 or weights.shape != means.shape[:1]:
        raise ValueError(
            f'mixture: weights {weights.shape} and means {means.shape} must be [K] and [K, D]'
        )
    stds = np.broadcast_to(np.asarray(stds, np.float64), weights.shape)
    if not (np.all(weights > 0) and np.all(stds > 0) and np.all(np.isfinite(means))):
        raise ValueError('mixture: weights and stds must be positive, means finite')
    return GaussianMixture(
        jnp.asarray(weights / weights.sum()), jnp.asarray(means), jnp.asarray(stds)
    )


def _per_sample(x, sigma):
    return jnp.broadcast_to(jnp.asarray(sigma, x.dtype), x.shape[:1])
