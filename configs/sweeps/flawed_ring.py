"""The ring of 8 Gaussians from a teacher that lacks one of them, three seeds: who mends it?

    fdistill sweep --config=configs/sweeps/flawed_ring.py --workdir=runs/flawed-ring --vmap-seeds
    fdistill report runs/flawed-ring

Methods with real data beside those that know the teacher alone, and DiffRatio, which has none. Half
a minute of a core each.
"""

import pathlib

from fdistill.config import module

RING = module(str(pathlib.Path(__file__).parent / 'ring_relatives.py'))
METHODS = [
    name
    for name, file in RING.FILES.items()
    if file.startswith(('ring_real_data', 'ring_uni_instruct', 'ring_adversarial'))
    and name != 'adversarial_flow'
]


def get_config(method='data_forcing'):
    config = RING.get_config(method).unlock()
    if 'teacher' in config:
        config.teacher.oracle = 'ring_missing'
    return config.lock()


def get_sweep():
    return [{'config': method, 'seed': seed} for method in METHODS for seed in range(3)]
