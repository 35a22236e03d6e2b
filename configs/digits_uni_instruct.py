"""One-step student of the digits teacher, by Uni-Instruct with any f-divergence.

    fdistill train --config=configs/digits_uni_instruct.py:js --workdir=runs/digits-uni-js
    fdistill evaluate --workdir=runs/digits-uni-js

Needs runs/digits-teacher (configs/digits_teacher.py). About 40 CPU-seconds; measured values are in
docs/results.md.
"""

from ml_collections import ConfigDict


def get_config(divergence='js'):
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='digits'),
            teacher=dict(workdir='runs/digits-teacher'),
            method=dict(
                name='uni_instruct',
                divergence=divergence,
                features='teacher',
                ratio_low=0.1,
                ratio_high=10.0,
                # The exact gradient is alpha=0.5 and a moving ratio; on these images it diverges.
                alpha=1.0,
                moving_ratio=False,
                sigma_init=2.5,
                student_law=dict(name='lognormal', mean=0.0, std=1.0),
                critic_law=dict(name='lognormal', mean=0.0, std=1.0),
            ),
            discriminator=dict(name='mlp', width=64, layers=2),
            optimizer=dict(
                student=dict(learning_rate=1e-3, b1=0.0, b2=0.99, schedule='cosine', final=0.1),
                critic=dict(learning_rate=3e-3, b1=0.0, b2=0.99, schedule='cosine', final=0.1),
            ),
            training=dict(
                steps=1800,
                batch_size=128,
                ema_half_life=9e3,
                ema_ramp_up=0.5,
                log_every=100,
                checkpoint_every=900,
                sample_every=0,
            ),
            mesh=dict(data=-1, fsdp=1),
            evaluation=dict(samples=2000, seed=0, batch_size=500),
        )
    )
