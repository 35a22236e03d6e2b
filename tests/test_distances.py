"""Distances of features, in float64, by quadrature or against closed forms and loops: Frechet
through moments of many batches, MMD, the field of drifting."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.lax import stop_gradient
from quick import compiled

from fdistill.diffusion.denoiser import Denoiser
from fdistill.diffusion.oracle import mixture
from fdistill.evaluation.frechet import frechet_distance
from fdistill.evaluation.kernels import kid
from fdistill.methods import distances
from fdistill.methods.features import alike, drifted, drifting, fd_loss, joined, mmd
from fdistill.methods.generator import Steps
from fdistill.methods.method import Context
from fdistill.networks import Encoder

pytestmark = pytest.mark.usefixtures('x64')


def normal(nodes):
    """Nodes and weights of an expectation over N(0, 1)."""
    z, weights = np.polynomial.hermite_e.hermegauss(nodes)
    return z, weights / np.sqrt(2 * np.pi)


def product(nodes, times):
    """The same over N(0, I): [nodes^times, times], [nodes^times]."""
    z, weights = normal(nodes)
    grids = np.meshgrid(*[z] * times, indexing='ij')
    mass = functools.reduce(np.multiply.outer, [weights] * times)
    return np.stack([grid.ravel() for grid in grids], axis=1), mass.ravel()


def close(actual, desired, tolerance=1e-6):
    """Relative to the largest component."""
    actual, desired = np.asarray(actual), np.asarray(desired)
    assert actual.dtype == np.float64
    error = np.max(np.abs(actual - desired)) / np.max(np.abs(desired))
    assert error <= tolerance, f'relative error {error:.1e}: {actual} against {desired}'


def differs(actual, desired):
    actual, desired = np.asarray(actual), np.asarray(desired)
    assert np.max(np.abs(actual - desired)) > 0.1 * np.max(np.abs(desired))


def covariance(seed, d=5, rank=None):
    factor = np.random.default_rng(seed).normal(size=(d, rank or 2 * d))
    return factor @ factor.T / d


# Frechet


@pytest.mark.parametrize('rank', [None, 3])
def test_frechet_is_that_of_the_evaluation(rank):
    """Also of samples that do not vary in two of five directions."""
    mean, C, other = np.arange(5) / 3, covariance(0, rank=rank), covariance(1)
    wanted = frechet_distance(mean, C, np.zeros(5), other)
    variances, axes = np.linalg.eigh(other)
    close(distances.frechet(jnp.asarray(mean @ axes), axes.T @ C @ axes, variances), wanted)


def test_gradient_of_frechet_is_the_closed_form():
    """2 mean and I - R (R C R)^(-1/2) R with R = V^(1/2)."""
    mean, C, variances = jnp.arange(5) / 3.0, covariance(0), np.array([0.3, 0.5, 1, 2, 4])
    by_mean, by_covariance = compiled(jax.grad(distances.frechet, (0, 1)))(mean, C, variances)
    close(by_mean, 2 * mean)
    R = np.diag(np.sqrt(variances))
    inverse = np.linalg.inv(scipy.linalg.sqrtm(R @ C @ R))
    close(by_covariance, np.eye(5) - R @ inverse @ R)
    differs(by_covariance, np.eye(5))  # What the gradient would be without the root.


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_frechet_widens_what_has_collapsed(dtype):
    """Where samples do not vary, the derivative of the root is infinite; ours is large and
    finite."""
    C = np.diag([1.0, 0.0]).astype(dtype)
    gradient = jax.grad(distances.frechet, 1)(jnp.zeros(2, dtype), C, np.ones(2, dtype))
    assert gradient.dtype == dtype and np.isfinite(gradient).all()
    assert gradient[1, 1] < -100 and abs(gradient[0, 0]) < 1e-3
    nothing = jax.grad(distances.frechet, 1)(jnp.zeros(2, dtype), 0 * C, np.ones(2, dtype))
    assert np.isfinite(nothing).all()


THETA = np.array([0.3, np.log(0.6)])
VARIANCES = np.array([1.0, 0.8])


def features(z, theta):
    """Two features of x = m + s z, [n, 2]."""
    x = theta[0] + jnp.exp(theta[1]) * z
    return jnp.stack([x, x**2 - 0.5], axis=-1)


def population(theta):
    z, mass = normal(20)
    f = features(jnp.asarray(z), theta)
    return mass @ f, (mass[:, None] * f).T @ f


def of_moments(given):
    mean, second = given
    return distances.frechet(mean, second - jnp.outer(mean, mean), VARIANCES)


def expected_gradient(share, kept=None):
    """Of batches of two samples, over all of them."""
    z, mass = product(20, 2)

    def loss(theta, z):
        batch = distances.moments(features(z, theta))
        return of_moments(distances.running(kept or batch, batch, share)[0])

    each = compiled(jax.vmap(jax.grad(loss), (None, 0)))(jnp.asarray(THETA), jnp.asarray(z))
    return mass @ each


def test_gradient_of_a_small_batch_is_that_of_the_population():
    wanted = jax.grad(lambda theta: of_moments(population(theta)))(jnp.asarray(THETA))
    close(expected_gradient(1e-12, population(jnp.asarray(THETA))), wanted)
    # The distance of two samples is another.
    differs(expected_gradient(1.0), wanted)


def test_kept_moments_are_the_mean_of_all_batches_at_first():
    rng = np.random.default_rng(0)
    batches = [distances.moments(jnp.asarray(rng.normal(size=(3, 2)))) for _ in range(6)]
    kept = batches[0]
    for k, batch in enumerate(batches[1:]):
        seen, kept = distances.running(kept, batch, 1 / (k + 2))
        close(seen[1], kept[1], 1e-12)
    close(kept[1], np.mean([second for _, second in batches], axis=0), 1e-12)


def test_moments_of_a_frozen_student_converge():
    """To those of its samples, from those of the data; the share of the data falls as 1/n."""
    variances = jnp.array([4.0, 0.25])
    real = {'mean': jnp.array([1.0, 0.0]), 'variances': variances, 'axes': jnp.eye(2)}
    network = Denoiser(
        lambda key, x, condition: {'shift': jnp.array([0.5, -1.0])},
        lambda params, x, sigma, condition, key=None: (params['shift'] + x, ()),
    )
    pixels = Encoder(lambda key, x, condition: {}, lambda _, x: (x,))
    method = fd_loss(network, pixels, None, decay=0.99, steps=Steps(sigma_init=1.0))
    batch, frozen = {'x': jnp.zeros((200, 2)), 'condition': {}}, {'reference': (real,)}
    params, aux = method.init(jax.random.key(0), batch, frozen)
    ((mean, second),) = aux['moments']
    close(second, jnp.diag(variances))

    @compiled
    def updated(aux, key):
        return method.losses['student'](params, Context(frozen, aux=aux), batch, key)[1]

    for k in range(600):
        metrics, aux = updated(aux, jax.random.key(k))
    ((mean, second),) = aux['moments']
    assert aux['updates'] == 600
    # About 200 batches count, of 200 samples each.
    np.testing.assert_allclose(mean, [-0.5, -1.0], atol=0.03)
    np.testing.assert_allclose(second - jnp.outer(mean, mean), np.eye(2), atol=0.03)
    wanted = 0.25 + 1 + (1 - 2) ** 2 + (1 - 0.5) ** 2
    assert float(metrics['frechet']) == pytest.approx(wanted, rel=0.03)


def test_signs_of_the_axes_change_nothing():
    """Other machines find others: moments begin alike, and from the same ones a step is the
    same."""
    variances, axes = np.linalg.eigh(covariance(0, 3))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)))
    network = Denoiser(
        lambda key, x, condition: {'scale': jnp.array([0.5, 1.0, 2.0])},
        lambda params, x, sigma, condition, key=None: (params['scale'] * x + x[:, ::-1], ()),
    )
    pixels = Encoder(lambda key, x, condition: {}, lambda _, x: (x,))
    method = fd_loss(network, pixels, None, steps=Steps(sigma_init=1.0))
    batch = {'x': x, 'condition': {}}

    def frozen(signs):
        mean = jnp.array([1.0, 0.0, 0.5])
        return {'reference': ({'mean': mean, 'variances': variances, 'axes': axes * signs},)}

    @compiled
    def step(frozen, params, aux):
        def loss(params):
            context = Context(frozen, aux=aux)
            value, (_, after) = method.losses['student'](params, context, batch, jax.random.key(1))
            return value, after

        return jax.value_and_grad(loss, has_aux=True)(params)

    ours = frozen(np.ones(3))
    params, aux = method.init(jax.random.key(0), batch, ours)
    ((_, second),) = aux['moments']
    close(second, covariance(0, 3))
    differs(second, np.diag(variances))
    (_, after), _ = step(ours, params, aux)
    for signs in ([1.0, -1.0, 1.0], [-1.0, -1.0, -1.0]):
        theirs = frozen(np.array(signs))
        jax.tree.map(
            close, method.init(jax.random.key(0), batch, theirs)[1]['moments'][0][1], second
        )
        found, wanted = step(theirs, params, after), step(ours, params, after)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


def test_labels_join_the_features():
    f = jnp.arange(6.0).reshape(3, 2)
    condition = {'label': jnp.array([2, 0, -1])}
    wanted = [[0, 1, 0, 0, 0.5], [2, 3, 0.5, 0, 0], [4, 5, 0, 0, 0]]
    np.testing.assert_array_equal(joined(f, condition, 0.5, 5), wanted)
    np.testing.assert_array_equal(joined(f, {}, 0.5, 2), f)


def test_smoothing_is_noise_that_both_have():
    """And bounds by how much what has collapsed is widened."""
    C, variances, noise = np.diag([1.0, 0.0]), np.array([1.0, 4.0]), 0.25
    wanted = frechet_distance(
        np.zeros(2), C + noise * np.eye(2), np.zeros(2), np.diag(variances + noise)
    )
    given = jnp.zeros(2), C + noise * np.eye(2), variances + noise
    close(distances.frechet(*given), wanted)
    slope = jax.grad(distances.frechet, 1)(*given)[1, 1]
    close(slope, 1 - np.sqrt((4 + noise) / noise))


@pytest.mark.parametrize(
    'method, settings, message',
    [
        (fd_loss, dict(reference=None, decay=1.0), 'decay=1.0'),
        (fd_loss, dict(reference=None, floor=0.0), 'floor=0.0'),
        (fd_loss, dict(reference=None, smoothing=-1.0), 'smoothing=-1.0'),
        (fd_loss, dict(reference=None, label_scale=-1.0), 'label_scale=-1.0'),
        (mmd, dict(kernel='gauss'), "kernel='gauss'"),
        (mmd, dict(widths=()), r'widths=\(\)'),
        (drifting, dict(coupling='row'), "coupling='row'"),
        (drifting, dict(kernel='cubic'), "kernel='cubic'"),
        (drifting, dict(temperatures=(0.1, 0.0)), 'temperatures'),
    ],
)
def test_refused(method, settings, message):
    with pytest.raises(ValueError, match=message):
        method(None, None, **settings)


# MMD


def gaussian_overlap(mean, variance, width):
    """E exp(-d^2 / (2 width^2)) for d ~ N(mean, variance)."""
    total = width**2 + variance
    return width / jnp.sqrt(total) * jnp.exp(-(mean**2) / (2 * total))


def closed_mmd(theta, width):
    """Of x ~ N(m, s^2) and y ~ N(0, 1)."""
    m, s = theta[0], jnp.exp(theta[1])
    return (
        gaussian_overlap(0, 2 * s**2, width)
        + gaussian_overlap(0, 2, width)
        - 2 * gaussian_overlap(m, 1 + s**2, width)
    )


def test_mmd_is_unbiased_and_the_closed_form():
    """The estimate of two samples of each, over all of them, and its gradient."""
    width, (z, mass) = 1.3, product(16, 4)
    kernel = functools.partial(distances.gaussian, width=width)

    def loss(theta):
        x = theta[0] + jnp.exp(theta[1]) * z[:, :2, None]
        return mass @ jax.vmap(lambda x, y: distances.mmd(x, y, kernel))(x, z[:, 2:, None])

    value, gradient = compiled(jax.value_and_grad(loss))(jnp.asarray(THETA))
    wanted = jax.value_and_grad(closed_mmd)(jnp.asarray(THETA), width)
    close(value, wanted[0])
    close(gradient, wanted[1])
    differs(value, closed_mmd(THETA, 2 * width))


def test_mmd_with_labels_is_that_of_both_together():
    """Two classes, one as likely as the other, samples of a class being THETA's or N(0, 1): over
    classes, k((x, c), (y, e)) = k(x, y) [c = e] has 1/4 of the discrepancy of each class."""
    width, (z, mass) = 1.3, product(16, 4)
    kernel = functools.partial(distances.gaussian, width=width)
    means = jnp.array([THETA[0], -0.5])
    total = 0.0
    for labels in itertools.product((0, 1), repeat=2):
        x = means[jnp.array(labels)][None, :, None] + jnp.exp(THETA[1]) * z[:, :2, None]
        same = alike({'label': jnp.array(labels)}, 2)
        one = functools.partial(distances.mmd, kernel=kernel, alike=same)
        total += mass @ jax.vmap(one)(x, jnp.asarray(z[:, 2:, None])) / 4
    wanted = sum(closed_mmd([mean, THETA[1]], width) for mean in means) / 4
    close(total, wanted)


def test_cubic_kernel_is_that_of_kid():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 12, 5)) + np.array([0.3, 0.0])[:, None, None]
    kernel = functools.partial(distances.cubic, width=1.0)
    cross = np.asarray(kernel(jnp.asarray(x), jnp.asarray(y)))
    # KID's last mean has the pairs i = j as well.
    without = (cross.sum() - np.trace(cross)) / (12 * 11)
    ours = distances.mmd(jnp.asarray(x), jnp.asarray(y), kernel) + 2 * (without - cross.mean())
    assert float(ours) == pytest.approx(kid(x, y, subsets=1, subset_size=12)[0], rel=1e-9)


@pytest.mark.parametrize('name', distances.KERNELS)
def test_kernels_are_positive(name):
    """Their matrices have no eigenvalue below 0: else the discrepancy is no distance."""
    x = np.random.default_rng(0).normal(size=(20, 3))
    matrix = np.asarray(distances.KERNELS[name](jnp.asarray(x), jnp.asarray(x), 0.8))
    np.testing.assert_allclose(matrix, matrix.T)
    assert np.linalg.eigvalsh(matrix).min() > -1e-9


# Drifting


def teacher():
    return mixture([0.35, 0.65], [[-1.2], [1.0]], [0.35, 0.5])


def student():
    return mixture([0.5, 0.5], [[-0.8], [0.7]], [0.45, 0.4])


def nodes_of(law):
    """A mixture in one dimension as weighted points: [n, 1], log weights [n]."""
    z, mass = normal(60)
    points = law.means + law.stds[:, None] * z
    weights = law.weights[:, None] * mass
    return jnp.asarray(points).reshape(-1, 1), jnp.log(weights).ravel()


def field(x, temperature, kernel, coupling, laws):
    """V(x) with two mixtures in place of samples."""
    sets = [nodes_of(law) for law in laws]
    log_kernel = distances.LOG_KERNELS[kernel]
    logits = [
        log_kernel(distances.squared_distances(x, y), temperature) + weight for y, weight in sets
    ]
    return distances.drift(*logits, *(y for y, _ in sets), distances.COUPLINGS[coupling])


POINTS = np.linspace(-2, 2, 9)[:, None]


def test_field_of_a_gaussian_kernel_is_the_gap_of_denoisers():
    """h^2 (score of p_h - score of q_h) = D_p - D_q at the level h: what VSD moves samples by."""
    h, (p, q) = 0.6, (teacher(), student())
    sigma = jnp.full(len(POINTS), h)
    wanted = p.denoise(jnp.asarray(POINTS), sigma) - q.denoise(jnp.asarray(POINTS), sigma)
    close(field(jnp.asarray(POINTS), h, 'gaussian', 'mean_shift', (p, q)), wanted)
    differs(field(jnp.asarray(POINTS), h, 'laplace', 'mean_shift', (p, q)), wanted)
    differs(field(jnp.asarray(POINTS), h, 'gaussian', 'two_sided', (p, q)), wanted)


@pytest.mark.parametrize('kernel', distances.LOG_KERNELS)
@pytest.mark.parametrize('coupling', distances.COUPLINGS)
def test_field_changes_its_sign_and_vanishes_at_equilibrium(kernel, coupling):
    p, q = teacher(), student()
    there = field(jnp.asarray(POINTS), 0.6, kernel, coupling, (p, q))
    back = field(jnp.asarray(POINTS), 0.6, kernel, coupling, (q, p))
    assert np.abs(there).max() > 1e-3
    np.testing.assert_allclose(there, -back, atol=1e-12)
    same = field(jnp.asarray(POINTS), 0.6, kernel, coupling, (p, p))
    assert np.abs(same).max() < 1e-12


def algorithm_2(x, y_positive, y_negative, temperature):
    """By loops; the negatives are the samples."""
    n, kernel = len(x), {}
    sets = {'+': y_positive, '-': y_negative}
    for i, (sign, ys) in itertools.product(range(n), sets.items()):
        for j, y in enumerate(ys):
            own = sign == '-' and i == j
            k = 0.0 if own else np.exp(-np.linalg.norm(x[i] - y) / temperature)
            kernel[i, sign, j] = k

    def weight(i, sign, j):
        row = sum(k for (a, _, _), k in kernel.items() if a == i)
        column = sum(k for (_, s, b), k in kernel.items() if (s, b) == (sign, j))
        return kernel[i, sign, j] / np.sqrt(row * column)

    found = np.zeros_like(x)
    for i in range(n):
        A = {s: [weight(i, s, j) for j in range(len(ys))] for s, ys in sets.items()}
        found[i] = sum(A['-']) * (A['+'] @ y_positive) - sum(A['+']) * (A['-'] @ y_negative)
    return found


def drift_of(x, y, same, temperature):
    sees = [(y, same), (x, same & ~np.eye(len(x), dtype=bool))]
    logs = [
        jnp.where(seen, -jnp.sqrt(distances.squared_distances(x, of)) / temperature, -jnp.inf)
        for of, seen in sees
    ]
    return distances.drift(*logs, y, x, distances.two_sided)


def test_two_sided_field_is_algorithm_2():
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=(2, 6, 3)))
    everything = np.ones((6, 6), bool)
    close(
        drift_of(x, y, everything, 0.7),
        algorithm_2(np.asarray(x), np.asarray(y), np.asarray(x), 0.7),
    )


def test_each_class_drifts_by_itself():
    """As if it were alone; the only sample of a class does not drift."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 6, 3))
    label = np.array([0, 1, 0, 2, 1, 0])
    found = drift_of(jnp.asarray(x), jnp.asarray(y), label[:, None] == label, 0.7)
    for one in (0, 1):
        of = label == one
        close(np.asarray(found)[of], algorithm_2(x[of], y[of], x[of], 0.7))
    np.testing.assert_array_equal(found[3], 0)


def test_drifting_moves_features_along_the_normalised_field():
    """The gradient of the paper's loss, and a field of mean square 1 for each temperature."""
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=(2, 8, 3)))
    same = jnp.ones((8, 8), bool)
    given = same, distances.LOG_KERNELS['laplace'], distances.two_sided, (0.2,)

    def paper(x):
        """Equations 20 to 26 of its appendix."""
        fixed = stop_gradient(x)
        between = [jnp.sqrt(distances.squared_distances(fixed, of)) for of in (y, fixed)]
        mean = (between[0].sum() + between[1].sum()) / (64 + 56)
        scale = jnp.sqrt(3) / mean
        v = drift_of(scale * fixed, scale * y, same, 0.2 * jnp.sqrt(3))
        v /= jnp.sqrt(jnp.mean(v**2))
        return jnp.mean((scale * x - stop_gradient(scale * x + v)) ** 2)

    value, gradient = compiled(jax.value_and_grad(lambda x: drifted(x, y, *given)[0]))(x)
    wanted = compiled(jax.value_and_grad(paper))(x)
    close(value, 1.0)
    close(value, wanted[0])
    close(gradient, wanted[1])
