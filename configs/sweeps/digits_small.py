"""One-step students of the digits teacher with a quarter of its parameters, by every divergence,
five seeds: which one is best where a student cannot do all that its teacher does?

    fdistill train --config=configs/digits_teacher.py --workdir=runs/digits-teacher
    fdistill sweep --config=configs/sweeps/digits_small.py --workdir=runs/sweeps/digits-small
        --vmap-seeds
    fdistill report runs/sweeps/digits-small

The students, of 141,632 parameters where the teacher has 528,960, begin as slices of it;
`digits_small.py:56` has a sixteenth. About 25 minutes of one core (estimate), 2.5 for five seeds
of a divergence. For a teacher elsewhere add --config.teacher.workdir=DIR.
"""

import pathlib

from fdistill.config import load
from fdistill.divergences import DIVERGENCES


def get_config(width='128'):
    file = pathlib.Path(__file__).parents[1] / 'digits_f_distill.py'
    config = load(str(file)).unlock()
    config.network = dict(width=int(width), embedding={'128': 32, '56': 16}[width])
    config.start = dict(slice=True)
    return config.lock()


def get_sweep():
    return {'method.divergence': tuple(DIVERGENCES), 'seed': (0, 1, 2, 3, 4)}
