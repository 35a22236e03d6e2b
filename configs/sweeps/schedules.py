"""Do schedules over divergences help? One Gaussian against two, exact score and ratio, five seeds.

    fdistill sweep --config=configs/sweeps/schedules.py --workdir=runs/sweeps/schedules --vmap-seeds
    fdistill report runs/sweeps/schedules

Two minutes on two cores. What was measured is in docs/results.md.
"""

import pathlib

from fdistill.config import load


def get_config():
    return load(str(pathlib.Path(__file__).parents[1] / 'pair_exact.py'))


def get_sweep():
    names = (
        'reverse_kl',
        'forward_kl',
        'mix(reverse_kl, forward_kl, 0.5)',
        'anneal(reverse_kl, forward_kl, 300)',
        'anneal(forward_kl, reverse_kl, 300)',
        'by_sigma(reverse_kl, forward_kl, 0.045)',
    )
    return {'method.divergence': names, 'seed': (0, 1, 2, 3, 4)}
