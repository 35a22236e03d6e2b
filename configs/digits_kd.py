"""One-step student of the digits teacher by knowledge distillation of its pairs.

    fdistill train --config=configs/digits_kd.py --workdir=runs/digits-kd
    fdistill evaluate --workdir=runs/digits-kd

Needs runs/digits-teacher (configs/digits_teacher.py), which makes pairs as they are needed.
"""

from ml_collections import ConfigDict

TEACHER = dict(workdir='runs/digits-teacher')


def get_config():
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='digits'),
            teacher=TEACHER,
            start=TEACHER,
            network=dict(dropout=0.0),
            pairing=dict(
                sampler='heun',
                grid=dict(name='karras', steps=18, sigma_min=0.02, sigma_max=40.0),
            ),
            method=dict(name='kd', sigma_init=40.0, pixel_weight=0.5),
            optimizer=dict(
                student=dict(learning_rate=1e-3, b2=0.99, schedule='cosine', final=0.05),
            ),
            training=dict(
                steps=4000,
                batch_size=128,
                ema_half_life=9e3,
                ema_ramp_up=0.5,
                log_every=100,
                checkpoint_every=2000,
                sample_every=0,
            ),
            mesh=dict(data=-1, fsdp=1),
            evaluation=dict(samples=2000, seed=0, batch_size=500),
        )
    )
