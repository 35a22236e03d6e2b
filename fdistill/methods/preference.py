"""A denoiser tuned on pairs: of two samples of one condition, the one that a reward prefers and the
other. MaPO without a reference, and DPO under any f-divergence from the teacher.

The papers have fixed pairs, ranked by people. Here they are made online: two samples of the frozen
teacher, of which the frozen reward says the winner. No gradient of the reward is needed.
"""

from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient

from fdistill import divergences
from fdistill.diffusion import samplers
from fdistill.diffusion.denoiser import Denoiser, column
from fdistill.diffusion.noise import NoiseLaw
from fdistill.methods import generator, losses
from fdistill.methods.method import Method, begin
from fdistill.types import Continuous

MOST = 10.0  # of |log r|: beyond, r f' - f has lost its digits in float32


def _of_pairs(
    objective: Callable[..., jax.Array],
    student: Denoiser,
    teacher: Denoiser,
    reward: Any,
    law: NoiseLaw,
    sigmas: np.ndarray,
    sampler: samplers.Sampler,
    from_teacher: bool,
) -> Method:
    """min E objective(error) over pairs, error(model, params)[2, B] being the mean squared errors
    of the noise prediction of winners and losers, at one level and noise."""
    if reward is None:
        raise ValueError('pairs are ranked by a reward; add one to the config')
    source = generator.solver(teacher, sampler, sigmas)

    def loss(params, context, batch, key):
        key_one, key_other, key_sigma, key_noise = jax.random.split(key, 4)
        x, condition = batch['x'], batch['condition']
        known = context.frozen.get('teacher', {})
        pair = jnp.stack([source.draw(k, known, batch) for k in (key_one, key_other)])
        params_reward = context.frozen.get('reward', {})
        r = jnp.stack([reward.apply(params_reward, of, condition) for of in pair])
        first = column(r[0] >= r[1], x)
        winner = stop_gradient(jnp.where(first, pair[0], pair[1]))
        loser = stop_gradient(jnp.where(first, pair[1], pair[0]))
        sigma = law.sample(key_sigma, x.shape[0]).astype(x.dtype)
        noise = column(sigma, x) * jax.random.normal(key_noise, x.shape, x.dtype)

        def errors(model, params):
            made = [model.apply(params, of + noise, sigma, condition)[0] for of in (winner, loser)]
            # |x - D|/sigma is the error of the noise prediction.
            both = [losses.denoising(D, of, sigma**-2) for D, of in zip(made, (winner, loser))]
            return *both, made[0]

        won, lost, D = errors(student, params['student'])
        reference = lambda: errors(teacher, known)[:2]  # noqa: E731
        # Where neither is preferred, as of classes that have no reward, there is nothing to learn.
        value = jnp.mean(jnp.where(r[0] == r[1], 0, objective(won, lost, reference)))
        metrics = {
            'winner': jnp.mean(won),
            'loser': jnp.mean(lost),
            'reward_gap': jnp.mean(jnp.abs(r[0] - r[1])),
        }
        return value, (metrics | generator.spread(D, batch), context.aux)

    solver = generator.solver(student, sampler, sigmas)
    init = begin(student, from_teacher)
    return Method(init, {'student': loss}, lambda step: ('student',), solver)


def mapo(
    student: Denoiser,
    teacher: Denoiser,
    reward: Any,
    *,
    law: NoiseLaw,
    sigmas: np.ndarray,
    sampler: samplers.Sampler = samplers.SAMPLERS['heun'],
    beta: Annotated[float, Continuous()] = 0.1,
    scale: Annotated[float, Continuous()] = 0.5,
    temperature: Annotated[float, Continuous()] = 1000.0,
    from_teacher: bool = True,
) -> Method:
    """Margin-aware preference optimisation (MaPO, arXiv 2406.06424), `losses.mapo`: no reference.

    Args:
      student: `Denoiser` to tune.
      teacher: `Denoiser` that makes the pairs; its parameters are frozen['teacher'].
      reward: `rewards.Reward` that ranks them.
      law: `NoiseLaw` of sigma.
      sigmas, sampler: by which pairs are made and the student is sampled, as of `pretrain`.
      beta, scale, temperature: of the loss; the paper's code has these for errors of the noise.
      from_teacher: start the student as a copy of the teacher.

    Raises:
      ValueError: on values out of range, or a missing reward.
    """
    _check_positive(beta=beta, scale=scale, temperature=temperature)

    def objective(won, lost, reference):
        return losses.mapo(won, lost, beta, scale, temperature)

    return _of_pairs(objective, student, teacher, reward, law, sigmas, sampler, from_teacher)


def f_dpo(
    student: Denoiser,
    teacher: Denoiser,
    reward: Any,
    *,
    law: NoiseLaw,
    sigmas: np.ndarray,
    sampler: samplers.Sampler = samplers.SAMPLERS['heun'],
    divergence: str = 'reverse_kl',
    beta: Annotated[float, Continuous()] = 0.5,
    temperature: Annotated[float, Continuous()] = 500.0,
    from_teacher: bool = True,
) -> Method:
    """Direct preference optimisation of a denoiser (Diffusion-DPO, arXiv 2311.12908, for reverse
    KL) under any f-divergence (arXiv 2309.16240), `losses.f_dpo` with log(reference/model) read as

        temperature (|eps - eps_model|^2 - |eps - eps_teacher|^2)/n

    at one level and noise. The bound on log-likelihoods is the mean of that over levels, for
    temperature = n log(sigma_max/sigma_min) and a loguniform law; all divergences but reverse KL
    are biased by taking it inside rho. It is clipped to +-MOST.

    Args:
      student, teacher, reward, law, sigmas, sampler, from_teacher: as of `mapo`; the teacher is the
        reference too.
      divergence: as of `divergences.get`; of an unbounded rho, or the best model would leave states
        out whose log-probability this loss needs.
      beta, temperature: > 0.

    Raises:
      ValueError: on values out of range, a bounded rho, or a missing reward.
    """
    _check_positive(beta=beta, temperature=temperature)
    rho = divergences.reward(divergences.get(divergence))
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        low, middle, high = np.asarray(rho(jnp.asarray([1.0, 1e6, 1e12], jnp.float64)))
    if not high - middle > 0.95 * (middle - low):
        raise ValueError(
            f'divergence={divergence!r}: its rho(r) is bounded, so that the best model has no '
            'density at some samples; choose one as reverse_kl, js or forward_kl'
        )

    def objective(won, lost, reference):
        log_r = (temperature * (e - known) for e, known in zip((won, lost), reference()))
        return losses.f_dpo(rho, *(jnp.exp(jnp.clip(of, -MOST, MOST)) for of in log_r), beta)

    return _of_pairs(objective, student, teacher, reward, law, sigmas, sampler, from_teacher)


def _check_positive(**values):
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f'{name}={value}: must be > 0')


# See `distribution.TINY`.
_GRID = {'name': 'karras', 'steps': 3, 'sigma_min': 0.02, 'sigma_max': 5.0}
TINY = {
    name: {'method': {'grid': _GRID}, 'reward': {'name': 'linear', 'direction': (0.5,)}}
    for name in ('mapo', 'f_dpo')
}
