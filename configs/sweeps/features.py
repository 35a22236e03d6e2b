"""Distances of features on the digits, three seeds: three methods, and what they are shown.

    fdistill train --config=configs/digits_teacher.py --workdir=runs/digits-teacher
    fdistill sweep --config=configs/sweeps/features.py --workdir=runs/sweeps/features --vmap-seeds
    fdistill report runs/sweeps/features

The first is what FD-loss begins with. One to two minutes of a core each.
"""

import pathlib

from fdistill.config import load

METHODS = ('fd_loss', 'mmd', 'drifting')
FEATURES = ('both', 'classifier', 'pixels')


def get_config(argument='fd_loss:both'):
    method, features = argument.split(':')
    return load(f'{pathlib.Path(__file__).parents[1]}/digits_{method}.py:{features}')


def get_sweep():
    """All methods by one's features before another's, so that a part is a comparison too."""
    arguments = [f'{method}:{features}' for features in FEATURES for method in METHODS]
    return [{'config': one, 'seed': seed} for one in arguments for seed in range(3)]
