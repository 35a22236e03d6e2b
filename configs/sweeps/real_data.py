"""Real data without a GAN on the digits, beside distribution matching and SiD, three seeds.

    fdistill train --config=configs/digits_teacher.py --workdir=runs/digits-teacher
    fdistill sweep --config=configs/sweeps/real_data.py --workdir=runs/sweeps/real-data
    fdistill report runs/sweeps/real-data

About half a minute of a core each.
"""

import pathlib

from fdistill.config import load

FILES = {
    'real_uid': 'digits_real_uid.py',
    'data_forcing': 'digits_data_forcing.py',
    'diff_ratio': 'digits_diff_ratio.py',
    'reverse_kl_gan': 'digits_f_distill.py',
    'diff_instruct': 'digits_f_distill.py',
    'sid': 'digits_sid.py',
    'sim': 'digits_sim.py',
}


def get_config(method='data_forcing'):
    config = load(str(pathlib.Path(__file__).parents[1] / FILES[method]))
    if method == 'reverse_kl_gan':
        config = config.unlock()
        config.method.gan_weight, config.method.features = 0.1, 'input'
    return config.lock()


def get_sweep():
    """The first seed of all before the second, so that a part of the sweep is a comparison too."""
    return [{'config': name, 'seed': seed} for seed in range(3) for name in FILES]
