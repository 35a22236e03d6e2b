"""One-step students of the MNIST transformer by every method, five seeds: which one is best on real
images?

    fdistill train --config=configs/mnist_dit_teacher.py --workdir=runs/mnist-dit-teacher
    fdistill sweep --config=configs/sweeps/mnist.py --workdir=runs/sweeps/mnist
    fdistill report runs/sweeps/mnist

Both with --config.data.data_dir=DIR where the data are not in TFDS' own folder; or all in one,
`experiments/divergences.py mnist`. A trial takes 900 steps, less than half of what the configs say:
four minutes of two cores, four hours and forty minutes in all (estimate).
"""

import pathlib

from fdistill.config import load
from fdistill.divergences import DIVERGENCES

METHODS = ('sim', 'sid', 'flow_map')


def get_config(method='f_distill'):
    config = load(str(pathlib.Path(__file__).parents[1] / f'mnist_dit_{method}.py')).unlock()
    config.training.update(steps=900, checkpoint_every=300, sample_every=0)
    return config.lock()


def get_sweep():
    """The first seed of all before the second, so that a part of the sweep is a comparison too."""
    by = [{'config': 'f_distill', 'method.divergence': name} for name in DIVERGENCES]
    by += [{'config': method} for method in METHODS]
    return [{**one, 'seed': seed} for seed in range(5) for one in by]
