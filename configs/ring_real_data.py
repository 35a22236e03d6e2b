"""Ring of 8 Gaussians with real data and without a GAN, beside what has a GAN or no data.

    fdistill train --config=configs/ring_real_data.py:data_forcing --workdir=runs/ring-data-forcing
    [--config.teacher.oracle=ring_missing] fdistill evaluate --workdir=runs/ring-data-forcing

The argument is the method. The teacher `ring_missing` lacks one of the modes; diff_ratio has no
teacher. About 30 CPU-seconds; what was measured is in docs/results.md.
"""

from ml_collections import ConfigDict

HEAD = dict(name='mlp', width=64, layers=3, fourier=3)
GAN = dict(features='input', gan_weight=0.1)
# What each has of its own; the norm of a 2-vector is often almost 0, so DMD's weight is no good.
METHODS = {
    'real_uid': dict(alpha=0.9, beta=0.8, weighting='unit', critic_weighting='edm'),
    'data_forcing': dict(weighting='unit'),
    'diff_ratio': dict(features='input', weighting='eps'),
    'reverse_kl_gan': dict(name='dmd2', weighting='unit') | GAN,
    'diff_instruct': dict(),
    'sim': dict(c=0.1, scale='unit'),
    'sid': dict(alpha=1.0, weighting='unit'),
    'sida': dict(alpha=1.0, weighting='unit', gan_weighting='unit', burn_in=50, gan_from=100) | GAN,
}


def get_config(method='data_forcing'):
    law = dict(name='loguniform', sigma_min=0.03, sigma_max=3.0)
    own = dict(name=method, sigma_init=1.4, cycle='alternate', student_every=1)
    taught = method != 'diff_ratio'
    teacher = dict(teacher=dict(oracle='ring'), fake_score=dict(sigma_data=0.7)) if taught else {}
    head = dict(discriminator=HEAD) if 'features' in METHODS[method] else {}
    from_teacher = dict(from_teacher=False) if taught else {}
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='mixture', mixture='ring', labelled=False),
            network=dict(name='mlp', width=64, blocks=2, embedding=64, fourier=3),
            denoiser=dict(sigma_data=1.4),
            method=own | dict(student_law=law, critic_law=law) | from_teacher | METHODS[method],
            **teacher,
            **head,
            optimizer=dict(
                student=dict(learning_rate=3e-3, b1=0.5, b2=0.99, schedule='cosine', final=0.05),
                critic=dict(learning_rate=2e-3, b1=0.5, b2=0.99, schedule='cosine', final=0.05),
            ),
            training=dict(
                steps=3000,
                batch_size=256,
                ema_half_life=90e3,
                ema_ramp_up=0.5,
                log_every=100,
                checkpoint_every=1000,
                sample_every=0,
            ),
            mesh=dict(data=-1, fsdp=1),
            evaluation=dict(samples=10000, seed=0, batch_size=1000),
        )
    )
