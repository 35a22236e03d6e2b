"""The digits from a teacher that was trained for 300 of its 5000 steps, three seeds: who mends it?

    fdistill train --config=configs/digits_teacher.py:short --workdir=runs/digits-teacher-short
    fdistill sweep --config=configs/sweeps/flawed_digits.py --workdir=runs/sweeps/flawed-digits
    fdistill report runs/sweeps/flawed-digits

Methods with real data beside those that know the teacher alone; diff_ratio begins as the teacher.
Half a minute of a core each.
"""

import pathlib

from fdistill.config import load, module

DIGITS = str(pathlib.Path(__file__).parent / 'real_data.py')


def get_config(method='data_forcing'):
    config = load(f'{DIGITS}:{method}').unlock()
    for section in {'teacher', 'start'} & set(config):
        config[section].workdir = 'runs/digits-teacher-short'
    return config.lock()


def get_sweep():
    return module(DIGITS).get_sweep()
