"""Generators: how a network makes samples, in one step, in few, or as a solver of the ODE."""

import functools
import itertools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient, with_sharding_constraint
from jax.sharding import PartitionSpec, get_abstract_mesh

from fdistill.diffusion import corrections, samplers
from fdistill.diffusion import denoiser as denoisers
from fdistill.diffusion.denoiser import Denoiser, column
from fdistill.diffusion.flow_map import HIGHEST, INTERVAL, between, jump
from fdistill.types import Continuous


class Generator(NamedTuple):
    """Pure functions of the parameters of one network.

    draw(key, params, batch) -> x[B,...]: samples as a loss wants them, on the conditions of a batch
      {'x', 'condition'}; carries gradient to the parameters.
    sample(params, noise[B,...] ~ N(0, 1), condition) -> x0[B,...]; a function of its arguments.
    nfe: network evaluations of one sample.
    trajectory(params, noise, condition) -> (x0[B,...], D[N,B,...]), also the estimates of x0 at
      each of N levels; None where there is one step only.
    """

    draw: Callable[..., Any]
    sample: Callable[..., Any]
    nfe: int
    trajectory: Callable[..., Any] | None = None


class Steps(NamedTuple):
    """The levels of a student: settings of every method that has one.

    sigma_init: level of the noise it starts from, > 0: 80 in DMD2 and FastGen, 2.5 in SiD and SIM,
      1 in Diff-Instruct. A checkpoint made with one level must not be sampled with another.
    levels: of the noise that is added again before each further step, falling, below sigma_init;
      () for a one-step student, (24.4, 5.84, 0.9) for four steps.
    last: share of the training samples that the last step makes in any case, in [0, 1]; the steps
      of the others are drawn evenly. 0 in DMD2.
    """

    sigma_init: Annotated[float, Continuous()] = 2.5
    levels: tuple[float, ...] = ()
    last: Annotated[float, Continuous()] = 0.9


def student(denoiser: Denoiser, steps: Steps) -> Generator:
    """A denoiser used as a generator: `one_step`, or `few_step` where there are further levels.

    Raises:
      ValueError: on levels out of range.
    """
    if not 0 < steps.sigma_init < math.inf:
        raise ValueError(
            f'sigma_init={steps.sigma_init}: must be > 0 and finite, e.g. 2.5 (SiD) or 80 (DMD2)'
        )
    if not steps.levels:
        return one_step(denoiser, steps.sigma_init)
    return few_step(denoiser, (steps.sigma_init, *steps.levels), steps.last)


def unit_noise(key: jax.Array, batch: Mapping[str, Any]) -> jax.Array:
    """What a `Generator` draws its samples from: unit noise in the shape of a batch's x."""
    x = batch['x']
    noise, axes = jax.random.normal(key, x.shape, x.dtype), get_abstract_mesh().axis_names[:2]
    # As the batch is placed: else each device would make the samples of all, for nothing says where
    # those without a condition belong. (`shard_alike` counts its uses, so that a program traced
    # again would not be found among the compiled ones.)
    return with_sharding_constraint(noise, PartitionSpec(axes)) if axes else noise


def spread(x: jax.Array, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Metrics of a student's samples x, [B,...]: their mean, their standard deviation within the
    batch, and that of the data beside it, by which a collapse is seen.

    The deviation is the root of the mean, over the elements, of an element's variance over the
    batch: samples that are all the same image have none, however much contrast it has.
    """
    # Apart from the loss: fused into it, they might change its last digits.
    x, data = jax.lax.optimization_barrier(stop_gradient((x, batch['x'])))
    deviations = [jnp.sqrt(jnp.mean(jnp.var(of, axis=0))) for of in (x, data)]
    return {'sample_mean': jnp.mean(x), 'sample_std': deviations[0], 'data_std': deviations[1]}


def one_step(denoiser: Denoiser, sigma_init: float) -> Generator:
    """x = D(sigma_init z, sigma_init, condition).

    Args:
      denoiser: any.
      sigma_init: level of the noise, > 0.
    """

    def sample(params, noise, condition):
        sigma = jnp.full(noise.shape[0], sigma_init, noise.dtype)
        return denoiser.apply(params, sigma_init * noise, sigma, condition)[0]

    def draw(key, params, batch):
        return sample(params, unit_noise(key, batch), batch['condition'])

    return Generator(draw, sample, 1)


def few_step(denoiser: Denoiser, levels: tuple[float, ...], last: float) -> Generator:
    """x_1 = levels[0] z_1, D_k = D(x_k, levels[k]), x_{k+1} = D_k + levels[k+1] z_{k+1}; the last
    D_k is the sample (consistency models' algorithm 1, arXiv 2303.01469; DMD2, arXiv 2405.14867,
    section 4.4).

    A loss gets the output of one of the student's steps, which is drawn for each sample. That step
    starts from what the student itself made in the steps before it, without gradient: this is
    DMD2's backward simulation (section 4.5), so that training and sampling see the same inputs.
    The loss matches the mixture of the outputs of all steps. In a mixture, opposite errors of two
    steps cancel, so that drawing the steps evenly, as DMD2 does, can leave the samples wrong. With
    last = 1 the mixture is the samples' own distribution; with a little less it nearly is, and the
    earlier steps are trained too. (DMD2's code draws one step for a whole batch.)

    The noise of later steps is drawn from that of the first, so that a sample is a function of its
    start.

    Args:
      denoiser: any.
      levels: [K], K >= 2, strictly falling, > 0.
      last: see `Steps`.

    Raises:
      ValueError: on levels that do not fulfil this, or last out of range.
    """
    falling = all(high > low for high, low in itertools.pairwise((math.inf, *levels, 0)))
    if len(levels) < 2 or not falling:
        raise ValueError(
            f'sigma_init={levels[0]}, levels={tuple(levels[1:])}: '
            'need at least one level, strictly falling from below sigma_init, > 0'
        )
    if not 0 <= last <= 1:
        raise ValueError(f'last={last}: must lie in [0, 1]')

    def sigmas(levels, dtype):
        # As arrays, for a setting of several lanes is no Python number.
        return jnp.stack([jnp.asarray(level, dtype) for level in levels])

    def run(key, params, noise, condition, levels, **options):
        denoise, grid = denoisers.bind(denoiser, params, condition), sigmas(levels, noise.dtype)
        return samplers.consistency(denoise, grid[0] * noise, grid, key, **options)

    def sample(params, noise, condition, **options):
        key = samplers.keys_of(noise)
        return run(key, params, noise, condition, (*levels, 0.0), **options)

    def draw(key, params, batch):
        key_z, key_path, key_step, key_noise, key_last = jax.random.split(key, 5)
        z, condition = unit_noise(key_z, batch), batch['condition']
        before, fixed = (*levels[:-1], 0.0), stop_gradient(params)
        _, made = run(key_path, fixed, z, condition, before, trajectory=True)
        made = jnp.concatenate([jnp.zeros_like(z)[None], made])  # Nothing before the first step.
        step = jax.random.randint(key_step, z.shape[:1], 0, len(levels))
        in_any_case = jax.random.uniform(key_last, z.shape[:1], z.dtype) < last
        step = jnp.where(in_any_case, len(levels) - 1, step)
        sigma = sigmas(levels, z.dtype)[step]
        start = jax.vmap(operator.getitem, (1, 0))(made, step)
        start = start + column(sigma, z) * unit_noise(key_noise, batch)
        return denoiser.apply(params, start, sigma, condition)[0]

    trajectory = functools.partial(sample, trajectory=True)
    return Generator(draw, sample, len(levels), trajectory)


class Jumps(NamedTuple):
    """How a flow map samples: settings of every method that trains one.

    levels: from which it jumps, falling, the first being that of the noise it starts from; the last
      jump leads to 0. One level is one step; `fdistill sample --steps=N` jumps N times from the
      first, evenly in t = sigma/(1 + sigma) (`flow_map.even_levels`).
    sample_guidance: the scale that a network that takes `guidance` is told, > 0.
    sample_interval: (low, high) in sigma, where it is guided, if it takes `flow_map.INTERVAL`;
      default: everywhere.
    """

    levels: tuple[float, ...] = (80.0,)
    sample_guidance: float = 1.0
    sample_interval: tuple[float, float] | None = None


def flow_map(
    denoiser: Denoiser,
    levels: tuple[float, ...],
    guidance: float = 1.0,
    interval: tuple[float, float] | None = None,
) -> Generator:
    """x = levels[0] z, and then x <- J(x, level -> next level), the last of which is 0: samples of
    a flow map (`jump`; consistency trajectory models, arXiv 2310.02279, without noise in between).

    Of an exact map every number of jumps makes the same sample. What `trajectory` says of a level
    is D, where the chord of the jump would arrive at 0.

    Args:
      denoiser: takes the condition `until`.
      levels, guidance, interval: see `Jumps`.

    Raises:
      ValueError: on levels that do not fall strictly to above 0, other values out of range, or a
        network that does not take what it is to be told.
    """
    check_until(denoiser)
    falling = all(high > low for high, low in itertools.pairwise((math.inf, *levels, 0)))
    if not levels or not falling or levels[0] > HIGHEST:
        raise ValueError(
            f'levels={levels}: need at least one, strictly falling, > 0 and at most {HIGHEST:g}'
        )
    given = _guidance(denoiser, guidance, interval)
    grid = (*levels, 0.0)

    def sample(params, noise, condition, *, trajectory=False):
        def all_at(value):
            return jnp.full(noise.shape[0], value, noise.dtype)

        told = {**condition, **{name: all_at(value) for name, value in given.items()}}

        def step(x, pair):
            high, low = map(all_at, pair)
            D = denoiser.apply(params, x, high, {**told, 'until': low})[0]
            return jump(D, x, high, low), D

        pairs = tuple(jnp.asarray(part, noise.dtype) for part in (grid[:-1], grid[1:]))
        x0, made = jax.lax.scan(step, grid[0] * noise, pairs, unroll=len(levels) == 1)
        return (x0, made) if trajectory else x0

    def draw(key, params, batch):
        return sample(params, unit_noise(key, batch), batch['condition'])

    several = functools.partial(sample, trajectory=True) if len(levels) > 1 else None
    return Generator(draw, sample, len(levels), several)


def rollout(denoiser: Denoiser, highest: float, counts: tuple[int, ...]) -> Callable[..., Any]:
    """`Generator.draw` of a flow map, (key, params, batch) -> x[B,...], whose samples are made as
    in any of several numbers of jumps (flow map backward simulation, AnyFlow, arXiv 2605.13724 and
    code).

    For each sample a number N of `counts` and one of its N jumps are drawn, which are even in t
    (`flow_map.even_levels`): from t_k to t_{k+1}. The jumps before it and those after it are one
    each, highest -> t_k -> t_{k+1} -> 0; all three carry gradient. Of an exact map every draw makes
    the same sample of a noise. (AnyFlow's code draws both for a whole batch, and its t_k are
    shifted as its levels are.)

    Args:
      denoiser: takes the condition `until`.
      highest: level of the noise, in (0, `flow_map.HIGHEST`].
      counts: numbers of jumps, each >= 1.

    Raises:
      ValueError: on counts out of range.
    """
    if not counts or min(counts) < 1:
        raise ValueError(f'rollouts={counts}: need at least one number of jumps, each >= 1')

    def draw(key, params, batch):
        key_z, key_count, key_place = jax.random.split(key, 3)
        z, condition = unit_noise(key_z, batch), batch['condition']
        count = jnp.asarray(counts)[jax.random.randint(key_count, z.shape[:1], 0, len(counts))]
        place = jax.random.randint(key_place, z.shape[:1], 0, count)
        first = jnp.full(z.shape[:1], highest, z.dtype)
        last = jnp.zeros_like(first)
        before, after = (
            jnp.minimum(between(first, last, ((place + k) / count).astype(z.dtype)), first)
            for k in (0, 1)
        )
        x = highest * z
        for high, low in ((first, before), (before, after), (after, last)):
            # Where there is no way left, a network is asked at a level that it knows.
            goes = low < high
            sigma = jnp.where(goes, high, first)
            D = denoiser.apply(params, x, sigma, {**condition, 'until': low})[0]
            x = jnp.where(column(goes, x), jump(D, x, sigma, low), x)
        return x

    return draw


def _guidance(denoiser, guidance, interval):
    """What a flow map is told of guidance, {name: number}."""
    if not guidance > 0:
        raise ValueError(f'sample_guidance={guidance}: must be > 0')
    if interval is not None and not 0 <= interval[0] < interval[1]:
        raise ValueError(f'sample_interval={interval}: need (low, high) with 0 <= low < high')
    if 'guidance' not in denoiser.takes:
        if guidance != 1:
            raise ValueError(
                f'sample_guidance={guidance}: the network is not told a scale, and has that of its '
                'training; leave it out'
            )
        return {}
    if not set(INTERVAL) <= set(denoiser.takes):
        if interval is not None:
            raise ValueError(f'sample_interval={interval}: the network does not take {INTERVAL}')
        return {'guidance': guidance}
    low, high = interval or (0.0, math.inf)
    return {'guidance': guidance, INTERVAL[0]: low / (1 + low), INTERVAL[1]: 1 / (1 + 1 / high)}


def check_until(denoiser: Denoiser) -> None:
    """Raises ValueError unless a denoiser is told to which level it leads."""
    if 'until' not in denoiser.takes:
        raise ValueError(
            'the student is not told to which level it is to lead; give its network '
            "numbers=('until',)"
        )


def best_of(
    generator: Generator,
    reward: Callable[[jax.Array, Mapping[str, jax.Array]], jax.Array],
    candidates: int,
    alpha: float = 0.0,
) -> Generator:
    """One of M samples of a generator on the same condition, chosen by r + alpha Gumbel noise: the
    best of M at alpha = 0, else candidate i with probability softmax(r/alpha)_i (soft value
    decoding, SVDD, arXiv 2408.08252, in one step), and any of them as alpha grows.

    The law of the best is F(r)^M - F(r-)^M in the order of rewards; that of the soft choice goes to
    p exp(r/alpha)/Z as M does. The first candidate is the generator's own sample of the noise, and
    the others are drawn from its bits, so that the choice is a function of the noise.

    Args:
      generator: whose samples.
      reward: (x[B,...], condition) -> r[B].
      candidates: M, >= 1.
      alpha: temperature, >= 0.

    Raises:
      ValueError: on values out of range.
    """
    if candidates < 1 or not 0 <= alpha < math.inf:
        raise ValueError(f'candidates={candidates}, alpha={alpha}: need >= 1 and a number >= 0')

    def sample(params, noise, condition):
        keys = samplers.keys_of(noise)

        def tried(start, number):
            x = generator.sample(params, start, condition)
            at = jax.vmap(lambda key: jax.random.fold_in(key, 2 * number))(keys)
            chance = jax.vmap(lambda key: jax.random.gumbel(key, (), x.dtype))(at)
            return x, reward(x, condition) + alpha * chance

        def step(best, number):
            at = jax.vmap(lambda key: jax.random.fold_in(key, 2 * number + 1))(keys)
            start = jax.vmap(lambda key: jax.random.normal(key, noise.shape[1:], noise.dtype))(at)
            x, score = tried(start, number)
            better = score > best[1]
            return (jnp.where(column(better, x), x, best[0]), jnp.where(better, score, best[1])), ()

        # One after another, so that memory does not grow with them.
        (x, _), _ = jax.lax.scan(step, tried(noise, 0), jnp.arange(1, candidates))
        return x

    def draw(key, params, batch):
        return sample(params, unit_noise(key, batch), batch['condition'])

    return Generator(draw, sample, candidates * generator.nfe)


class Corrections(NamedTuple):
    """Corrections of a solver at inference time, all off by default: settings of `pretrain`, which
    `fdistill sample --sampler=NAME` takes as well.

    shift_window, shift_variance, shift_cutoff: of `corrections.time_shift`; a window of 0 for none.
    start_mean, start_variance: of `corrections.analytic_init`; both 0 for none.
    """

    shift_window: float = 0.0
    shift_variance: float = 0.0
    shift_cutoff: float = 0.0
    start_mean: float = 0.0
    start_variance: float = 0.0


def solver(
    denoiser: Denoiser,
    sampler: samplers.Sampler,
    sigmas: np.ndarray,
    *,
    evaluations: int = 1,
    corrected: Corrections = Corrections(),
) -> Generator:
    """A sampler of the probability-flow ODE from sigmas[0] z; random samplers take their noise from
    z.

    Args:
      denoiser: any.
      sampler: of `samplers.SAMPLERS`.
      sigmas: [N + 1], grid of `noise.GRIDS`, falling to 0.
      evaluations: of the network in one evaluation of the denoiser: 2 where it is guided.
      corrected: settings.

    Raises:
      ValueError: on settings out of range.
    """

    window, variance, cutoff, mean, spread = corrected
    shift = functools.partial(
        corrections.time_shift, variance=variance, window=window, cutoff=cutoff
    )
    if not spread >= 0:
        raise ValueError(f'start_variance={spread}: must be >= 0')
    shift(None)  # Its settings are checked here.

    def sample(params, noise, condition, **options):
        key = samplers.keys_of(noise)
        denoise, x = denoisers.bind(denoiser, params, condition), sigmas[0] * noise
        if window:
            denoise = shift(denoise)
        if mean or spread:
            x = corrections.analytic_init(noise, sigmas[0], mean, spread)
        return sampler.solve(denoise, x, sigmas, key, **options)

    def draw(key, params, batch: Mapping[str, Any]):
        return sample(params, unit_noise(key, batch), batch['condition'])

    nfe = evaluations * sampler.evaluations(len(sigmas) - 1)
    return Generator(draw, sample, nfe, functools.partial(sample, trajectory=True))
