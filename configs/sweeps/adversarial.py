"""One-step digits by DisBack and by a discriminator alone, three seeds.

    fdistill train --config=configs/digits_teacher.py --workdir=runs/digits-teacher
    fdistill train --config=configs/digits_degrade.py --workdir=runs/digits-degrade
    fdistill sweep --config=configs/sweeps/adversarial.py:ladd --workdir=runs/adversarial/ladd

The argument is the method: `disback`, which alone needs the second of these, `ladd`, `add` or
`adversarial_flow`. With `--vmap-seeds` three to five minutes each on a core of its own; what was
measured is in docs/results.md.
"""

import pathlib

from fdistill.config import load

FILES = {
    'disback': 'digits_disback.py',
    'ladd': 'digits_ladd.py',
    'add': 'digits_ladd.py:add',
    'adversarial_flow': 'digits_adversarial_flow.py',
}


def get_config(method='disback'):
    return load(str(pathlib.Path(__file__).parents[1] / FILES[method]))


def get_sweep():
    return {'seed': (0, 1, 2)}
