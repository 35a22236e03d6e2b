"""The method that knows everything but the student: it goes where theory says, through the
library's own trainer."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from ml_collections import ConfigDict

from fdistill import build, config, divergences
from fdistill.build.teachers import mixture_of
from fdistill.diffusion import denoiser as denoisers
from fdistill.diffusion import noise
from fdistill.diffusion.oracle import GaussianMixture
from fdistill.errors import UserError
from fdistill.methods import losses
from fdistill.methods.critic import divergence as estimated_divergence
from fdistill.methods.critic import make_critic, nats, perturb
from fdistill.methods.exact import critic_lag, law_of
from fdistill.methods.generator import Generator, one_step
from fdistill.methods.method import Context, Tracking
from fdistill.networks.gaussian import gaussian
from fdistill.networks.mlp import mlp
from fdistill.training import sharding

FILE = str(pathlib.Path(__file__).parents[1] / 'configs' / 'pair_exact.py')
STD = np.sqrt(0.25**2 + 1 - 0.2**2)  # of the data


def settings(divergence='reverse_kl', **changes):
    chosen = config.load(f'{FILE}:{divergence}')
    with chosen.unlocked():
        chosen.update_from_flattened_dict(changes)
    return chosen


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """One device, where hundreds of steps take half the time of eight simulated ones."""
    mesh = jax.make_mesh(
        (1, 1), ('data', 'fsdp'), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:1]
    )
    monkeypatch.setattr(sharding, 'mesh_over', lambda **_: mesh)


@pytest.mark.optimised
@pytest.mark.parametrize(
    ('divergence', 'spread'),
    [
        ('reverse_kl', 0.25),
        ('jeffreys', 0.878),
        ('squared_hellinger', 0.976),
        ('js', 0.997),
        ('forward_kl', STD),
    ],
)
def test_standard_deviation_is_that_of_the_divergence(divergence, spread, tmp_path):
    build.train(settings(divergence), tmp_path, quiet=True)
    row = build.evaluate(None, tmp_path, quiet=True)
    assert row['spread'] == pytest.approx(spread / STD, abs=0.03)


@pytest.mark.parametrize('name', ['reverse_kl', 'js', 'jeffreys'])
def test_gradient_is_that_of_the_divergence(name, x64):
    """Against automatic differentiation of E_q f(p/q), by quadrature, in the student's mean and
    standard deviation."""
    sigma, start, f = 0.3, jnp.asarray([-0.4, 0.6]), divergences.get(name)
    p = mixture_of('pair')
    grid = jnp.linspace(-8, 8, 4001)[:, None]

    def student(params):
        return GaussianMixture(jnp.ones(1), params[:1, None], params[1:])

    def divergence(params):
        log_q = student(params).log_prob(grid, sigma)
        return jnp.sum(jnp.exp(log_q) * f(jnp.exp(p.log_prob(grid, sigma) - log_q))) * (
            grid[1, 0] - grid[0, 0]
        )

    nodes, mass = np.polynomial.hermite_e.hermegauss(60)
    z, e = (jnp.asarray(a.ravel()) for a in np.meshgrid(nodes, nodes))
    q = student(start)

    def loss(params):
        x = (params[0] + params[1] * z)[:, None]
        x_t = x + sigma * e[:, None]
        r = jnp.exp(p.log_prob(x_t, sigma) - q.log_prob(x_t, sigma))
        gap = losses.score_gap(
            x, p.denoise(x_t, sigma), q.denoise(x_t, sigma), divergences.weight(f)(r) / sigma**2
        )
        return jnp.sum(np.outer(mass, mass).ravel() / (2 * np.pi) * gap)

    np.testing.assert_allclose(
        jax.grad(loss)(start), jax.grad(divergence)(start), rtol=1e-4, atol=1e-6
    )


def test_seeds_start_elsewhere_and_end_in_either_mode(tmp_path):
    means = []
    for seed in range(4):
        folder = tmp_path / str(seed)
        build.train(
            settings(seed=seed, **{'network.spread': 1.0, 'training.steps': 200}),
            folder,
            quiet=True,
        )
        means.append(float(jnp.mean(build.from_workdir(folder).generate(jax.random.key(0), 500))))
    np.testing.assert_allclose(np.abs(means), 1, atol=0.05)
    assert len(set(np.sign(means))) == 2


@pytest.mark.parametrize(('mean', 'lag'), [(0.7, 0.0), (0.2, 0.5)])
def test_critic_lag_is_that_of_the_closed_form(mean, lag):
    """A fake score of N(mean, s^2) where the student is N(0.7, s^2): the denoisers differ by
    sigma^2/(s^2 + sigma^2) times `lag`, the difference of the means."""
    student = Generator(None, lambda params, noise, condition: 0.7 + 0.3 * noise, 1)
    sigma, x_t = jnp.array([0.2, 0.5, 2.0]), jnp.array([[0.1], [-3.0], [0.7]])
    own = law_of(student, {}, x_t)
    np.testing.assert_allclose(own.means, [[0.7]], rtol=1e-6)
    np.testing.assert_allclose(own.stds, [0.3], rtol=1e-5)
    critic = GaussianMixture(jnp.ones(1), jnp.array([[mean]]), jnp.array([0.3]))
    weight = jnp.array([1.0, 2.0, 0.5])
    found = critic_lag(critic.denoise, own, x_t, sigma, weight)
    expected = np.mean(weight * (sigma**2 / (0.3**2 + sigma**2) * lag) ** 2)
    assert float(found) == pytest.approx(float(expected), rel=1e-4, abs=1e-10)


@pytest.mark.parametrize('behind', [0.0, 0.5])
def test_critic_lag_is_what_pythagoras_says(behind):
    """Of a critic that was trained on the student, which has moved on by `behind`: its error of x
    less that of the closed form, within four standard errors, with the noise that is logged."""
    law, tracking = noise.loguniform(0.1, 2.0), Tracking(from_teacher=False, cycle='alternate')
    student = denoisers.precondition(gaussian(), sigma_data=0.5)
    generate = one_step(student, 1.0)
    fake = denoisers.precondition(mlp(width=16, blocks=1, embedding=8), sigma_data=0.5)
    critic = make_critic(generate, fake, fake, law=law, tracking=tracking)
    batch = {'x': jnp.zeros((256, 2)), 'condition': {}}
    key = jax.random.key(0)
    params = {'student': student.init(key, batch['x'], {}), 'critic': critic.init(key, batch, {})}
    optimizer = optax.adam(3e-3)

    def step(state, key):
        own, kept = state

        def loss(own):
            return critic.loss(params | {'critic': own}, Context({}), batch, key)[0]

        grads = jax.grad(loss)(own)
        updates, kept = optimizer.update(grads, kept, own)
        return (optax.apply_updates(own, updates), kept), None

    start = params['critic'], optimizer.init(params['critic'])
    train = jax.jit(lambda: jax.lax.scan(step, start, jax.random.split(key, 100))[0][0])
    trained = train()['fake_score']

    @jax.jit
    def measured(key):
        key_z, key_t = jax.random.split(key)
        x = generate.draw(key_z, params['student'], {'x': jnp.zeros((20_000, 2)), 'condition': {}})
        x_t, sigma = perturb(key_t, x + behind, law)
        own = law_of(generate, params['student'], x)
        own = own._replace(means=own.means + behind)
        run = denoisers.bind(fake, trained, {})
        found = estimated_divergence(
            x + behind, run(x_t, sigma), own.denoise(x_t, sigma), sigma, law
        )
        return *found['kl'], critic_lag(run, own, x_t, sigma, 2 * nats(sigma, law))

    lag, variance, exact = measured(key)
    assert abs(lag - exact) < 4 * np.sqrt(variance)
    assert (exact > 30 * np.sqrt(variance)) == bool(behind)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'network': {'name': 'mlp'}}, 'for the network gaussian alone'),
        ({'teacher.oracle': 'ring'}, 'has 2 dimensions, but the data has 1'),
        ({'method.ratio_low': 2.0}, 'need 0 < low < 1 < high'),
        ({'network.spread': -1.0}, 'spread=-1.0'),
    ],
)
def test_refused(changes, message, tmp_path):
    plain = settings().to_dict()
    for key, value in changes.items():
        *path, last = key.split('.')
        section = plain
        for name in path:
            section = section[name]
        section[last] = value
    with pytest.raises(UserError, match=message):
        build.train(ConfigDict(plain), tmp_path / 'run', quiet=True)
    assert not (tmp_path / 'run').exists()


@pytest.mark.optimised
def test_annealed_weights_end_where_the_second_divergence_does(tmp_path):
    """Forward KL after reverse KL covers again, and a resumed run counts its updates on."""
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    annealed = settings('anneal(reverse_kl, forward_kl, 200)')
    with annealed.unlocked():
        annealed.training.evaluate_every = 100
    build.train(annealed, whole, quiet=True)
    on_the_way = {
        path.name: json.loads(path.read_text()) for path in sorted((whole / 'eval').glob('*.json'))
    }
    row = build.evaluate(None, whole, quiet=True)
    assert row['spread'] == pytest.approx(1, abs=0.1)
    # The last of those on the way is the same, measured on a mesh; the others are of other weights.
    last = [*on_the_way.values()][-1]
    assert len(on_the_way) == annealed.training.steps // 100 and last['step'] == row['step']
    assert last['details'] == row['details'] and last['spread'] == pytest.approx(
        row['spread'], rel=1e-4
    )
    assert len({one['details']['checkpoint'] for one in on_the_way.values()}) == len(on_the_way)
    build.train(annealed, broken, quiet=True, stop_at=120)
    build.train(annealed, broken, quiet=True)
    for name in ('metrics.jsonl', 'histograms.jsonl'):
        assert (whole / name).read_bytes() == (broken / name).read_bytes()
