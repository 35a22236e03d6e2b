"""One-step students of the MNIST teacher, U-Nets of 28 x 28 pixels, by five divergences, five
seeds.

    fdistill train --config=configs/mnist_teacher.py --workdir=runs/mnist-teacher
    [--config.data.data_dir=DIR] fdistill sweep --config=configs/sweeps/mnist.py
    --workdir=runs/sweeps/mnist fdistill report runs/sweeps/mnist

For an accelerator; 25 times the cost of configs/mnist_f_distill.py. Not run.
"""

import pathlib

from fdistill.config import load


def get_config():
    return load(str(pathlib.Path(__file__).parents[1] / 'mnist_f_distill.py'))


def get_sweep():
    names = ('reverse_kl', 'jeffreys', 'squared_hellinger', 'js', 'forward_kl')
    return {'method.divergence': names, 'seed': (0, 1, 2, 3, 4)}
