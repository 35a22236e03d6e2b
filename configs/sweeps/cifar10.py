"""One-step students of the CIFAR-10 teacher, the U-Net of EDM, by five divergences, three seeds.

    fdistill train --config=configs/cifar10_teacher.py --workdir=runs/cifar10-teacher
    [--config.data.data_dir=DIR] fdistill sweep --config=configs/sweeps/cifar10.py
    --workdir=runs/sweeps/cifar10 --commands fdistill report runs/sweeps/cifar10

For accelerators, a command a trial; 15 times the cost of configs/cifar10_f_distill.py. Not run.
"""

import pathlib

from fdistill.config import load


def get_config():
    return load(str(pathlib.Path(__file__).parents[1] / 'cifar10_f_distill.py'))


def get_sweep():
    names = ('reverse_kl', 'jeffreys', 'squared_hellinger', 'js', 'forward_kl')
    return {'method.divergence': names, 'seed': (0, 1, 2)}
