"""Reward against quality on the digits: how far each weight of a reward takes the samples from the
data, by DI++ and DI*, for two rewards, three seeds.

    fdistill train --config=configs/digits_teacher.py --workdir=runs/digits-teacher
    fdistill sweep --config=configs/sweeps/rewards.py --workdir=runs/sweeps/rewards --vmap-seeds
    fdistill report runs/sweeps/rewards

The report has a comparison for each reward. At the largest weight the teacher hardly counts. Half a
minute of a core each.
"""

import pathlib

from fdistill.config import load

# SIM is a sum over the pixels and the score gap a mean: their weights are on different scales.
WEIGHTS = {
    'di_plus_plus-classifier': (0.0, 0.001, 0.003, 0.01, 0.1),
    'di_star-classifier': (0.003, 0.03, 0.3),
    'di_plus_plus-brightness': (0.03, 0.1, 0.3, 1.0),
}


def get_config(chosen='di_plus_plus-classifier'):
    method, reward = chosen.split('-')
    return load(f'{pathlib.Path(__file__).parents[1]}/digits_{method}.py:{reward}')


def get_sweep():
    return [
        {'config': chosen, 'method.reward_weight': weight, 'seed': seed}
        for chosen, weights in WEIGHTS.items()
        for weight in weights
        for seed in range(3)
    ]
