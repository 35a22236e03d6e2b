"""All relatives of distribution matching on the ring of 8 Gaussians, three seeds.

    fdistill train --config=configs/ring_teacher.py --workdir=runs/ring-teacher
    fdistill train --config=configs/ring_taught.py:degrade --workdir=runs/ring-degrade
    fdistill sweep --config=configs/sweeps/ring_relatives.py --workdir=runs/ring-all --vmap-seeds
    fdistill report runs/ring-all

The last six rows alone need the first two. Half a minute to a minute of a core each.
"""

import pathlib

from fdistill.config import load, module

CONFIGS = pathlib.Path(__file__).parents[1]


def methods(file, table, left_out=()):
    """{name: config} of the methods that a table in a file names."""
    names = getattr(module(str(CONFIGS / file)), table)
    return {name: f'{file}:{name}' for name in names if name not in left_out}


FILES = {
    **methods('ring_real_data.py', 'METHODS'),
    'uni_instruct-js': 'ring_uni_instruct.py:js',
    'uni_instruct-forward_kl': 'ring_uni_instruct.py:forward_kl',
    **methods('ring_adversarial.py', 'OWN'),
    **methods('ring_features.py', 'METHODS'),
    **methods('ring_taught.py', 'METHODS', ('degrade',)),
}


def get_config(method='sid'):
    return load(str(CONFIGS / FILES[method]))


def get_sweep():
    return [{'config': method, 'seed': seed} for method in FILES for seed in range(3)]
