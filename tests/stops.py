"""What a stop must leave alone, and what is stopped, for tests of several files."""

import pathlib
import time

import jax
import numpy as np

from fdistill import build
from fdistill.files import disk
from fdistill.training import checkpoint

# A run of points in the plane. Of a million steps, it goes on for minutes unless it is stopped.
RING = """
from ml_collections import ConfigDict
def get_config():
    return ConfigDict(dict(
        seed=0,
        data=dict(name='mixture', mixture='ring', labelled=False, n=1000),
        network=dict(name='mlp', width=16, blocks=1, embedding=8),
        method=dict(name='pretrain', law=dict(name='lognormal'), grid=dict(name='karras', steps=3)),
        optimizer=dict(student=dict(learning_rate=1e-3)),
        training=dict({training}),
        mesh=dict(data=-1, fsdp=1),
        evaluation=dict(samples=100),
    ))
"""


def ring(**training):
    """Text of the config file of `RING`, with these settings of the training."""
    settings = dict(steps=10**6, batch_size=64, ema_half_life=1e3, log_every=50)
    settings |= dict(checkpoint_every=500, sample_every=0, max_skipped=5) | training
    return RING.replace('{training}', f'**{settings!r}')


def wait_for(condition, seconds=120):
    """What a condition says once it is not false."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def check(config, unbroken, broken):
    """The run in the folder `unbroken`, trained anew in the folder `broken` and stopped twice,
    after a critic-only step and after a student step: state and logs bit-equal."""
    plain = build.resolve(config, build.load_data(config, 'train'))
    cycle = build.experiment(plain).method.cycle
    # Between logs, so that what was averaged since the last one is resumed too.
    steps = [i for i in range(1, 8) if (i + 1) % config.training.log_every]
    critic_only = next((i + 1 for i in steps if cycle(i) == ('critic',)), 2)
    student = next(i + 1 for i in steps if i >= critic_only and 'student' in cycle(i))
    for stop in (critic_only, student):
        build.train(config, broken, quiet=True, stop_at=stop)
    resumed = checkpoint.items(build.train(config, broken, quiet=True))
    with checkpoint.Checkpoints(unbroken) as checkpoints:
        kept, _ = checkpoints.restore(checkpoint.abstract(resumed))
    for (path, one), other in zip(
        jax.tree_util.tree_leaves_with_path(kept), jax.tree.leaves(resumed), strict=True
    ):
        np.testing.assert_array_equal(
            np.asarray(one), np.asarray(other), err_msg=jax.tree_util.keystr(path)
        )
    # A method without a density ratio has no histograms.
    files = sorted(path.name for path in pathlib.Path(unbroken).glob('*s.jsonl'))
    assert 'metrics.jsonl' in files
    for name in files:
        logs = [(disk.place(folder) / name).read_bytes() for folder in (unbroken, broken)]
        assert logs[0] == logs[1]
    assert logs[0].count(b'\n') == -(-config.training.steps // config.training.log_every)
