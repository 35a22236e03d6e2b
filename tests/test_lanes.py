"""Lanes: a number a lane acts as the float of a run alone, in every setting that may differ; one
lane's failure is its own."""

import inspect
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdistill import build
from fdistill import config as configs
from fdistill.build.models import first_device
from fdistill.diffusion import denoiser, noise
from fdistill.methods import METHODS, Context, Method
from fdistill.training import checkpoint, lanes, loop, memory, optim
from fdistill.training.state import init_state, with_metrics
from fdistill.training.step import ema_decay, make_step
from fdistill.types import Continuous

PAIR = configs.to_json(
    configs.load(str(pathlib.Path(__file__).parents[1] / 'configs' / 'pair_exact.py'))
)
VALUES = (0.3, 0.999, 7.0)


def traced(function, *values):
    """function(Number, ...) of every lane, as a compiled program has it."""
    return jax.jit(jax.vmap(lambda lane: function(*(lanes.Number(each, lane) for each in values))))(
        jnp.arange(len(values[0]))
    )


@pytest.mark.parametrize(
    'function',
    [
        lambda n, x: 1 - n,
        lambda n, x: (2 * n + n / 3) ** (1 / n) - -n,
        lambda n, x: np.log(n / 0.1),
        lambda n, x: np.float64(0.5) * n,
        lambda n, x: n * x,
        lambda n, x: x / n**2,
        lambda n, x: n**x + x**n,
        lambda n, x: jnp.minimum(n, x) + jnp.clip(x, -n, n),
        lambda n, x: jnp.where(x < n, x, n),
        lambda n, x: jnp.full(3, n, jnp.float32),
        lambda n, x: jnp.asarray(
            jax.random.bernoulli(jax.random.key(0), n / 10, (3,)), jnp.float32
        ),
    ],
)
def test_a_number_is_the_float_of_its_lane(function):
    x = jnp.array([0.2, 1.0, 3.0])
    alone = np.array(
        [
            jax.jit(lambda x, value=value: jnp.asarray(function(value, x), jnp.float32))(x)
            for value in VALUES
        ]
    )
    np.testing.assert_allclose(
        traced(lambda n: jnp.asarray(function(n, x)), VALUES), alone, rtol=2e-7
    )


def test_python_arithmetic_keeps_the_digits():
    """In float32, 1 - .999 would be wrong in its fifth digit."""
    np.testing.assert_array_equal(
        traced(lambda n: jnp.asarray(1 - n), VALUES), np.float32([1 - value for value in VALUES])
    )


def test_a_number_decides_for_all_lanes_or_is_refused():
    assert traced(
        lambda n: jnp.ones(()) if 0 < n < 8 and n else jnp.zeros(()), VALUES
    ).tolist() == [1, 1, 1]
    assert traced(
        lambda n: jnp.ones(()) if n > 8 or n == 1 else jnp.zeros(()), VALUES
    ).tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match='decides differently for different lanes'):
        traced(lambda n: jnp.ones(()) if n > 1 else jnp.zeros(()), VALUES)
    for refused in (
        float,
        int,
        hash,
        lambda n: np.ones(3) * n,
        lambda n: np.asarray(n) * jnp.ones(3),
    ):
        with pytest.raises(TypeError):
            traced(refused, VALUES)


OPTIONS = {
    'mean': (-1.2, 0.0),
    'std': (1.2, 0.7),
    'sigma_min': (0.02, 0.1),
    'sigma_max': (8.0, 80.0),
    'rho': (7.0, 3.0),
    'steepness': (4.0, 1.0),
    'edge': (1e-5, 0.1),
}


# The quantiles of log_student_t and the levels of `levels` are tables of known numbers.
@pytest.mark.parametrize('name', sorted(noise.LAWS.keys() - {'log_student_t', 'levels'}))
def test_laws_of_lanes(name):
    law = noise.LAWS[name]
    options = OPTIONS | {'low': (0.01, 0.2), 'high': (0.9, 0.99)}
    options = {key: options[key] for key in inspect.signature(law).parameters}

    def both(*values):
        made = law(**dict(zip(options, values)))
        return made.sample(jax.random.key(0), 4), made.cdf(jnp.array([0.3, 2.0]))

    alone = [both(*values) for values in zip(*options.values())]
    for ours, theirs in zip(traced(both, *options.values()), zip(*alone)):
        np.testing.assert_allclose(ours, np.stack(theirs), rtol=2e-5)


def test_guidance_of_lanes():
    def guided(scale):
        base = denoiser.Denoiser(
            None,
            lambda params, x, sigma, condition, key: (x * (condition['label'][:, None] + 3.0), ()),
        )
        return denoiser.guide(base, scale).apply(
            {}, jnp.ones((2, 1)), jnp.ones(2), {'label': jnp.zeros(2, jnp.int32)}
        )[0]

    np.testing.assert_allclose(
        traced(guided, (1.5, 4.0)), np.stack([guided(1.5), guided(4.0)]), rtol=1e-6
    )


LAW = {'name': 'loguniform', 'sigma_min': 0.1, 'sigma_max': 3.0}
STUDENT = {'student_law': LAW, 'critic_law': LAW, 'from_teacher': False, 'sigma_init': 1.4}
GAN = {
    'gan_weight': (0.1, 1.0),
    'discriminator_weight': (1.0, 0.3),
    'r1_weight': (0.1, 0.5),
    'logit_clip': (0.01, 10.0),
}
# method -> (its options, {setting: values of two lanes}).
SETTINGS = {
    'f_distill': (
        STUDENT | {'features': 'input'} | {name: values[0] for name, values in GAN.items()},
        {f'method.{name}': values for name, values in GAN.items()},
    ),
    'sid': (
        STUDENT | {'alpha': 1.2},
        {
            'method.alpha': (0.5, 1.2),
            'method.sigma_init': (1.4, 2.0),
            'fake_score.sigma_data': (0.7, 1.0),
        },
    ),
    'sim': (
        STUDENT | {'c': 0.1},
        {
            'method.c': (0.1, 0.5),
            'denoiser.sigma_data': (1.4, 1.0),
            'method.student_law.sigma_max': (3.0, 2.0),
        },
    ),
    'rcm': (
        STUDENT | {'law': LAW, 'warmup_steps': 0, 'score_weight': 0.1, 'c': 0.1},
        {
            'method.score_weight': (0.1, 1.0),
            'method.c': (0.1, 0.5),
            'fake_score.sigma_data': (0.7, 1.0),
        },
    ),
    'pretrain': (
        {'law': LAW, 'grid': 'karras', 'label_dropout': 0.1},
        {'method.label_dropout': (0.1, 0.5), 'method.law.sigma_min': (0.1, 0.2)},
    ),
    'reflow': (
        {
            'law': {'name': 'u_shaped_time', 'steepness': 4.0, 'edge': 0.01},
            'grid': 'even_time',
            'distance': 'pseudo_huber',
            'c': 0.1,
            'pixel_weight': 1.0,
        },
        {
            'method.law.steepness': (1.0, 4.0),
            'method.law.edge': (0.01, 0.1),
            'method.c': (0.1, 0.5),
            'method.pixel_weight': (1.0, 2.0),
        },
    ),
}
QUICK = ('f_distill', 'pretrain')


@pytest.mark.parametrize(
    'name',
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SETTINGS],
)
def test_losses_of_lanes(name):
    """With settings of its own, a lane's losses are those of a run alone."""
    options, settings = SETTINGS[name]
    plain = {
        'image': {'shape': (2,), 'num_classes': 0},
        'network': {'name': 'mlp', 'width': 8, 'blocks': 1, 'embedding': 8, 'fourier': 1},
        'discriminator': {'name': 'mlp', 'width': 8, 'layers': 1, 'fourier': 1},
        'denoiser': {'sigma_data': 1.4},
        'fake_score': {'sigma_data': 0.7},
        'teacher': {'oracle': 'ring'},
        'method': {'name': name} | options,
    }
    if name in ('sid', 'sim', 'rcm'):
        del plain['discriminator']
    if name == 'reflow':
        grid = {'name': 'karras', 'steps': 3}
        plain |= {'data': {'name': 'mixture'}, 'pairs': {'sampler': 'euler', 'grid': grid}}
    assert all(build.common(plain)[key] == '*' for key in settings)
    batch = {'x': jnp.ones((16, 2)), 'condition': {}}
    params, aux = jax.jit(
        lambda: build.experiment(plain).method.init(jax.random.key(0), batch, {})
    )()

    def losses(*values):
        method = build.experiment(build.replaced(plain, dict(zip(settings, values)))).method
        return [
            loss(params, Context({}, aux=aux), batch, jax.random.key(1))[0]
            for _, loss in sorted(method.losses.items())
        ]

    alone = np.stack(
        [jax.jit(lambda values=values: losses(*values))() for values in zip(*settings.values())], 1
    )
    assert np.all(abs(alone[:, 0] - alone[:, 1]) > 1e-3 * abs(alone[:, 0]))
    np.testing.assert_allclose(traced(losses, *settings.values()), alone, rtol=1e-5)


# What each function says of its arguments: those in which lanes may differ, and where they may not.
FOLLOWS = 'critic_guidance!=1 fake_guidance!=1 '
CONTINUOUS = {
    'adam': 'learning_rate b1 b2 eps final weight_decay!=0 clip!=0',
    'Training': 'ema_half_life ema_ramp_up',
    'precondition': 'sigma_data boundary!=0',
    'guide': 'guidance!=1',
    'f_distill': FOLLOWS + 'sigma_init last sigma_data logit_clip ratio_low ratio_high bins_decay '
    'gan_weight!=0 discriminator_weight r1_weight!=0 reward_weight',
    'sid': FOLLOWS
    + 'alpha sigma_init last sigma_data reward_weight gan_weight!=0 discriminator_weight '
    'r1_weight!=0',
    'sim': FOLLOWS + 'c sigma_init last sigma_data reward_weight',
    'exact': 'sigma_init ratio_low ratio_high reward_weight',
    'mapo': 'beta scale temperature',
    'f_dpo': 'beta temperature',
    'consistency': 'c target_decay sigma_init last',
    'consistency_training': 'c target_decay sigma_init last',
    'ict': 'c target_decay sigma_init last',
    'ect': 'q k b c sigma_init last',
    'tcm': 'boundary_weight q k b c sigma_init last',
    'tscd': 'c target_decay',
    'scm': 'sigma_data c sigma_init last',
    'scd': 'sigma_data c sigma_init last',
    'dscd': 'sigma_data c sigma_init last',
    'rcm': FOLLOWS + 'score_weight c sigma_init last sigma_data',
    'mean_flow': 'share_equal share_zero!=0 power c guidance!=1 mixing!=0 condition_dropout!=0',
    'mean_flow_distill': 'share_equal share_zero!=0 power c',
    'flow_map_distill': 'share_equal share_zero!=0 power c',
    'improved_mean_flow': 'share_equal share_zero!=0 power c skew!=1 condition_dropout!=0',
    'alpha_flow': 'steepness clamp share_equal share_zero!=0 power c '
    'guidance!=1 mixing!=0 condition_dropout!=0',
    'any_flow': FOLLOWS + 'score_weight share_equal share_zero!=0 power c sigma_data',
    'degrade': 'sigma_init sigma_data',
    'disback': FOLLOWS + 'sigma_init last sigma_data',
    'ladd': 'sigma_init last r1_weight!=0 r2_weight!=0 penalty_step center_weight!=0 '
    'gradient_decay!=0',
    'add': 'distillation_weight sigma_init last r1_weight!=0 r2_weight!=0 penalty_step '
    'center_weight!=0 gradient_decay!=0',
    'adversarial_flow': 'sigma_init ot_weight ot_final r1_weight!=0 r2_weight!=0 penalty_step '
    'center_weight!=0 gradient_decay!=0',
    'shortcut': 'target_decay power c guidance!=1 mixing!=0 condition_dropout!=0',
    'pretrain': 'sigma_data label_dropout!=0',
    'fd_loss': 'decay floor smoothing sigma_init last',
    'mmd': 'sigma_init last',
    'drifting': 'sigma_init last',
    'reflow': 'sigma_data c pixel_weight!=0 perceptual_weight!=0 label_dropout!=0',
    'kd': 'sigma_init c pixel_weight!=0 perceptual_weight!=0',
    'flow_guided': 'guided_weight!=0 sigma_init c pixel_weight!=0 perceptual_weight!=0',
    'progressive': 'sigma_data',
    'loguniform': 'sigma_min sigma_max',
    'u_shaped_time': 'steepness edge',
}


@pytest.mark.parametrize('name', CONTINUOUS)
def test_what_is_continuous(name):
    functions = {'adam': optim.adam, 'Training': loop.Training, 'guide': denoiser.guide}
    functions |= {'precondition': denoiser.precondition, **METHODS, **noise.LAWS}
    found = set()
    for key, parameter in configs.parameters(functions[name]).items():
        for mark in getattr(parameter.annotation, '__metadata__', ()):
            if isinstance(mark, Continuous):
                found.add(key if mark.off is None else f'{key}!={mark.off}')
    assert found == set(CONTINUOUS[name].split())


@pytest.mark.parametrize(
    ('setting', 'values', 'together'),
    [
        ('seed', (0, 1), True),
        ('optimizer.student.learning_rate', (1e-3, 1), True),
        ('training.ema_half_life', (10.0, 20.0), True),
        ('method.student_law.sigma_max', (0.1, 0.2), True),
        # Whether gradients are clipped is another program, how far is not.
        ('optimizer.student.clip', (0.5, 1.0), True),
        ('optimizer.student.clip', (0.0, 1.0), False),
        ('optimizer.student.schedule', ('cosine', 'constant'), False),
        ('method.divergence', ('js', 'alpha(0.5)'), False),
        ('training.batch_size', (64, 128), False),
        ('training.steps', (10, 20), False),
        ('network.spread', (0.1, 0.2), False),
    ],
)
def test_what_goes_together(setting, values, together):
    first, second = (build.common(build.replaced(PAIR, {setting: value})) for value in values)
    assert (first == second) == together


class Toy:
    """A student of two numbers that are to be 1/image, and its lanes."""

    training = loop.Training(steps=20, batch_size=4, ema_half_life=1e3, log_every=10)

    def __init__(self, folder):
        def loss(params, context, batch, key):
            value = jnp.mean((params['student']['scale'] * batch['x'] - 1) ** 2)
            return value, ({'error': value}, context.aux)

        def init(key, batch, frozen):
            return {'student': {'scale': jax.random.normal(key, (2,))}}, {}

        self.method = Method(init, {'student': loss}, lambda step: ('student',), None)
        self.folder = folder

    def make(self, settings):
        optimizer = optim.adam(steps=20, learning_rate=settings['rate'], b2=settings['b2'])
        return self.method, {'student': optimizer}, ema_decay(1e3, 4)

    def lane(self, seed, image=1.0, rate=0.1, b2=0.999):
        batches = itertools.repeat({'x': np.full((4, 2), image, np.float32)})
        return lanes.Lane(
            seed,
            lambda start: batches,
            self.folder / str(seed),
            {'seed': seed},
            {'rate': rate, 'b2': b2},
        )

    def alone(self, lane):
        """The state of a run alone."""
        method, optimizers, decay = self.make(lane.settings)
        step = make_step(method, optimizers, decay)
        key = jax.random.key(lane.seed)
        batch = next(lane.batches(0))
        state = init_state(method, optimizers, key, batch, {})
        state = with_metrics(state, step, {}, batch, key)
        step = jax.jit(step, static_argnames='roles')
        for _ in range(20):
            state = step(state, {}, batch, key, roles=('student',))
        return state


def test_lanes_are_runs_and_one_that_is_not_finite_fails_alone(tmp_path):
    toy = Toy(tmp_path)
    trained = [
        toy.lane(0),
        toy.lane(1, np.nan),
        toy.lane(2, 2.0, rate=0.03, b2=0.9),
        toy.lane(3, rate=1e38),
    ]
    training = toy.training._replace(spike_sigmas=6.0)
    first, second, third, fourth = lanes.train(toy.make, {}, trained, training, quiet=True)
    assert first is None and third is None
    for error in (second, fourth):
        assert 'student' in str(error) and 'not finite' in str(error)
    for lane in (trained[0], trained[2]):
        logged = (lane.workdir / 'metrics.jsonl').read_text()
        assert len(logged.splitlines()) == logged.count('"student/spikes": 0.0') == 2
        expected = toy.alone(lane).averages['ema']
        with checkpoint.Checkpoints(lane.workdir) as checkpoints:
            found, _ = checkpoints.restore(
                {'ema': checkpoint.abstract(expected, {'scale': first_device()})}
            )
        np.testing.assert_allclose(found['ema']['scale'], expected['scale'], rtol=1e-6)
    assert not any((tmp_path / name / 'checkpoints').exists() for name in '13')


def test_lanes_for_which_there_is_no_room_write_nothing(tmp_path, monkeypatch):
    toy = Toy(tmp_path)
    monkeypatch.setattr(memory, 'free', lambda: 100)
    with pytest.raises(MemoryError, match=r'2 lanes need \d\.\d+ GiB, 0\.00 GiB are free'):
        lanes.train(toy.make, {}, [toy.lane(0), toy.lane(1)], toy.training)
    assert not list(tmp_path.iterdir())


def test_lanes_do_not_go_back(tmp_path):
    toy = Toy(tmp_path)
    with pytest.raises(ValueError, match='rollbacks=1: a lane cannot go back alone'):
        lanes.train(toy.make, {}, [toy.lane(0)], toy.training._replace(rollbacks=1))
    assert not list(tmp_path.iterdir())


def test_free_memory_is_of_the_device_or_its_host(monkeypatch):
    assert 2**20 < memory.free() < 2**50

    class Device:
        memory_stats = staticmethod(lambda: {'bytes_limit': 1000, 'bytes_in_use': 300})

    monkeypatch.setattr(jax, 'local_devices', lambda: [Device])
    assert memory.free() == 700
