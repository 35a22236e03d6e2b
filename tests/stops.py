"""What a stop must leave alone, for tests of several files."""

import pathlib

import jax
import numpy as np

from fdistill import build
from fdistill.training import checkpoint


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
        logs = [(pathlib.Path(folder) / name).read_bytes() for folder in (unbroken, broken)]
        assert logs[0] == logs[1]
    assert logs[0].count(b'\n') == -(-config.training.steps // config.training.log_every)
