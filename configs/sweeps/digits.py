"""One-step students of the digits teacher by five divergences, five seeds.

    fdistill train --config=configs/digits_teacher.py --workdir=runs/digits-teacher
    fdistill sweep --config=configs/sweeps/digits.py --workdir=runs/sweeps/digits
    fdistill report runs/sweeps/digits

About ten minutes on two cores; for a teacher elsewhere add --config.teacher.workdir=DIR.
"""

import pathlib

from fdistill.config import load


def get_config():
    return load(str(pathlib.Path(__file__).parents[1] / 'digits_f_distill.py'))


def get_sweep():
    names = ('reverse_kl', 'jeffreys', 'squared_hellinger', 'js', 'forward_kl')
    return {'method.divergence': names, 'seed': (0, 1, 2, 3, 4)}
