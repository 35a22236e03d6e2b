"""Every divergence, five seeds, on two modes: one Gaussian student, exact score and ratio. What
does each one prefer?

    fdistill sweep --config=configs/sweeps/mixtures.py --workdir=runs/sweeps/mixtures
    fdistill report runs/sweeps/mixtures

Five minutes on two cores. `configs/sweeps/mixtures.py:triangle` is the same in the plane, on three
modes.
"""

import pathlib

from fdistill.config import load
from fdistill.divergences import DIVERGENCES


def get_config(mixture='pair'):
    config = load(str(pathlib.Path(__file__).parents[1] / 'pair_exact.py')).unlock()
    config.data.mixture = config.teacher.oracle = mixture
    return config


def get_sweep():
    return {'method.divergence': tuple(DIVERGENCES), 'seed': (0, 1, 2, 3, 4)}
