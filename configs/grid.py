"""Grid of 5 x 5 Gaussians, distilled from the exact oracle by any divergence.

    fdistill train --config=configs/grid.py --workdir=runs/grid [--config.method.divergence=js]
    fdistill evaluate --workdir=runs/grid

About a minute of CPU time; measured values are in docs/results.md.
"""

from ml_collections import ConfigDict


def get_config(divergence='reverse_kl'):
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='mixture', mixture='grid', labelled=False),
            network=dict(name='mlp', width=128, blocks=2, embedding=64, fourier=4),
            denoiser=dict(sigma_data=1.4),
            fake_score=dict(sigma_data=0.7),
            teacher=dict(oracle='grid'),
            method=dict(
                name='f_distill',
                divergence=divergence,
                sigma_init=1.4,
                from_teacher=False,
                student_law=dict(name='loguniform', sigma_min=0.03, sigma_max=2.0),
                critic_law=dict(name='loguniform', sigma_min=0.03, sigma_max=2.0),
                weighting='unit',
                features='input',
                gan_weight=0.0,
                ratio_low=0.1,
                ratio_high=10.0,
                cycle='alternate',
                student_every=1,
            ),
            discriminator=dict(name='mlp', width=128, layers=3, fourier=4),
            optimizer=dict(
                student=dict(learning_rate=3e-3, b1=0.5, b2=0.99, schedule='cosine', final=0.05),
                critic=dict(learning_rate=2e-3, b1=0.5, b2=0.99, schedule='cosine', final=0.05),
            ),
            training=dict(
                steps=5000,
                batch_size=256,
                ema_half_life=90e3,
                ema_ramp_up=0.5,
                log_every=100,
                checkpoint_every=1000,
                sample_every=1000,
            ),
            mesh=dict(data=-1, fsdp=1),
            evaluation=dict(samples=10000, seed=0, batch_size=1000),
        )
    )
