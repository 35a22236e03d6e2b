"""Cases that diffusers' schedulers and our samplers both solve, and how their answers were
recorded.

`python tests/diffusers_goldens.py` writes data/diffusers_goldens.npz; it needs torch and the extra
`diffusers`. Recorded with diffusers 0.42.1 and torch 2.13.0 on a CPU. The denoiser is a mixture's
closed form in numpy, so that the recorder shares no code with what it judges; the schedulers are
driven as pipelines drive them.
"""

import pathlib
import sys
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

GOLDENS = pathlib.Path(__file__).parent / 'data' / 'diffusers_goldens.npz'
STEPS = (6, 10, 20)
WEIGHTS, MEANS, STDS = (1.0, 2.0, 3.0), ((-1.0, 0.0), (1.0, 0.5), (0.0, -1.0)), (0.1, 0.2, 0.3)
SIGMA_DATA = 0.5
# The state of these is alpha x, of the others x.
_VARIANCE_PRESERVING = (
    'DPMSolverMultistep',
    'UniPCMultistep',
    'DEISMultistep',
    'DDIM',
    'IPNDM',
    'LCM',
)
# These round their state to float32 in each step, whatever they are given.
_SINGLE = ('EulerDiscrete', 'EulerAncestralDiscrete', 'DPMSolverMultistep')


class Case(NamedTuple):
    """`<scheduler>Scheduler(**options).step(..., **step)` and the sampler of ours that is the same
    method with options `ours`."""

    scheduler: str
    sampler: str
    options: dict[str, Any] = {}
    ours: dict[str, Any] = {}
    step: dict[str, Any] = {}


_KARRAS = {'use_karras_sigmas': True}
_EXPONENTIAL = {'use_exponential_sigmas': True}
# Schedulers lower the order of the last steps where there are fewer than 15 of them, UniPC always;
# ours where the grid ends in 0, of DPM-Solver++ the last step and of UniPC the last order - 1, as
# they do.
_SAME_ORDER = {'lower_order_final': False}
_SIGMA_MIN = {'final_sigmas_type': 'sigma_min', **_SAME_ORDER}
_SDE = {'algorithm_type': 'sde-dpmsolver++'}


def _unipc(order, variant, **options):
    ours = {'order': order, 'variant': variant}
    return Case(
        'UniPCMultistep', 'unipc', {'solver_order': order, 'solver_type': variant, **options}, ours
    )


CASES = {
    'euler': Case('EulerDiscrete', 'euler'),
    'euler karras': Case('EulerDiscrete', 'euler', _KARRAS),
    'ddim': Case('DDIM', 'euler', {'clip_sample': False}),
    'heun': Case('HeunDiscrete', 'heun'),
    'heun karras': Case('HeunDiscrete', 'heun', _KARRAS),
    'dpmpp_2m': Case('DPMSolverMultistep', 'dpmpp_2m'),
    'dpmpp_2m karras': Case('DPMSolverMultistep', 'dpmpp_2m', _KARRAS),
    'dpmpp_2m sigma_min': Case('DPMSolverMultistep', 'dpmpp_2m', _SIGMA_MIN),
    'dpmpp_2m edm': Case('EDMDPMSolverMultistep', 'dpmpp_2m'),
    'dpmpp_2m sde': Case('DPMSolverMultistep', 'dpmpp_2m', {**_KARRAS, **_SDE}, {'eta': 1.0}),
    'dpmpp_2m sde edm': Case('EDMDPMSolverMultistep', 'dpmpp_2m', _SDE, {'eta': 1.0}),
    'unipc 2 bh2': _unipc(2, 'bh2'),
    **{f'unipc {order} bh2 karras': _unipc(order, 'bh2', **_KARRAS) for order in (1, 2, 3)},
    # Theirs of bh1 gives NaN on a step to 0.
    **{
        f'unipc {order} {variant} sigma_min': _unipc(order, variant, **_SIGMA_MIN)
        for order in (1, 2, 3)
        for variant in ('bh1', 'bh2')
    },
    # DEIS never goes to 0. On Karras' levels its last step stands still.
    'deis 2': Case('DEISMultistep', 'deis', {'solver_order': 2, **_SAME_ORDER}, {'order': 2}),
    'deis 3': Case('DEISMultistep', 'deis', {'solver_order': 3, **_SAME_ORDER}, {'order': 3}),
    'deis 2 karras': Case(
        'DEISMultistep', 'deis', {'solver_order': 2, **_SAME_ORDER, **_KARRAS}, {'order': 2}
    ),
    'deis 3 karras': Case(
        'DEISMultistep', 'deis', {'solver_order': 3, **_SAME_ORDER, **_KARRAS}, {'order': 3}
    ),
    **{
        f'lms {k}': Case('LMSDiscrete', 'lms', _KARRAS, {'order': k}, {'order': k})
        for k in (2, 3, 4)
    },
    'lms 4 exponential': Case('LMSDiscrete', 'lms', _EXPONENTIAL, {'order': 4}),
    'ipndm': Case('IPNDM', 'adams_bashforth', {}, {'order': 4}),
    'ancestral': Case('EulerAncestralDiscrete', 'ancestral'),
    'ddim eta 1': Case('DDIM', 'ancestral', {'clip_sample': False}, {'eta': 1.0}, {'eta': 1.0}),
    'ddim eta .5': Case('DDIM', 'ancestral', {'clip_sample': False}, {'eta': 0.5}, {'eta': 0.5}),
    # Its own boundary condition, D <- c_skip x + c_out D, tends to ours, which is none.
    'lcm': Case('LCM', 'consistency', {'clip_sample': False, 'timestep_scaling': 1e9}),
}
# Of the same name but not the same method.
PUBLISHED_3M = Case('DPMSolverMultistep', 'dpmpp_3m', {'solver_order': 3, **_SIGMA_MIN})


def tolerance(case):
    """Absolute, of x0, which is of size one."""
    return 2e-6 if case.scheduler in _SINGLE else 1e-11


def inputs():
    """Unit noise: the start [5,2], before its multiplication by sigmas[0], and that of the steps
    [20,5,2]."""
    draws = np.random.RandomState(0).standard_normal((1 + max(STEPS), 5, 2))
    return draws[0], draws[1:]


def denoise(x, sigma):
    """E[x0 | x] of sum_k WEIGHTS_k N(MEANS_k, STDS_k^2 I), for x[B,2] and one sigma."""
    means, variances = np.array(MEANS), np.square(STDS)
    noisy = variances + sigma**2
    exponent = np.log(WEIGHTS) - np.log(noisy) - np.square(x[:, None] - means).sum(-1) / (2 * noisy)
    posterior = np.exp(exponent - exponent.max(1, keepdims=True))
    posterior /= posterior.sum(1, keepdims=True)
    shrunk = (variances[:, None] * x[:, None] + sigma**2 * means) / noisy[:, None]
    return (posterior[..., None] * shrunk).sum(1)


def solve(case, steps):
    """(sigmas[N+1], x0[5,2]) of diffusers' scheduler from inputs(), x0 being x at sigmas[-1]."""
    import diffusers
    import torch

    options = case.options
    if case.scheduler == 'IPNDM':
        # Its own first level is infinite.
        sigmas = np.append(np.geomspace(10, 0.01, steps), 0)
        options = {'trained_betas': (sigmas / np.hypot(1, sigmas)).tolist()}
    scheduler = getattr(diffusers, f'{case.scheduler}Scheduler')(**options)
    scheduler.set_timesteps(steps)
    levels = _widen(scheduler)
    vp = case.scheduler in _VARIANCE_PRESERVING
    noise, draws = inputs()
    draws = map(torch.from_numpy, draws)
    state = torch.from_numpy(levels[0] * noise / (np.hypot(1, levels[0]) if vp else 1))
    # Not all of them can be handed noise, and some draw it in float32.
    module = sys.modules[type(scheduler).__module__]
    with mock.patch.object(
        module, 'randn_tensor', lambda *args, **options: next(draws), create=True
    ):
        for level, timestep in zip(levels, scheduler.timesteps):
            given = scheduler.scale_model_input(state, timestep)
            state = scheduler.step(
                _network(case.scheduler, given.numpy(), level), timestep, state, **case.step
            ).prev_sample
    # Heun's levels are there twice, and where a last step stands still its level is.
    return np.unique(levels)[::-1], state.numpy() * (np.hypot(1, levels[-1]) if vp else 1)


def _widen(scheduler):
    """sigma at which the network is called each time, then the last; computed with in float64
    henceforth."""
    if hasattr(scheduler, 'sigmas'):
        scheduler.sigmas = scheduler.sigmas.double()
        return scheduler.sigmas.numpy()
    if hasattr(scheduler, 'alphas_cumprod'):
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
        alpha2 = scheduler.alphas_cumprod[scheduler.timesteps].numpy()
        return np.append(np.sqrt(1 / alpha2 - 1), 0)
    scheduler.betas = scheduler.betas.double()
    scheduler.alphas = (1 - scheduler.betas**2) ** 0.5
    return (scheduler.betas / scheduler.alphas).numpy()


def _network(scheduler, given, sigma):
    """What a network predicts: EDM's F for an input of unit variance, v for IPNDM, eps for the
    others."""
    import torch

    if scheduler.startswith('EDM'):
        total = np.hypot(sigma, SIGMA_DATA)
        x = total * given
        out = (denoise(x, sigma) - (SIGMA_DATA / total) ** 2 * x) * total / (sigma * SIGMA_DATA)
    else:
        root = np.hypot(1, sigma)
        x = root * given
        out = (x - denoise(x, sigma)) / sigma
        if scheduler == 'IPNDM':
            out = root * out - sigma * given
    return torch.from_numpy(out)


def record():
    """Writes GOLDENS: '<case>/sigmas' for all STEPS one after the other, and '<case>/x0'
    [STEPS,5,2]."""
    arrays = {}
    for name, case in {**CASES, 'published 3m': PUBLISHED_3M}.items():
        sigmas, x0 = zip(*(solve(case, steps) for steps in STEPS))
        arrays[f'{name}/sigmas'], arrays[f'{name}/x0'] = np.concatenate(sigmas), np.stack(x0)
    np.savez_compressed(GOLDENS, **arrays)


if __name__ == '__main__':
    record()
