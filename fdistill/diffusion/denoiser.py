"""The one model type: a denoiser D(x, sigma, label) -> x0, an estimate of E[x0 | x0 + sigma eps =
x].

Scores follow by Tweedie, s = (D - x)/sigma^2. Whatever a network was trained to predict, under
whatever schedule, is turned into this at the door.
"""

from typing import Any, Callable, NamedTuple

import jax.numpy as jnp


class Denoiser(NamedTuple):
    """Two pure functions.

    init(key, x[B,...], label[B]) -> params
    apply(params, x[B,...], sigma[B], label[B], key=None, augment=None) -> (x0[B,...], features)

    x is clean data plus sigma times unit noise, label int32 with -1 for "no label"; `key` switches
    dropout on.
    """

    init: Callable[..., Any]
    apply: Callable[..., Any]


def _column(values, like):
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def precondition(network, *, sigma_data=0.5):
    """EDM preconditioning: D = c_skip x + c_out F(c_in x, c_noise) (arXiv 2206.00364, table 1 and
    equation 7).

    c_skip = sigma_data^2/(sigma^2 + sigma_data^2), c_out = sigma sigma_data/sqrt(sigma^2 +
    sigma_data^2), c_in = 1/sqrt(sigma^2 + sigma_data^2), c_noise = ln(sigma)/4; in float32 outside
    the network.

    Args:
      network: `Network` F.
      sigma_data: standard deviation of the data, > 0.

    Raises:
      ValueError: if sigma_data <= 0.
    """
    if not sigma_data > 0:
        raise ValueError(
            f'sigma_data={sigma_data}: must be > 0; it is the standard deviation of the data'
        )

    def init(key, x, label):
        return network.init(key, x, jnp.zeros(x.shape[0], x.dtype), label)

    def apply(params, x, sigma, label, key=None, augment=None):
        total = jnp.sqrt(sigma**2 + sigma_data**2)
        c_skip, c_out, c_in = (
            _column(c, x) for c in (sigma_data**2 / total**2, sigma * sigma_data / total, 1 / total)
        )
        out, features = network.apply(
            params, c_in * x, jnp.log(sigma) / 4, label, key=key, augment=augment
        )
        return c_skip * x + c_out * out, features

    return Denoiser(init, apply)


# Each from (x_t, output, alpha, sigma) of x_t = alpha x + sigma eps to the estimate of x.
PREDICTIONS = {
    'x0': lambda x_t, out, alpha, sigma: out,
    'eps': lambda x_t, out, alpha, sigma: (x_t - sigma * out) / alpha,
    'v': lambda x_t, out, alpha, sigma: (
        (alpha * x_t - sigma * out) / (alpha**2 + sigma**2)
    ),  # v = alpha eps - sigma x
    'flow': lambda x_t, out, alpha, sigma: (x_t - sigma * out) / (alpha + sigma),  # u = eps - x
}


def from_prediction(network, *, prediction, schedule, time_scale=1.0):
    """A denoiser from a network F(x_t, t) that predicts x0, eps, v or the flow velocity under an
    alpha/sigma schedule.

    At sigma of the one noise coordinate, t = schedule.time(sigma) and x_t = alpha_t x.

    Args:
      network: `Network`; its c_noise input is time_scale * t.
      prediction: key of `PREDICTIONS`.
      schedule: `noise.Schedule`.
      time_scale: the network's unit of time, e.g. 1000.

    Raises:
      ValueError: on an unknown prediction.
    """
    if prediction not in PREDICTIONS:
        raise ValueError(f'prediction={prediction!r}: known are {", ".join(PREDICTIONS)}')
    convert = PREDICTIONS[prediction]

    def init(key, x, label):
        return network.init(key, x, jnp.zeros(x.shape[0], x.dtype), label)

    def apply(params, x, sigma, label, key=None, augment=None):
        t = schedule.time(sigma)
        alpha_t, sigma_t = _column(schedule.alpha(t), x), _column(schedule.sigma(t), x)
        x_t = alpha_t * x
        out, features = network.apply(params, x_t, time_scale * t, label, key=key, augment=augment)
        return convert(x_t, out, alpha_t, sigma_t), features

    return Denoiser(init, apply)


def guide(denoiser, scale, interval=None):
    """Classifier-free guidance, D = D_u + scale (D_c - D_u) (arXiv 2207.12598); features are the
    conditional ones.

    Args:
      denoiser: `Denoiser` trained with some labels set to -1.
      scale: guidance scale; 1 returns the denoiser itself, 0 is unconditional.
      interval: (low, high), guided where low < sigma <= high only and conditional elsewhere (arXiv
        2404.07724, equation 5; for ImageNet-512 (0.28, 2.9)); default: everywhere.

    Raises:
      ValueError: unless 0 <= low < high.
    """
    if interval is not None and not (len(interval) == 2 and 0 <= interval[0] < interval[1]):
        raise ValueError(
            f'guidance_interval={interval}: need (low, high) with 0 <= low < high, in sigma'
        )
    if scale == 1:
        return denoiser
    low, high = interval or (0.0, float('inf'))

    def apply(params, x, sigma, label, key=None, augment=None):
        conditional, features = denoiser.apply(params, x, sigma, label, key=key, augment=augment)
        unconditional, _ = denoiser.apply(
            params, x, sigma, jnp.full_like(label, -1), key=key, augment=augment
        )
        inside = _column((low < sigma) & (sigma <= high), x)
        return jnp.where(
            inside, unconditional + scale * (conditional - unconditional), conditional
        ), features

    return Denoiser(denoiser.init, apply)


def bind(denoiser, params, label):
    """denoise(x[B,...], sigma[B]) -> x0, as samplers want it: closed over parameters and
    label[B]."""
    return lambda x, sigma: denoiser.apply(params, x, sigma, label)[0]
