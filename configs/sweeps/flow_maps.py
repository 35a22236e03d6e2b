"""All families on the digits, three seeds: distribution and score matching, consistency models,
average velocities.

    fdistill train --config=configs/digits_teacher.py --workdir=runs/digits-teacher
    fdistill train --config=configs/digits_ect.py --workdir=runs/digits-ect
    fdistill train --config=configs/digits_flow_map_distill.py --workdir=runs/digits-flow-map
    fdistill sweep --config=configs/sweeps/flow_maps.py --workdir=runs/sweeps/flow-maps
    fdistill report runs/sweeps/flow-maps

The second and third are what TCM and AnyFlow begin with. Under a minute of a core each.
"""

import pathlib

from fdistill.config import load

METHODS = (
    *('f_distill', 'sim', 'sid', 'consistency', 'tscd', 'scd', 'dscd', 'rcm'),
    *('mean_flow_distill', 'flow_map_distill', 'any_flow'),
    *('ct', 'ict', 'ect', 'tcm', 'scm'),
    *('mean_flow', 'improved_mean_flow', 'alpha_flow', 'shortcut'),
)


def get_config(method='f_distill'):
    return load(str(pathlib.Path(__file__).parents[1] / f'digits_{method}.py'))


def get_sweep():
    """The first seed of all before the second, so that a part of the sweep is a comparison too."""
    return [{'config': method, 'seed': seed} for seed in range(3) for method in METHODS]
