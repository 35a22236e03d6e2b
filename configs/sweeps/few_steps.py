"""Students of the digits teacher in one, two and four steps, by f-distill or SIM, five seeds.

    fdistill train --config=configs/digits_teacher.py --workdir=runs/digits-teacher
    fdistill sweep --config=configs/sweeps/few_steps.py:js --workdir=runs/few-steps/js
    fdistill report runs/few-steps/js

The argument is `sim`, or a divergence of f-distill. Five minutes for one length, with
`--vmap-seeds` on a core of its own; what was measured is in docs/results.md.
"""

import pathlib

from fdistill.config import load


def get_config(method='js'):
    base = 'digits_sim.py' if method == 'sim' else f'digits_f_distill.py:{method}'
    config = load(str(pathlib.Path(__file__).parents[1] / base))
    if method == 'sim':
        with config.unlocked():
            # All of training for the last step: better with four of them.
            config.method.last = 1.0
    return config


def get_sweep():
    return {'method.levels': ((), (0.8,), (1.3, 0.8, 0.4)), 'seed': (0, 1, 2, 3, 4)}
