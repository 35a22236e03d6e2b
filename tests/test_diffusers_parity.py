"""Our samplers against diffusers' schedulers; diffusers_goldens.py says which, and how their
answers were recorded."""

import itertools

import diffusers_goldens
import jax.numpy as jnp
import numpy as np
import pytest
from diffusers_goldens import CASES, MEANS, PUBLISHED_3M, STDS, STEPS, WEIGHTS, tolerance

from fdistill.diffusion import multistep, noise, samplers
from fdistill.diffusion.oracle import mixture
from fdistill.diffusion.samplers import SAMPLERS

# Without a scheduler of the same method. Momentum and pairs have none; of the published third order
# see below.
ALONE = {'heavy_ball', 'ghvb', 'dpmpp_3m', 'same_noise'}


@pytest.fixture(scope='module')
def goldens():
    """{case: {steps: (sigmas, x0)}}"""
    with np.load(diffusers_goldens.GOLDENS) as arrays:
        arrays = dict(arrays)

    def of(name):
        sigmas = arrays[f'{name}/sigmas']
        return dict(
            zip(
                STEPS,
                zip(
                    np.split(sigmas, np.flatnonzero(np.diff(sigmas) > 0) + 1), arrays[f'{name}/x0']
                ),
            )
        )

    return {name: of(name) for name in (*CASES, 'published 3m')}


@pytest.fixture(scope='module')
def diffusers():
    for package in ('torch', 'diffusers'):
        pytest.importorskip(
            package, reason=f'{package} is not installed: pip install -e .[diffusers] torch'
        )
    return diffusers_goldens.solve


@pytest.fixture
def ours(x64, monkeypatch):
    """ours(case, sigmas) -> x0, from the start and with the noise that the scheduler was given."""
    start, draws = diffusers_goldens.inputs()
    monkeypatch.setattr(samplers, 'draws', lambda key, x: lambda n: jnp.asarray(draws)[n])
    teacher = mixture(WEIGHTS, MEANS, STDS)

    def solve(case, sigmas):
        return SAMPLERS[case.sampler].solve(teacher.denoise, sigmas[0] * start, sigmas, **case.ours)

    return solve


def test_every_sampler_has_a_scheduler_or_a_reason():
    assert {case.sampler for case in CASES.values()} | ALONE == set(SAMPLERS)
    assert {'euler', 'heun', 'dpmpp_2m', 'unipc', 'deis'} <= {
        case.sampler for case in CASES.values()
    }


@pytest.mark.parametrize('name', CASES)
def test_agrees_with_recorded_scheduler(name, goldens, ours):
    for sigmas, x0 in goldens[name].values():
        np.testing.assert_allclose(
            ours(CASES[name], sigmas), x0, rtol=0, atol=tolerance(CASES[name])
        )


@pytest.mark.filterwarnings('ignore::DeprecationWarning:diffusers')
@pytest.mark.parametrize('name', CASES)
def test_agrees_with_installed_scheduler(name, diffusers, ours):
    for steps in STEPS:
        sigmas, x0 = diffusers(CASES[name], steps)
        np.testing.assert_allclose(
            ours(CASES[name], sigmas), x0, rtol=0, atol=tolerance(CASES[name])
        )


def test_a_different_method_would_be_noticed(goldens):
    compared = 0
    for (name, case), (other_name, other) in itertools.combinations(CASES.items(), 2):
        for steps in STEPS:
            (sigmas, x0), (other_sigmas, other_x0) = (
                goldens[name][steps],
                goldens[other_name][steps],
            )
            if np.array_equal(sigmas, other_sigmas) and (case.sampler, case.ours) != (
                other.sampler,
                other.ours,
            ):
                assert np.abs(x0 - other_x0).max() > 100 * max(tolerance(case), tolerance(other)), (
                    name,
                    other_name,
                    steps,
                )
                compared += 1
    assert compared > 100


def published_3m(sigmas):
    """`multistep.dpmpp` of order 3 with half the quadratic term of the parabola that interpolates
    D, in float64."""
    table = multistep.dpmpp(sigmas, 3)
    third = np.flatnonzero(table.weights[:, 2])
    u = np.log(sigmas)
    h = u[third] - u[third + 1]
    r0, r1 = (u[third - 1] - u[third]) / h, (u[third - 2] - u[third - 1]) / h
    # D(s) = D_n + a s + b s^2 for the share s of the step, with b the second divided difference of
    # D.
    b = np.stack([1 / r0, -1 / r0 - 1 / r1, 1 / r1], 1) / (r0 + r1)[:, None]
    gain = -np.expm1(-h)
    moment = (1 - 2 / h + 2 * gain / h**2) / gain
    weights = table.weights.copy()
    weights[third] -= moment[:, None] * b / 2
    return table._replace(weights=weights)


def walk(table, sigmas):
    """x at sigmas[-1] after the steps of a table for D, from the start of the cases."""
    x, history = sigmas[0] * diffusers_goldens.inputs()[0], []
    for n in range(len(sigmas) - 1):
        history = [diffusers_goldens.denoise(x, sigmas[n]), *history][:3]
        x = table.keep[n] * x + table.gain[n] * sum(
            w * value for w, value in zip(table.weights[n], history)
        )
    return x


def test_published_third_order_has_half_the_quadratic_term(goldens, ours):
    for sigmas, x0 in goldens['published 3m'].values():
        np.testing.assert_allclose(
            walk(published_3m(sigmas), sigmas), x0, rtol=0, atol=tolerance(PUBLISHED_3M)
        )
        assert np.abs(ours(PUBLISHED_3M, sigmas) - x0).max() > 1e-2


@pytest.mark.parametrize(
    'table, low, high',
    [(published_3m, 1.9, 2.1), (lambda sigmas: multistep.dpmpp(sigmas, 3), 2.9, 3.4)],
    ids=['published', 'exact'],
)
def test_which_costs_it_an_order(table, low, high):
    def solve(steps):
        sigmas = noise.karras_grid(steps + 1, sigma_min=0.02)[:-1]
        return walk(table(sigmas), sigmas)

    reference = walk(multistep.dpmpp(fine := noise.karras_grid(5001, sigma_min=0.02)[:-1], 3), fine)
    coarse, finer = (np.abs(solve(steps) - reference).max() for steps in (200, 400))
    assert low < np.log2(coarse / finer) < high
