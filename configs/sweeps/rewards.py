"""Reward against quality on the digits: how far each weight of a reward takes the samples from the
data, for two rewards and two methods, three seeds.

    fdistill train --config=configs/digits_teacher.py --workdir=runs/digits-teacher
    fdistill sweep --config=configs/sweeps/rewards.py --workdir=runs/sweeps/rewards --vmap-seeds
    fdistill report runs/sweeps/rewards

The argument is a method, `di_plus_plus` or `di_star`, and a reward, as `di_star-brightness`. At the
largest weight the teacher hardly counts. About seven minutes of a core for one of the four.
"""

import pathlib

from fdistill.config import load


def get_config(chosen='di_plus_plus-classifier'):
    method, reward = chosen.split('-')
    return load(f'{pathlib.Path(__file__).parents[1]}/digits_{method}.py:{reward}')


def get_sweep():
    return {'method.reward_weight': (0.0, 0.001, 0.003, 0.01, 0.1), 'seed': (0, 1, 2)}
