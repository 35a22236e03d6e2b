"""The ring of 8 Gaussians from a teacher that lacks one of them, three seeds: who mends it?

    fdistill sweep --config=configs/sweeps/flawed_ring.py --workdir=runs/sweeps/flawed-ring
    fdistill report runs/sweeps/flawed-ring

Methods with real data beside those that know the teacher alone. Half a minute of a core each.
"""

import pathlib

from fdistill.config import load, module

FILE = str(pathlib.Path(__file__).parents[1] / 'ring_real_data.py')


def get_config(method='data_forcing'):
    config = load(f'{FILE}:{method}').unlock()
    if 'teacher' in config:
        config.teacher.oracle = 'ring_missing'
    return config.lock()


def get_sweep():
    """The first seed of all before the second, so that a part of the sweep is a comparison too."""
    return [{'config': name, 'seed': seed} for seed in range(3) for name in module(FILE).METHODS]
