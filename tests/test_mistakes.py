"""What a user gets wrong in a config is one line with a remedy, and leaves no folder."""

import math

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from fdistill import build, report, sweep
from fdistill.errors import UserError

LAW = dict(name='lognormal', mean=0.0, std=1.0)


def config(method, **sections):
    """A student of the ring."""
    student = dict(student_law=LAW, critic_law=LAW, from_teacher=False)
    plain = dict(
        seed=0,
        data=dict(name='mixture', mixture='ring', labelled=False, n=100),
        network=dict(name='mlp', width=8, blocks=1, embedding=8),
        teacher=dict(oracle='ring'),
        method=student | method,
        optimizer={role: dict(learning_rate=1e-4) for role in ('student', 'critic')},
        training=dict(steps=2, batch_size=16, ema_half_life=1e3, checkpoint_every=0),
    )
    for name, values in sections.items():
        known = plain.get(name)
        both = isinstance(known, dict) and isinstance(values, dict) and values
        plain[name] = known | values if both else values
    return ConfigDict(plain).lock()


RATES = [
    {role: dict(learning_rate=rate) for role in ('student', 'critic')}
    for rate in (math.inf, math.nan, 1e39, 10**400)
]
BEST = dict(keep_best='kll', evaluate_every=2, checkpoint_every=2)
JS = dict(name='f_distill', divergence='js', features='fake_score')


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        # Found when a loss is traced, and told like any other.
        (config(JS, discriminator=dict(name='conv')), 'must be square'),
        (config(dict(name='sim'), training=dict(microbatches=0)), 'microbatches=0: must be >= 1'),
        (
            config(dict(name='sim'), training=dict(microbatches=3)),
            'microbatches=3: does not divide',
        ),
        (config(dict(name='sim'), discriminator=dict(name='mlp')), "the method 'sim' has none"),
        (config(dict(name='sim', sampler='heun')), 'config.method.sampler: unknown'),
        (config(dict(name='sim', levels=(3.0,))), 'strictly falling from below sigma_init'),
        (config(dict(name='sim'), fake_score=dict(sigma_dat=1.0)), 'config.fake_score.sigma_dat'),
        (
            config(dict(name='sim'), denoiser=dict(name='prediction', schedule='cosin')),
            "config.denoiser.schedule.name: unknown 'cosin'",
        ),
        (config(dict(name='sim'), teacher={}), 'give one of workdir, weights, oracle'),
        (config(dict(name='sim'), data='digits'), "config.data: 'digits' is of type str"),
        (config(dict(name='sim'), seed=2**63), 'config.seed: 9223372036854775808 is out of range'),
        (config(dict(name='sim'), data=dict(n=-5)), 'config.data: n=-5, seed=0: n must be in 1..'),
        (config(dict(name='sim'), data=dict(n=0)), 'config.data: n=0, seed=0: n must be in 1..'),
        (config(dict(name='sim'), data=dict(seed=-1)), 'seed=-1: n must be in .*seed >= 0'),
        (config(dict(name='sim'), training=dict(steps=10**22)), 'config.training.steps: 1000.* is'),
        (config(dict(name='sim'), training=dict(steps=2**30)), 'steps=1073741824: must be at most'),
        (config(dict(name='sim'), training=dict(keep=10**20)), 'config.training.keep: 1000.* is'),
        (config(dict(name='sim'), optimizer=RATES[0]), 'learning_rate: inf is out of range'),
        (config(dict(name='sim'), optimizer=RATES[1]), 'learning_rate: nan is out of range'),
        (config(dict(name='sim'), optimizer=RATES[2]), 'learning_rate: 1e.39 is out of range'),
        (
            config(dict(name='sim'), optimizer=RATES[3]),
            'learning_rate: 1000.* is out of range; give a finite number',
        ),
        (
            config(dict(name='sim', levels=(math.nan,))),
            'config.method.levels: nan is out of range',
        ),
        (
            config(dict(name='sim'), network=dict(width=10**9)),
            'config.network: the network takes .* GiB, .* are free; make it smaller',
        ),
        (config(dict(name='sim'), network=dict(blocks=10**9)), 'blocks=1000000000, .* <= 1000'),
        (config(JS, discriminator=dict(name='mlp', width=10**9)), 'mlp_head: width=1000000000'),
        (config(JS, discriminator=dict(name='mlp', layers=10**9)), 'layers=1000000000, '),
        (
            config(JS | dict(bins=10**9), discriminator=dict(name='mlp', width=8)),
            'bins=1000000000 must be in 1..10000',
        ),
        (
            config(dict(name='sim'), network=dict(width=2**31 - 1, blocks=8)),
            'config.network: the network takes .* GiB, .* are free; make it smaller',
        ),
        (
            config(dict(name='sim'), training=dict(keep_best='kl', evaluate_every=1)),
            "keep_best='kl': .* evaluate_every=1 a multiple of checkpoint_every=0, both >= 1",
        ),
        (
            config(dict(name='sim'), training=BEST | dict(evaluate_every=3)),
            "keep_best='kll': .* evaluate_every=3 a multiple of checkpoint_every=2, both >= 1",
        ),
        (config(dict(name='sim'), training=BEST), "keep_best: unknown 'kll'; did you mean kl?"),
        (
            # Neither more nor less of it is better.
            config(dict(name='sim'), training=BEST | dict(keep_best='spread')),
            "config.training.keep_best: unknown 'spread'; known: modes",
        ),
        (config(dict(name='sim', from_teacher=True)), 'an oracle has no network to start from'),
    ],
)
def test_is_one_line(settings, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        build.train(settings, tmp_path / 'run', quiet=True)
    assert '\n' not in str(error.value) and not (tmp_path / 'run').exists()


@pytest.mark.parametrize('path', ['s3://bucket/run', 'memory://run', 'gs:/bucket/run'])
@pytest.mark.parametrize(
    'use',
    [
        lambda path: build.train(config(dict(name='sim')), path, quiet=True),
        lambda path: build.evaluate(None, path, quiet=True),
        lambda path: build.sample(path),
        lambda path: build.sample(path, out='x.png'),
        build.from_workdir,
        lambda path: build.train(config(dict(name='sim'), teacher=dict(workdir=path)), 'run'),
        lambda path: sweep.run('sweep.py', path),
        lambda path: report.write([path]),
    ],
)
def test_no_other_object_store_holds_a_run(use, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match='is not on this machine; give a folder that is') as error:
        use(path)
    assert '\n' not in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'use',
    [
        lambda path: sweep.run('sweep.py', path),
        lambda path: build.sample('run', out=f'{path}/x.png'),
        lambda path: report.write(['run'], f'{path}/report'),
    ],
)
def test_an_object_store_holds_runs_alone(use, tmp_path, monkeypatch):
    test_no_other_object_store_holds_a_run(use, 'gs://bucket', tmp_path, monkeypatch)


def test_names_alone_and_other_predictions(tmp_path):
    """A name is a section without the rest; a network may predict v, weighed by its sigma_data."""
    settings = dict(
        seed=0,
        data=dict(name='mixture', mixture='ring', labelled=False, n=100),
        network='mlp',
        denoiser=dict(name='prediction', prediction='v', schedule='cosine'),
        method=dict(name='pretrain', law=LAW, grid=dict(name='karras', steps=2), sigma_data=0.6),
        optimizer=dict(student=dict(learning_rate=1e-4)),
        training=dict(steps=2, batch_size=16, ema_half_life=1e3, sample_every=0),
    )
    settings = ConfigDict(settings | dict(fake_score='edm')).lock()
    build.override(settings, ['--config.training.log_every=1'])
    with pytest.raises(UserError, match="config.fake_score: the method 'pretrain' has none"):
        build.train(settings, tmp_path / 'other', quiet=True)
    with settings.unlocked():
        del settings.fake_score
    build.train(settings, tmp_path / 'run', quiet=True)
    run = build.from_workdir(tmp_path / 'run')
    assert np.isfinite(run.generate(jax.random.key(0), 3)).all()
    with pytest.raises(UserError, match="condition 'text': the model of .* takes none"):
        run.sample(np.zeros((2, 2), np.float32), {'text': np.zeros((2, 3))})
