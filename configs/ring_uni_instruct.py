"""Ring of 8 Gaussians, distilled from the exact oracle by Uni-Instruct with any divergence.

    fdistill train --config=configs/ring_uni_instruct.py:forward_kl --workdir=runs/ring-uni
    fdistill evaluate --workdir=runs/ring-uni

About 30 CPU-seconds. Expect 8 modes, a histogram KL below 0.01 and a high-quality share above 0.9.
"""

from ml_collections import ConfigDict


def get_config(divergence='js', mixture='ring'):
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='mixture', mixture=mixture, labelled=False),
            network=dict(name='mlp', width=64, blocks=2, embedding=64, fourier=3),
            denoiser=dict(sigma_data=1.4),
            fake_score=dict(sigma_data=0.7),
            teacher=dict(oracle=mixture),
            method=dict(
                name='uni_instruct',
                divergence=divergence,
                weighting='unit',
                features='input',
                ratio_low=0.1,
                ratio_high=10.0,
                sigma_init=1.4,
                from_teacher=False,
                student_law=dict(name='loguniform', sigma_min=0.03, sigma_max=3.0),
                critic_law=dict(name='loguniform', sigma_min=0.03, sigma_max=3.0),
            ),
            discriminator=dict(name='mlp', width=64, layers=3, fourier=3),
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
                sample_every=1000,
            ),
            mesh=dict(data=-1, fsdp=1),
            evaluation=dict(samples=10000, seed=0, batch_size=1000),
        )
    )
