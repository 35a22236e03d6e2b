"""`fdistill check-teacher`: a good teacher is called usable, and of each broken one what is broken.

The teachers are exact: that of a mixture whose every number is known, in a file of weights.
"""

import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest

from fdistill import cli, networks
from fdistill.build.check_teacher import check_teacher
from fdistill.build.teachers import mixture_of
from fdistill.data import sources
from fdistill.evaluation import features
from fdistill.evaluation import teacher as teachers
from fdistill.networks import Network
from fdistill.report import teacher as report
from fdistill.weights import denoisers, store

S = 0.7  # standard deviation of the ring
RING = {'shape': [2], 'num_classes': 8}
DATA = {'data': {'name': 'mixture', 'mixture': 'ring', 'labelled': True}}


def scaled(factor, offset=0.0):
    """Who knows factor x + offset in place of x."""
    return lambda D: (
        lambda x, sigma, label: factor * D((x - offset) / factor, sigma / factor, label) + offset
    )


def none_is_noise(D):
    """Who was never shown a sample without its label."""
    return lambda x, sigma, label: jnp.where(
        (label < 0)[:, None], x - 3 * jnp.sin(5 * x), D(x, sigma, label)
    )


# What is done to the exact denoiser -> level, metric and words of what is said of it.
FAULTS = {
    'negative': (
        lambda D: lambda x, sigma, label: 2 * x - D(x, sigma, label),
        ('wrong', 'reading: negative noise', 'the wrong sign'),
    ),
    'sigma twice': (
        lambda D: lambda x, sigma, label: D(x, 2 * sigma, label),
        ('wrong', 'reading: half sigma', 'for twice what it is'),
    ),
    'sigma half': (
        lambda D: lambda x, sigma, label: D(x, sigma / 2, label),
        ('wrong', 'reading: twice sigma', 'for half of what it is'),
    ),
    'unit range': (scaled(0.5, 0.5), ('wrong', 'reading: data in [0, 1]', 'knows data in [0, 1]')),
    'twice as large': (
        scaled(2.0),
        ('wrong', 'reading: data of twice the size', 'of twice the size'),
    ),
    'labels permuted': (
        lambda D: lambda x, sigma, label: D(x, sigma, jnp.where(label < 0, label, 7 - label)),
        ('wrong', 'condition', 'better without the condition: its labels are others'),
    ),
    'labels unheeded': (
        lambda D: lambda x, sigma, label: D(x, sigma, jnp.full_like(label, -1)),
        ('watch', 'condition', 'does not heed the condition'),
    ),
    'labels always': (none_is_noise, ('watch', 'guidance', 'it was not trained so')),
    'untrained': (
        lambda D: lambda x, sigma, label: x * (S**2 / (sigma**2 + S**2))[:, None],
        ('watch', 'denoising', 'no more than mean and covariance'),
    ),
    'random': (
        lambda D: lambda x, sigma, label: x + sigma[:, None] * jnp.cos(3 * x[:, ::-1]),
        ('wrong', 'denoising', 'it is untrained, or of other data'),
    ),
    'low levels': (
        lambda D: lambda x, sigma, label: D(x, jnp.maximum(sigma, 0.05), label),
        ('watch', 'levels', 'beyond these levels it is worse than x itself'),
    ),
    'too strong': (
        lambda D: (
            lambda x, sigma, label: (
                x + jnp.where(abs(sigma - 0.4) < 0.1, 1.25, 1.0)[:, None] * (D(x, sigma, label) - x)
            )
        ),
        ('watch', 'gain', 'too much or too little'),
    ),
    'not finite': (
        lambda D: lambda x, sigma, label: D(x, sigma, label) / 0.0 * 0.0,
        ('wrong', 'finite', 'answers are not finite'),
    ),
}


def exact(*, num_classes: int = 0, fault: str = '') -> Network:
    """F of EDM's preconditioning by S whose D is that of the ring, under a fault."""
    mixture = mixture_of('ring')
    D = FAULTS[fault][0](mixture.denoise) if fault else mixture.denoise

    def apply(params, x, c_noise, condition, key=None):
        sigma = jnp.exp(4 * c_noise)
        total = jnp.sqrt(sigma**2 + S**2)[:, None]
        own = D(x * total, sigma, networks.label_of(condition, x))
        return (own - S**2 / total * x) * total / (S * sigma[:, None]) * params['one'], ()

    return Network(lambda key, x, c, condition: {'one': jnp.ones(())}, apply, ('label',))


@pytest.fixture
def saved(tmp_path, monkeypatch):
    monkeypatch.setitem(networks.NETWORKS, 'exact', exact)

    def save(fault='', sigma_data=S):
        model = {
            'network': {'name': 'exact', 'fault': fault},
            'denoiser': {'name': 'edm', 'sigma_data': sigma_data},
            'image': RING,
        }
        path = tmp_path / 'teacher.safetensors'
        denoisers.save(path, {'one': np.ones((), np.float32)}, model, licence='MIT')
        return path

    return save


def judged(path):
    """{metric: (level, text)}, and the whole."""
    measured, _ = check_teacher(DATA, weights=path, samples=256, quiet=True)
    result = report.judge(measured)
    return {one['what']: (one['level'], one['text']) for one in result['findings']}, result


def test_the_exact_teacher_is_usable(saved, tmp_path):
    said, result = judged(saved())
    levels = {what: level for what, (level, _) in said.items()}
    assert set(levels.values()) == {'normal'} and len(levels) == 10, said
    assert result['usable'] and result['verdict'] == 'usable'
    for row in result['denoising']['levels']:
        # At the lowest level both find next to nothing.
        assert row['teacher']['mean'] < 1.01 * row['linear']['mean']
    far = result['denoising']['levels'][-1]
    # At the highest level nothing is left but the class: (s_k / s)^2 of the error of the mean.
    mixture = mixture_of('ring')
    expected = (float(mixture.stds[0]) / result['data']['std']) ** 2
    assert far['teacher']['mean'] == pytest.approx(expected, rel=0.2)
    # What no picture shows, as latents, is written without one.
    paths = report.write(tmp_path, result, {'held-out data': np.zeros((4, 2, 2, 4))})
    assert all(path.stat().st_size for path in paths)
    assert result['cost']['evaluations'] == 35 and result['cost']['flops'] > 0
    # Its paths bend; test_reflow.py has the number of a Gaussian.
    S = result['teacher']['straightness']
    assert S['mean'] > 10 * S['error'] > 0


@pytest.mark.parametrize('fault', FAULTS)
def test_each_fault_is_named(fault, saved):
    said, result = judged(saved(fault))
    level, what, words = FAULTS[fault][1]
    assert what in said, said
    assert said[what][0] == level and words in said[what][1]
    assert result['usable'] == (level != 'wrong'), said
    if level == 'wrong':
        assert result['verdict'].startswith('not usable because ') and words in result['verdict']


def test_wrong_sigma_data_is_named(saved):
    said, result = judged(saved(sigma_data=1.5))
    found = f'{result["data"]["std"]:.3g}'
    level, text = said[f'reading: sigma_data of {found}']
    assert level == 'wrong' and f'its sigma_data is {found}, not 1.5' in text
    assert not result['usable']


def test_linear_is_the_best_for_a_gaussian():
    random = np.random.default_rng(0)
    factor = random.standard_normal((6, 6)) / 2
    mean = random.standard_normal(6)
    samples = np.float32(mean + random.standard_normal((20_000, 6)) @ factor.T)
    linear = teachers.linear(samples)
    covariance = factor @ factor.T
    for sigma in (0.1, 1.0, 10.0):
        noisy = samples + sigma * random.standard_normal(samples.shape)
        expected = mean + (noisy - mean) @ np.linalg.solve(
            covariance + sigma**2 * np.eye(6), covariance
        )
        close = 0.05 * np.sqrt(np.trace(covariance))
        np.testing.assert_allclose(linear.denoise(noisy, sigma), expected, atol=close)
        error = np.mean(np.sum((linear.denoise(noisy, sigma) - samples) ** 2, 1))
        values = np.linalg.eigvalsh(covariance)
        assert error == pytest.approx(np.sum(values * sigma**2 / (values + sigma**2)), rel=0.03)
    drawn = linear.sample(random.standard_normal((20_000, 6)))
    np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=0.05 * np.abs(covariance).max())
    # Too few samples for a covariance.
    few = teachers.linear(samples[:11])
    assert few.basis is None
    np.testing.assert_allclose(few.variances, samples[:11].var(0), rtol=1e-4)


def test_readings_undo_what_they_say():
    """Each reading of a denoiser of another convention is the denoiser itself, to rounding."""
    mixture = mixture_of('ring')
    x, sigma = np.float32(np.random.default_rng(0).normal(size=(16, 2))), np.full(16, 0.5, 'f')

    def plain(x, sigma, condition):
        return np.asarray(mixture.denoise(jnp.float32(x), jnp.float32(sigma)))

    conventions = {
        'negative noise': lambda x, s, c: 2 * x - plain(x, s, c),
        'half sigma': lambda x, s, c: plain(x, 2 * s, c),
        'twice sigma': lambda x, s, c: plain(x, s / 2, c),
        'data in [0, 1]': lambda x, s, c: (plain(2 * x - 1, 2 * s, c) + 1) / 2,
        'data in [0, 255]': lambda x, s, c: 127.5 * (plain(x / 127.5 - 1, s / 127.5, c) + 1),
        'data of half the size': lambda x, s, c: plain(2 * x, 2 * s, c) / 2,
        'data of twice the size': lambda x, s, c: 2 * plain(x / 2, s / 2, c),
        'variance preserving': lambda x, s, c: plain(x * np.sqrt(1 + s**2)[:, None], s, c),
        'channels reversed': lambda x, s, c: plain(x[..., ::-1], s, c)[..., ::-1],
        'labels from 1': lambda x, s, c: plain(x, s, c) + (c['label'] - 1)[:, None],
    }
    assert conventions.keys() == teachers.READINGS.keys()
    labels = {'label': np.zeros(16, np.int32)}
    for name, denoise in conventions.items():
        ours = teachers.READINGS[name].read(denoise)(x, sigma, labels)
        np.testing.assert_allclose(ours, plain(x, sigma, {}), atol=2e-5, err_msg=name)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / 'data.py'
    path.write_text(
        'from ml_collections import ConfigDict\n'
        f'def get_config(mixture="ring"):\n'
        f'    config = ConfigDict({DATA!r})\n'
        '    config.data.mixture = mixture\n'
        '    return config\n'
    )
    return path


def test_command_line(saved, data, tmp_path, capsys):
    out = tmp_path / 'out'
    words = [f'--config={data}', f'--out={out}', '--samples=128', '--quiet']
    assert cli.main(['check-teacher', f'--weights={saved()}', *words]) == 0
    said = capsys.readouterr().out
    assert '\nusable\n' in said and 'exact of 1 parameters' in said
    assert (out / 'check_teacher.png').read_bytes().startswith(b'\x89PNG')
    assert (out / 'check_teacher.txt').read_text() in said
    kept = json.loads((out / 'check_teacher.json').read_text())
    assert kept['usable'] and len(kept['denoising']['levels']) == 13
    # A teacher that is not finite is drawn and written too.
    assert cli.main(['check-teacher', f'--weights={saved("not finite")}', *words, '--json']) == 1
    kept = json.loads(capsys.readouterr().out)
    assert kept['verdict'].startswith('not usable because its answers are not finite')
    assert kept == json.loads((out / 'check_teacher.json').read_text())


def test_a_student_is_refused(saved, data, capsys):
    path = saved()
    arrays, metadata = store.load(path)
    store.save(path, arrays, {**metadata, 'generator': json.dumps({'sigma_init': 1.4})})
    assert cli.main(['check-teacher', f'--weights={path}', f'--config={data}']) == 2
    assert 'holds a student; a teacher is a denoiser' in capsys.readouterr().err


@pytest.mark.parametrize(
    'words, said',
    [
        ('', 'give either --workdir=DIR, a run, or --weights=FILE'),
        ('--weights={0}', '--config: missing'),
        (
            '--weights={0} --config={1} --samples=1',
            'samples=1: the neighbours of a sample need at least 4',
        ),
        ('--weights={0} --config={1}:grid', "not {'shape': [2], 'num_classes': 25}"),
        ('--weights={0} --config.data.mixture=grid', 'give --config=FILE'),
        ('--weights={0} --config={1} --out={1}', 'data.py'),
        ('--workdir=none', '--workdir=none'),
    ],
)
def test_wrong_commands_are_one_line(words, said, saved, data, capsys):
    path = saved()
    before = sorted(path.parent.iterdir())
    assert cli.main(['check-teacher', *words.format(path, data).split()]) == 2
    message = capsys.readouterr().err
    assert said in message and message.count('\n') == 1
    assert sorted(path.parent.iterdir()) == before


SHAPE, CLASSES = (8, 8, 1), 10


def gaussians(*, num_classes: int, resolution: int, channels: int) -> Network:
    """F = D where D is exact for one Gaussian a class, and one for no label."""
    d = resolution**2 * channels

    def init(key, x, c_noise, condition):
        rows = num_classes + 1
        shapes = {'means': (rows, d), 'bases': (rows, d, d), 'variances': (rows, d)}
        return {name: jnp.zeros(shape) for name, shape in shapes.items()}

    def apply(params, x_t, t, condition, key=None):
        row = networks.label_of(condition, x_t) % (num_classes + 1)
        mean, basis, variances = (params[n][row] for n in ('means', 'bases', 'variances'))
        sigma = (t / (1 - t))[:, None]
        away = x_t.reshape(len(x_t), -1) / (1 - t)[:, None] - mean
        share = variances / (variances + sigma**2)
        kept = jnp.einsum('bij,bj,bkj,bk->bi', basis, share, basis, away)
        return (mean + kept).reshape(x_t.shape), ()

    return Network(init, apply, ('label',))


def test_images(tmp_path, monkeypatch, capsys):
    """A Gaussian a class, of few numbers, is a better teacher than one for all."""
    monkeypatch.setitem(networks.NETWORKS, 'gaussians', gaussians)
    # Any features tell a Gaussian from digits.
    short = functools.partial(features.classifier_features, steps=100)
    monkeypatch.setitem(features.FEATURES, 'classifier', short)
    train = sources.load('digits')
    images = sources.to_float(train.images, train.levels)
    parts = [images[train.labels == label] for label in range(CLASSES)] + [images]
    fitted = [teachers.linear(part) for part in parts]
    arrays = {
        'means': [one.mean.ravel() for one in fitted],
        'bases': [np.eye(64) if one.basis is None else one.basis for one in fitted],
        'variances': [one.variances for one in fitted],
    }
    model = {
        'network': {'name': 'gaussians'},
        'denoiser': {'name': 'prediction', 'prediction': 'x0', 'schedule': 'flow'},
        'image': {'shape': list(SHAPE), 'num_classes': CLASSES},
    }
    path, data = tmp_path / 'teacher.safetensors', tmp_path / 'data.py'
    arrays = {name: np.float32(np.stack(rows)) for name, rows in arrays.items()}
    denoisers.save(path, arrays, model, licence='MIT')
    data.write_text(
        'from ml_collections import ConfigDict\n'
        "def get_config():\n    return ConfigDict(dict(data=dict(name='digits')))\n"
    )
    words = [f'--weights={path}', f'--config={data}', f'--out={tmp_path}', '--quiet']
    assert cli.main(['check-teacher', *words]) == 0
    result = json.loads((tmp_path / 'check_teacher.json').read_text())
    samples = result['samples']
    assert samples['real']['fd_held_out'] < samples['teacher']['fd_held_out']
    assert samples['teacher']['fd_held_out'] < samples['gaussian']['fd_held_out']
    assert result['data']['linear'] == 'covariance'
    # Without a label it is the best linear denoiser itself.
    told, middle = result['denoising']['condition'], result['denoising']['middle']
    assert told['none'] == pytest.approx(middle['linear'], rel=1e-4)
    assert abs(told['none_minus_linear']['mean']) < 1e-4
    assert told['right'] < told['none'] < told['wrong']
    # One Gaussian for all is a generator of samples like N(m, C), and no teacher.
    for rows in arrays.values():
        rows[:] = rows[-1]
    other = tmp_path / 'one.safetensors'
    denoisers.save(other, arrays, model, licence='MIT')
    assert cli.main(['check-teacher', f'--weights={other}', *words[1:]]) == 1
    said = capsys.readouterr().out
    assert 'it has learned no more than mean and covariance' in said
    assert '\nnot usable because its samples are no better than Gaussians: fd[digits-clf,' in said
