"""One-step generators without teacher or critic: the distribution of what frozen networks see in
samples is brought to that of the data (FD-loss, kernel MMD, drifting).

A student begins as what the config's `start` names, a teacher as well as a student, or as itself.
"""

import functools
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from fdistill.diffusion.denoiser import Denoiser
from fdistill.methods import distances, generator
from fdistill.methods.generator import Steps
from fdistill.methods.method import Context, Method, begin
from fdistill.networks import Encoder
from fdistill.types import Condition, Continuous


def _matched(student, encoder, steps, objective):
    """A method of one role: objective(features of samples, features of data, batch, context) ->
    (loss, metrics, aux)."""
    generate = generator.student(student, steps)

    def loss(params, context: Context, batch, key):
        x, frozen = generate.draw(key, params['student'], batch), context.frozen.get('encoder')
        seen = encoder.apply(frozen, x), encoder.apply(frozen, batch['x'])
        value, metrics, aux = objective(*seen, batch, context)
        return value, (metrics | generator.spread(x, batch), aux)

    return Method(begin(student), {'student': loss}, lambda step: ('student',), generate)


def joined(features: jax.Array, condition: Condition, scale: float, width: int) -> jax.Array:
    """Features and the label, as `scale` times a one-hot vector, side by side: [B, width].

    Args:
      features: [B, d].
      condition: has a label where width > d.
      scale: of the label beside the features.
      width: d and the number of classes.
    """
    classes = width - features.shape[1]
    if not classes:
        return features
    label = jax.nn.one_hot(condition['label'], classes, dtype=features.dtype)
    return jnp.concatenate([features, scale * label], axis=1)


def fd_loss(
    student: Denoiser,
    encoder: Encoder,
    reference: Any,
    *,
    decay: Annotated[float, Continuous()] = 0.99,
    floor: Annotated[float, Continuous()] = 0.01,
    smoothing: Annotated[float, Continuous()] = 0.0,
    label_scale: float = 0.0,
    steps: Steps = Steps(sigma_init=2.5),
) -> Method:
    """min over G of sum_k FD_k / (sg(FD_k) + floor), the Frechet distance of each network's
    features of samples and of the data (FD-loss, arXiv 2604.28190).

    The moments of the samples are those of many batches, in `aux`, and only the last batch carries
    gradient (`distances.running`): the population of the distance is not the batch. They begin as
    those of the data and become, over the first updates, the mean of all batches, and then a moving
    one; so the covariance has full rank also where a batch has fewer samples than dimensions. They
    are kept in the features' own basis: the data's axes are known up to signs, which differ between
    machines.

    Args:
      student: `Denoiser`.
      encoder: `Encoder`, of the section `features`; its parameters are frozen['encoder'].
      reference: as the encoder's features of the data; their moments are frozen['reference'].
      decay: of the moving moments, in [0, 1): about 2/(1 - decay) batches of samples count.
      floor: > 0, on the scale of the distances; 0.01 in the code. Where a distance has come near
        it, its gradient is divided by little more than noise, and outweighs all others.
      smoothing: >= 0, variance of noise that both distributions of features are thought to have
        besides. The gradient widens a direction in which samples have the share c of the data's
        variance v by up to sqrt((v + smoothing) / (c v + smoothing)) times, where a student begins
        collapsed, as a denoiser's single step is. 0 in the paper.
      label_scale: >= 0; the label joins the features as this times a one-hot vector, so that their
        means are matched class by class. 0: the distance does not see labels, as in the paper,
        whose students keep those that they begin with.
      steps: settings.

    Raises:
      ValueError: on values out of range.
    """
    if not 0 <= decay < 1 or not floor > 0 or smoothing < 0 or label_scale < 0:
        raise ValueError(
            f'decay={decay} must be in [0, 1), floor={floor} > 0, smoothing={smoothing} and '
            f'label_scale={label_scale} >= 0'
        )

    def objective(made, _, batch, context):
        aux, frozen = context.aux, context.frozen['reference']
        share = jnp.maximum(1 - decay, 1 / (aux['updates'] + 2))
        total, values, kept = 0.0, [], []
        for x, before, real in zip(made, aux['moments'], frozen, strict=True):
            x = joined(x, batch['condition'], label_scale, len(real['mean'])) - real['mean']
            seen, after = distances.running(before, distances.moments(x), share)
            mean, second = distances.rotated(*seen, real['axes'])
            covariance = second - jnp.outer(mean, mean) + smoothing * jnp.eye(len(mean))
            value = distances.frechet(mean, covariance, real['variances'] + smoothing)
            total += value / (stop_gradient(value) + floor)
            values.append(value)
            kept.append(after)
        metrics = {'frechet': sum(values)} | _each('frechet', values)
        return total, metrics, {'moments': tuple(kept), 'updates': aux['updates'] + 1}

    method = _matched(student, encoder, steps, objective)

    def init(key, batch, frozen):
        begun = tuple(
            distances.rotated(
                jnp.zeros_like(real['mean']), jnp.diag(real['variances']), real['axes'].T
            )
            for real in frozen['reference']
        )
        params, _ = method.init(key, batch, frozen)
        return params, {'moments': begun, 'updates': jnp.zeros((), jnp.int32)}

    return method._replace(init=init)


def _each(name, values):
    """Metrics of each network's own value, where there are several."""
    return {f'{name}{k}': value for k, value in enumerate(values)} if len(values) > 1 else {}


def alike(condition: Condition, count: int) -> jax.Array:
    """Which samples have one label, bool [count, count]; all, where there are no labels."""
    label = condition.get('label', jnp.zeros(count, jnp.int32))
    return label[:, None] == label


def mmd(
    student: Denoiser,
    encoder: Encoder,
    *,
    kernel: str = 'gaussian',
    widths: tuple[float, ...] = (0.25, 0.5, 1.0),
    steps: Steps = Steps(sigma_init=2.5),
) -> Method:
    """min over G of sum_k MMD^2 of features of samples and data, `distances.mmd`, jointly with
    their labels (generative moment matching networks, arXiv 1502.02761).

    Its gradient is unbiased, but noisy in few samples; `training.microbatches` lets a batch be as
    large as it needs to be, as no network then sees more than a part of it at a time.

    Args:
      student: `Denoiser`.
      encoder: `Encoder`, of the section `features`; its parameters are frozen['encoder'].
      kernel: key of `distances.KERNELS`.
      widths: of the kernels, whose sum is taken; each in units of the root mean squared distance
        between two samples of the data, > 0.
      steps: settings.

    Raises:
      ValueError: on values out of range.
    """
    if kernel not in distances.KERNELS:
        raise ValueError(f'kernel={kernel!r}: known are {", ".join(distances.KERNELS)}')
    if not widths or min(widths) <= 0:
        raise ValueError(f'widths={widths}: need at least one, each > 0')

    def discrepancy(x, y, same):
        unit = jnp.sqrt(2 * jnp.sum(jnp.var(y, axis=0)))
        kernels = [
            functools.partial(distances.KERNELS[kernel], width=width * unit) for width in widths
        ]
        return sum(distances.mmd(x, y, one, same) for one in kernels)

    def objective(made, real, batch, context):
        same = alike(batch['condition'], len(batch['x']))
        values = [discrepancy(x, y, same) for x, y in zip(made, real, strict=True)]
        return sum(values), {'mmd': sum(values)} | _each('mmd', values), context.aux

    return _matched(student, encoder, steps, objective)


def drifting(
    student: Denoiser,
    encoder: Encoder,
    *,
    kernel: str = 'laplace',
    coupling: str = 'two_sided',
    temperatures: tuple[float, ...] = (0.02, 0.05, 0.2),
    steps: Steps = Steps(sigma_init=2.5),
) -> Method:
    """min over G of mean |x - sg(x + V(x))|^2 over features x of samples, where V is the field of
    drifting (arXiv 2602.04770, algorithms 1 and 2): at its minimum no sample drifts.

    Positives are the batch of data, negatives the other samples, each of a sample's own label.
    Features are scaled so that the mean distance within both sets is sqrt(d), and the field of each
    temperature so that its mean square is 1 before they are added (appendix A.6): the loss itself
    hardly changes, and what falls is the metric `drift`. Where each label occurs once in a batch
    there is no field. Guidance by unconditional negatives (A.7) is
    left out.

    Args:
      student: `Denoiser`.
      encoder: `Encoder`, of the section `features`; its parameters are frozen['encoder'].
      kernel: key of `distances.LOG_KERNELS`.
      coupling: key of `distances.COUPLINGS`.
      temperatures: of the kernel, in units of the mean distance, > 0.
      steps: settings.

    Raises:
      ValueError: on values out of range.
    """
    for name, value, known in (
        ('kernel', kernel, distances.LOG_KERNELS),
        ('coupling', coupling, distances.COUPLINGS),
    ):
        if value not in known:
            raise ValueError(f'{name}={value!r}: known are {", ".join(known)}')
    if not temperatures or min(temperatures) <= 0:
        raise ValueError(f'temperatures={temperatures}: need at least one, each > 0')

    def objective(made, real, batch, context):
        same = alike(batch['condition'], len(batch['x']))
        found = [
            drifted(
                x,
                y,
                same,
                distances.LOG_KERNELS[kernel],
                distances.COUPLINGS[coupling],
                temperatures,
            )
            for x, y in zip(made, real, strict=True)
        ]
        values, sizes = zip(*found, strict=True)
        return sum(values), {'drift': sum(sizes)} | _each('drift', sizes), context.aux

    return _matched(student, encoder, steps, objective)


def drifted(
    x: jax.Array,
    y: jax.Array,
    same: jax.Array,
    log_kernel: Callable[[jax.Array, jax.Array], jax.Array],
    coupling: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]],
    temperatures: tuple[float, ...],
) -> tuple[jax.Array, jax.Array]:
    """(mean |x - sg(x + V)|^2 over samples and elements, root mean square of the fields before they
    are scaled), V the sum over temperatures.

    Args:
      x, y: features of samples and of data, [n, d].
      same: bool [n, n], which of them a sample sees; itself it never does.
      log_kernel, coupling: of `distances.LOG_KERNELS`, `distances.COUPLINGS`.
      temperatures: in units of the mean distance.
    """
    n, d = x.shape
    fixed, y = stop_gradient(x), stop_gradient(y)
    sees = [(y, same), (fixed, same & ~jnp.eye(n, dtype=bool))]
    squares = [distances.squared_distances(fixed, of) for of, _ in sees]
    total = sum(jnp.sum(jnp.sqrt(s) * seen) for s, (_, seen) in zip(squares, sees))
    # The mean distance; 1 in these units.
    unit = total / sum(jnp.sum(seen) for _, seen in sees)
    scale = jnp.sqrt(d) / unit
    field, sizes = jnp.zeros_like(fixed), []
    for temperature in temperatures:
        logs = [
            jnp.where(seen, log_kernel(s / unit**2, temperature), -jnp.inf)
            for s, (_, seen) in zip(squares, sees)
        ]
        v = distances.drift(*logs, scale * y, scale * fixed, coupling)
        sizes.append(jnp.sqrt(jnp.mean(v**2)))
        field += v / jnp.maximum(sizes[-1], jnp.finfo(v.dtype).tiny)
    # As in `losses.score_gap`: the gradient of the paper's loss, whose digits are not lost by
    # taking the field from x + V.
    value = field**2 - 2 * field * scale * (x - fixed)
    return jnp.mean(value), sum(sizes) / len(sizes)


# See `distribution.TINY`.
_PIXELS = {'features': {'name': 'pixels'}}
TINY = {name: _PIXELS for name in ('fd_loss', 'mmd', 'drifting')}
