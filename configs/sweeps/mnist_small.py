"""One-step students of the MNIST transformer with a quarter of its parameters, by every method,
five seeds: which one is best where a student cannot do all that its teacher does?

    fdistill train --config=configs/mnist_dit_teacher.py --workdir=runs/mnist-dit-teacher
    fdistill train --config=configs/mnist_dit_teacher.py:small
        --workdir=runs/mnist-dit-teacher-small
    fdistill sweep --config=configs/sweeps/mnist_small.py --workdir=runs/sweeps/mnist-small
    fdistill report runs/sweeps/mnist-small

All with --config.data.data_dir=DIR where the data are not in TFDS' own folder; or all in one,
`experiments/divergences.py mnist_small`. The students start as the small teacher, which has been
trained on the data like the large one. Three and a half minutes of one core each; what came of it
is in docs/results.md.
"""

import pathlib

from fdistill.config import load, module

MNIST = str(pathlib.Path(__file__).parent / 'mnist.py')


def get_config(method='f_distill'):
    config = load(f'{MNIST}:{method}').unlock()
    config.start = dict(workdir='runs/mnist-dit-teacher-small')
    return config.lock()


def get_sweep():
    return module(MNIST).get_sweep()
