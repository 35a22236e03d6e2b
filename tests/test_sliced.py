"""Sliced Wasserstein distance against closed forms, scipy and optimal assignments, in float64."""

import itertools

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import linear_sum_assignment

from fdistill.evaluation.sliced import directions, sliced_wasserstein


def draw(n, d, seed=0):
    return np.random.default_rng([n, d, seed]).normal(size=(n, d))


def test_directions_are_fixed_and_fill_the_sphere():
    lines = directions(3, 20000)
    np.testing.assert_allclose(np.linalg.norm(lines, axis=0), 1, rtol=1e-14)
    np.testing.assert_allclose(lines @ lines.T / 20000, np.eye(3) / 3, atol=0.01)
    np.testing.assert_array_equal(directions(3, 7), lines[:, :7])
    assert not np.allclose(directions(3, 7, seed=1), lines[:, :7])


@pytest.mark.parametrize('n, m', [(50, 50), (50, 35), (7, 101), (1, 9)])
def test_on_a_line_it_is_scipys(n, m):
    x, y = draw(n, 1), 2 * draw(m, 1, 1) + 0.5
    known = stats.wasserstein_distance(x[:, 0], y[:, 0])
    assert sliced_wasserstein(x, y, p=1, count=3) == pytest.approx(known, rel=1e-12)


@pytest.mark.parametrize('n, m', [(12, 12), (6, 9), (5, 8), (10, 1)])
@pytest.mark.parametrize('p', [1, 2, 3.5])
def test_on_a_line_it_is_the_best_assignment(n, m, p):
    x, y = draw(n, 1)[:, 0], draw(m, 1, 1)[:, 0] - 1
    size = np.lcm(n, m)
    cost = np.abs(np.repeat(x, size // n)[:, None] - np.repeat(y, size // m)) ** p
    known = cost[linear_sum_assignment(cost)].mean() ** (1 / p)
    found = sliced_wasserstein(x[:, None], y[:, None], p=p, count=1)
    assert found == pytest.approx(known, rel=1e-12)


@pytest.mark.parametrize('p', [1, 2, 4])
@pytest.mark.parametrize('n, m', [(40, 40), (40, 80)])
def test_a_shift_moves_every_line_by_its_component(n, m, p):
    x, shift = draw(n, 5), np.array([1.0, -2, 0, 0.5, 3])
    moved = np.repeat(x, m // n, axis=0) + shift
    known = np.mean(np.abs(shift @ directions(5)) ** p) ** (1 / p)
    assert sliced_wasserstein(x, moved, p=p) == pytest.approx(known, rel=1e-12)
    if p == 2:
        many = sliced_wasserstein(x, moved, count=20000)
        assert many == pytest.approx(np.linalg.norm(shift) / np.sqrt(5), rel=0.01)


@pytest.mark.parametrize('scale', [0.0, 0.5, 3.0])
def test_a_scaling_moves_every_quantile(scale):
    x = draw(60, 4) + 1
    known = abs(scale - 1) * np.sqrt(np.mean((x @ directions(4)) ** 2))
    assert sliced_wasserstein(x, scale * x) == pytest.approx(known, rel=1e-12)


def test_gaussians_of_other_mean_and_width():
    # W_2^2 = (m1 - m2)^2 + (s1 - s2)^2 of quantiles whose mean square is 1.
    z = stats.norm.ppf((np.arange(400) + 0.5) / 400)[:, None]
    z /= np.sqrt(np.mean(z**2))
    found = sliced_wasserstein(1.5 + 2 * z, -0.25 + 0.5 * z)
    assert found == pytest.approx(np.hypot(1.75, 1.5), rel=1e-12)


def test_gaussians_in_space():
    # Along theta N(m, S) is N(theta.m, theta'S theta); of many samples the quantiles are exact.
    d, n = 6, 200_000
    shift, stds = np.linspace(-1, 1, d), np.linspace(0.5, 2, d)
    lines = directions(d)
    known = np.sqrt(
        np.mean((shift @ lines) ** 2 + (np.linalg.norm(stds[:, None] * lines, axis=0) - 1) ** 2)
    )
    found = sliced_wasserstein(draw(n, d), shift + stds * draw(n, d, 1))
    assert found == pytest.approx(known, rel=5e-3)


def test_what_does_not_matter():
    x, y = draw(70, 3), 1 + 2 * draw(45, 3, 1)
    found = sliced_wasserstein(x, y)
    turn, _ = np.linalg.qr(draw(3, 3, 2))
    same = [
        sliced_wasserstein(y, x),
        sliced_wasserstein(x[::-1], np.roll(y, 5, axis=0)),
        sliced_wasserstein(x + 7, y + 7),
        sliced_wasserstein(np.repeat(x, 3, axis=0), y),
        sliced_wasserstein(-4 * x, -4 * y) / 4,
    ]
    assert same == pytest.approx([found] * len(same), rel=1e-12)
    assert sliced_wasserstein(x @ turn, y @ turn, count=20000) == pytest.approx(
        sliced_wasserstein(x, y, count=20000), rel=0.01
    )
    assert sliced_wasserstein(x, x[::-1]) == 0
    assert found > sliced_wasserstein(x, draw(45, 3, 1)) > 0


def test_it_is_a_metric():
    sets = [draw(20, 2), draw(30, 2, 1) + 1, 3 * draw(25, 2, 2)]
    for a, b, c in itertools.permutations(sets):
        assert sliced_wasserstein(a, c) <= sliced_wasserstein(a, b) + sliced_wasserstein(b, c)


def test_blocks_change_nothing(monkeypatch):
    x, y = draw(70, 3).astype(np.float32), draw(45, 3, 1).astype(np.float32)
    found = sliced_wasserstein(x, y)
    monkeypatch.setattr('fdistill.evaluation.sliced.BLOCK', 5)
    monkeypatch.setattr('fdistill.evaluation.sliced.ROWS', 11)
    assert sliced_wasserstein(x, y) == pytest.approx(found, rel=1e-13)


@pytest.mark.parametrize(
    'change, message',
    [
        ({'p': 0.5}, 'p=0.5'),
        ({'count': 0}, 'count=0'),
        ({'samples': np.zeros((0, 2))}, '0 features'),
        ({'samples': np.zeros((3, 1))}, 'shapes'),
        ({'reference': np.full((3, 2), np.nan)}, 'not finite'),
    ],
)
def test_sliced_errors(change, message):
    good = {'samples': np.zeros((3, 2)), 'reference': np.ones((4, 2))}
    with pytest.raises(ValueError, match=message):
        sliced_wasserstein(**{**good, **change})
