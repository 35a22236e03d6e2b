"""One-step student of the digits without a teacher, along the gradient of a density ratio
(DiffRatio).

    fdistill train --config=configs/digits_diff_ratio.py --workdir=runs/digits-diff-ratio
    fdistill evaluate --workdir=runs/digits-diff-ratio

It begins as runs/digits-teacher (configs/digits_teacher.py). Under two minutes of a shared core;
measured values are in docs/results.md.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='digits'),
            start=dict(workdir='runs/digits-teacher'),
            method=dict(
                name='diff_ratio',
                divergence='reverse_kl',
                weighting='unit',
                # Without it the gradient of a ratio learned from 1437 images is rough.
                r1_weight=3.0,
                # The gradient is all that there is: a ratio that lags behind the student misleads.
                student_every=3,
                sigma_init=2.5,
                student_law=dict(name='lognormal', mean=0.0, std=1.0),
                critic_law=dict(name='lognormal', mean=0.0, std=1.0),
            ),
            discriminator=dict(name='mlp', width=256, layers=3),
            optimizer=dict(
                student=dict(learning_rate=5e-4, b1=0.0, b2=0.99, schedule='cosine', final=0.1),
                critic=dict(learning_rate=3e-3, b1=0.0, b2=0.99, schedule='cosine', final=0.1),
            ),
            training=dict(
                steps=5400,
                batch_size=128,
                ema_half_life=9e3,
                ema_ramp_up=0.5,
                log_every=100,
                checkpoint_every=2700,
                sample_every=0,
            ),
            mesh=dict(data=-1, fsdp=1),
            evaluation=dict(samples=2000, seed=0, batch_size=500),
        )
    )
