"""All families on the ring of 8 Gaussians, three seeds: distribution and score matching,
consistency models, average velocities.

    fdistill train --config=configs/ring_flow_map.py:ect --workdir=runs/ring-ect
    fdistill sweep --config=configs/sweeps/ring_flow_maps.py --workdir=runs/sweeps/ring-flow-maps
    fdistill report runs/sweeps/ring-flow-maps

The first is what TCM begins with. Half a minute of a core each.
"""

import pathlib

from fdistill.config import load, module

CONFIGS = pathlib.Path(__file__).parents[1]
FILES = {'f_distill': 'ring.py:js', 'sim': 'ring_sim.py'}


def get_config(method='f_distill'):
    return load(str(CONFIGS / FILES.get(method, f'ring_flow_map.py:{method}')))


def get_sweep():
    """The first seed of all before the second, so that a part of the sweep is a comparison too."""
    flow_maps = module(str(CONFIGS / 'ring_flow_map.py'))
    methods = (*FILES, *flow_maps.ORACLE, *flow_maps.DATA)
    return [{'config': method, 'seed': seed} for seed in range(3) for method in methods]
