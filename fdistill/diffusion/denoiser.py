"""The one model type: a denoiser D(x, sigma, condition) -> x0.

It estimates E[x0 | x0 + sigma eps = x]. Scores follow by Tweedie, s = (D - x)/sigma^2. Whatever a
network was trained to predict, under whatever schedule, is turned into this at the door.
"""

import functools
import math
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from fdistill.diffusion.noise import Schedule
from fdistill.types import Condition, Continuous, Denoise


def column(values: jax.Array, like: jax.Array) -> jax.Array:
    """values[B] shaped to multiply like[B,...]."""
    return jnp.reshape(values, values.shape + (1,) * (like.ndim - values.ndim))


# How each condition that guidance and dropout may leave out looks when it is left out. Others, such
# as a picture of low resolution or a second time, belong to the task and are never left out.
NULLS = {
    'label': lambda label: jnp.full_like(label, -1),
    'text': jnp.zeros_like,
    'mask': jnp.zeros_like,
    'pooled': jnp.zeros_like,
}


def null(params: Any, condition: Condition) -> dict[str, jax.Array]:
    """The condition with its `NULLS` in place: no label, the empty text."""
    return {name: NULLS.get(name, lambda value: value)(value) for name, value in condition.items()}


# Where the answer of a denoiser means something: everywhere.
EVERYWHERE = (0.0, math.inf)


class Denoiser(NamedTuple):
    """Pure functions, names of the conditions that they take, and the levels that they know.

    init(key, x[B,...], condition) -> params
    apply(params, x[B,...], sigma[B], condition, key=None) -> (x0[B,...], features)
    null(params, condition) -> condition: what guidance compares the condition with, see `null`.

    x is clean data plus sigma times unit noise. The condition is a dict of arrays [B, ...], as
    {'label': int32[B]} with -1 for "no label". `key` switches dropout on. `sigma_range` is (lowest,
    highest) sigma; beyond it the answer means nothing, as of a table of levels that has ended.
    """

    init: Callable[..., Any]
    apply: Callable[..., Any]
    takes: tuple[str, ...] = ()
    null: Callable[..., Any] = null
    sigma_range: tuple[float, float] = EVERYWHERE


def _range(sigma_range):
    """The range as two numbers; ValueError where it is none."""
    low, high = sigma_range
    if not 0 <= low < high:
        raise ValueError(f'sigma_range={tuple(sigma_range)}: need (low, high) with 0 <= low < high')
    return float(low), float(high)


def _init(network, key, x, condition):
    return network.init(key, x, jnp.zeros(x.shape[0], x.dtype), condition)


# What a network that takes a number of a condition gets for it: (value[B] or None, where none is
# given, sigma[B], sigma_data) -> [B]. Numbers that are not here it gets as they are.
NUMBERS = {
    # The lower level of a flow map; the level itself, where D is a denoiser.
    'until': lambda until, sigma, sigma_data: jnp.arctan(
        (sigma if until is None else until) / sigma_data
    ),
    # The scale of guidance; 1 is none.
    'guidance': lambda guidance, sigma, sigma_data: (
        jnp.zeros_like(sigma) if guidance is None else jnp.log(guidance)
    ),
    # Up to which time of the flow it applies; the time from which on it does is 0 by default, as
    # any other number.
    'guidance_high': lambda high, sigma, sigma_data: jnp.ones_like(sigma) if high is None else high,
}


def with_numbers(
    network: Any, condition: Condition, sigma: jax.Array, sigma_data: float = 1.0
) -> Condition:
    """The condition with what a network is to get for its `NUMBERS`, arctan(until/sigma_data) and
    ln(guidance); of a network that takes none the condition itself.

    Args:
      network: `networks.Network`.
      condition: {name: [B,...]}; without `until` that is sigma, without `guidance` that is 1.
      sigma: [B].
      sigma_data: standard deviation of the data.
    """
    taken = {name: made for name, made in NUMBERS.items() if name in network.takes}
    made = {name: of(condition.get(name), sigma, sigma_data) for name, of in taken.items()}
    return {**condition, **made} if made else condition


# c_noise of a level: (sigma[B], sigma_data) -> [B].
NOISE_INPUTS = {
    'log': lambda sigma, sigma_data: jnp.log(sigma) / 4,  # EDM
    # The time t of TrigFlow. Of the logarithm, the derivative in t, 1/(2 sin 2t), is not bounded.
    'angle': lambda sigma, sigma_data: jnp.arctan(sigma / sigma_data),
}


def precondition(
    network: Any,
    *,
    sigma_data: Annotated[float, Continuous()] = 0.5,
    boundary: Annotated[float, Continuous(off=0)] = 0.0,
    noise_input: str = 'log',
) -> Denoiser:
    """EDM preconditioning: D = c_skip x + c_out F(c_in x, c_noise) (arXiv 2206.00364, table 1 and
    equation 7).

        c_skip = sigma_data^2/(sigma^2 + sigma_data^2)
        c_out = sigma sigma_data/sqrt(sigma^2 + sigma_data^2)
        c_in = 1/sqrt(sigma^2 + sigma_data^2)
        c_noise = ln(sigma)/4

    With a boundary, the level at which a consistency model has D(x, sigma) = x exactly (arXiv
    2303.01469, appendix C):

        c_skip = sigma_data^2/((sigma - boundary)^2 + sigma_data^2)
        c_out = (sigma - boundary) sigma_data/sqrt(sigma^2 + sigma_data^2)

    A network that takes `until` or `guidance` gets arctan(until/sigma_data) and ln(guidance), see
    `with_numbers`: D is a flow map then, of condition['until'], the level to which it leads.

    All of it is float32; only the network may compute in less.

    Args:
      network: F, `networks.Network`.
      sigma_data: standard deviation of the data, > 0.
      boundary: >= 0; sigma_min for a consistency model, 0 for everything else.
      noise_input: c_noise, of `NOISE_INPUTS`: 'log', or 'angle', arctan(sigma/sigma_data), for
        continuous-time consistency models (arXiv 2410.11081, section 4.1). A network trained with
        one knows nothing of the other.

    Raises:
      ValueError: if sigma_data <= 0 or boundary < 0, or on an unknown noise_input.
    """
    if noise_input not in NOISE_INPUTS:
        raise ValueError(f'noise_input={noise_input!r}: known are {", ".join(NOISE_INPUTS)}')
    if not sigma_data > 0:
        raise ValueError(
            f'sigma_data={sigma_data}: must be > 0; it is the standard deviation of the data'
        )

    if not boundary >= 0:
        raise ValueError(f'boundary={boundary}: must be >= 0; it is a level of the noise')

    def apply(params, x, sigma, condition, key=None):
        total = jnp.sqrt(sigma**2 + sigma_data**2)
        above = sigma - boundary
        c_skip, c_out, c_in = (
            column(c, x)
            for c in (
                sigma_data**2 / (above**2 + sigma_data**2 if boundary else total**2),
                (above if boundary else sigma) * sigma_data / total,
                1 / total,
            )
        )
        c_noise = NOISE_INPUTS[noise_input](sigma, sigma_data)
        given = with_numbers(network, condition, sigma, sigma_data)
        out, features = network.apply(params, c_in * x, c_noise, given, key=key)
        return c_skip * x + c_out * out, features

    return Denoiser(functools.partial(_init, network), apply, network.takes)


# Each from (x_t, output, alpha, sigma) of x_t = alpha x + sigma eps to the estimate of x.
PREDICTIONS = {
    'x0': lambda x_t, out, alpha, sigma: out,
    'eps': lambda x_t, out, alpha, sigma: (x_t - sigma * out) / alpha,
    # v = alpha eps - sigma x
    'v': lambda x_t, out, alpha, sigma: (alpha * x_t - sigma * out) / (alpha**2 + sigma**2),
    # u = eps - x
    'flow': lambda x_t, out, alpha, sigma: (x_t - sigma * out) / (alpha + sigma),
    # x - eps: the flow of a time that runs towards the data, as SiT's (arXiv 2401.08740).
    'reverse_flow': lambda x_t, out, alpha, sigma: (x_t + sigma * out) / (alpha + sigma),
}


def from_prediction(
    network: Any,
    *,
    prediction: str,
    schedule: Schedule,
    time_scale: float = 1.0,
    time_offset: float = 0.0,
    sigma_range: tuple[float, float] | None = None,
) -> Denoiser:
    """A denoiser from a network F(x_t, t) that predicts x0, eps, v or the flow velocity under an
    alpha/sigma schedule.

    At sigma of the one noise coordinate, t = schedule.time(sigma) and x_t = alpha_t x. Numbers of a
    condition are as in `with_numbers`, with sigma_data = 1: a flow map under `flow` has the average
    velocity as its F.

    Args:
      network: `Network`; its c_noise input is time_offset + time_scale * t.
      prediction: key of `PREDICTIONS`.
      schedule: `noise.Schedule`.
      time_scale: the network's unit of time, e.g. 1000.
      time_offset: its time at t = 0. SiT's is 1, with time_scale = -1 under `flow`.
      sigma_range: levels that the network was trained on; default: those of the schedule.

    Raises:
      ValueError: on an unknown prediction, or a range that is none.
    """
    if prediction not in PREDICTIONS:
        raise ValueError(f'prediction={prediction!r}: known are {", ".join(PREDICTIONS)}')
    convert = PREDICTIONS[prediction]

    def apply(params, x, sigma, condition, key=None):
        t = schedule.time(sigma)
        alpha_t, sigma_t = column(schedule.alpha(t), x), column(schedule.sigma(t), x)
        x_t = alpha_t * x
        time, given = time_offset + time_scale * t, with_numbers(network, condition, sigma)
        out, features = network.apply(params, x_t, time, given, key=key)
        return convert(x_t, out, alpha_t, sigma_t), features

    known = _range(sigma_range or schedule.limits or EVERYWHERE)
    return Denoiser(functools.partial(_init, network), apply, network.takes, sigma_range=known)


def variance_exploding(
    network: Any, *, sigma_range: tuple[float, float] = (0.02, 100.0)
) -> Denoiser:
    """Song's preconditioning of variance exploding networks: D = x + sigma F(x, ln(sigma/2)) (arXiv
    2011.13456; arXiv 2206.00364, table 1), with sigma_data = 1 in `with_numbers`.

    Args:
      network: F, `networks.Network`.
      sigma_range: levels that the network was trained on.

    Raises:
      ValueError: on a range that is none.
    """

    def apply(params, x, sigma, condition, key=None):
        given = with_numbers(network, condition, sigma)
        out, features = network.apply(params, x, jnp.log(0.5 * sigma), given, key=key)
        return x + column(sigma, x) * out, features

    return Denoiser(
        functools.partial(_init, network), apply, network.takes, sigma_range=_range(sigma_range)
    )


def guide(
    denoiser: Denoiser,
    guidance: Annotated[float, Continuous(off=1)] = 1.0,
    guidance_interval: tuple[float, float] | None = None,
) -> Denoiser:
    """Classifier-free guidance, D = D_u + guidance (D_c - D_u) (arXiv 2207.12598); features are the
    conditional ones.

    Args:
      denoiser: `Denoiser` trained with some conditions left out (`null`).
      guidance: its scale; 1 returns the denoiser itself, 0 is unconditional.
      guidance_interval: (low, high), guided where low < sigma <= high only and conditional
        elsewhere (arXiv 2404.07724, equation 5; for ImageNet-512 (0.28, 2.9)); default: everywhere.

    Raises:
      ValueError: unless 0 <= low < high.
    """
    interval = guidance_interval
    if interval is not None and not (len(interval) == 2 and 0 <= interval[0] < interval[1]):
        raise ValueError(
            f'guidance_interval={interval}: need (low, high) with 0 <= low < high, in sigma'
        )
    if guidance == 1:
        return denoiser
    low, high = interval or (0.0, float('inf'))

    def apply(params, x, sigma, condition, key=None):
        conditional, features = denoiser.apply(params, x, sigma, condition, key=key)
        nothing = denoiser.null(params, condition)
        unconditional, _ = denoiser.apply(params, x, sigma, nothing, key=key)
        inside = column((low < sigma) & (sigma <= high), x)
        guided = unconditional + guidance * (conditional - unconditional)
        return jnp.where(inside, guided, conditional), features

    return denoiser._replace(apply=apply)


def accumulated(denoiser: Denoiser, microbatches: int) -> Denoiser:
    """The same denoiser, which sees a batch in `microbatches` parts, one after another: see
    `in_parts`. Dropout draws other masks than for the whole batch.

    Args:
      denoiser: any.
      microbatches: n >= 1, a divisor of the batch size.

    Raises:
      ValueError: microbatches < 1, or, on use, a batch that n does not divide.
    """
    if microbatches < 1:
        raise ValueError(f'microbatches={microbatches}: must be >= 1')
    if microbatches == 1:
        return denoiser

    def apply(params, x, sigma, condition, key=None):
        if x.shape[0] < microbatches:  # Not a batch of training.
            return denoiser.apply(params, x, sigma, condition, key=key)

        def one(part, n):
            x, sigma, condition = part
            own = None if key is None else jax.random.fold_in(key, n)
            return denoiser.apply(params, x, sigma, condition, key=own)

        return in_parts(one, (x, sigma, dict(condition)), microbatches)

    return denoiser._replace(apply=apply)


def in_parts(function: Callable[[Any, jax.Array], Any], given: Any, microbatches: int) -> Any:
    """function(given, 0) of a batch, computed part by part, one after another.

    Each part is computed again in the backward pass, so that memory holds the activations of one
    part only, and the gradients of the parts are summed. This is gradient accumulation inside the
    network: whatever a method computes from the whole batch stays what it is. Part i has the
    samples i, i + n, i + 2n, ..., so that a batch split over devices stays split evenly.

    Args:
      function: (a part of `given`, its index) -> a tree of arrays [part, ...].
      given: a tree of arrays [B, ...].
      microbatches: n, a divisor of B.

    Raises:
      ValueError: a batch that n does not divide.
    """

    def parts(value):
        if value.shape[0] % microbatches:
            raise ValueError(
                f'microbatches={microbatches}: does not divide a batch of {value.shape[0]}'
            )
        shape = (value.shape[0] // microbatches, microbatches, *value.shape[1:])
        return value.reshape(shape).swapaxes(0, 1)

    def whole(value):
        return value.swapaxes(0, 1).reshape(-1, *value.shape[2:])

    made = jax.lax.map(
        jax.checkpoint(lambda part: function(*part)),
        (jax.tree.map(parts, given), jnp.arange(microbatches)),
    )
    return jax.tree.map(whole, made)


def bind(
    denoiser: Denoiser, params: Any, condition: Condition, key: jax.Array | None = None
) -> Denoise:
    """denoise(x[B,...], sigma[B]) -> x0 as samplers want it, parameters, condition and dropout
    fixed: with a key, the same mask in every evaluation."""
    return lambda x, sigma: denoiser.apply(params, x, sigma, condition, key=key)[0]
