"""The digits teacher degraded to the samples of its own untrained one-step student: first stage of
DisBack, whose second is configs/digits_disback.py.

    fdistill train --config=configs/digits_degrade.py --workdir=runs/digits-degrade

Needs runs/digits-teacher (configs/digits_teacher.py). About 15 CPU-seconds.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='digits'),
            teacher=dict(workdir='runs/digits-teacher'),
            method=dict(
                name='degrade',
                sigma_init=2.5,
                law=dict(name='lognormal', mean=0.0, std=1.0),
                grid=dict(name='karras', steps=18, sigma_min=0.02, sigma_max=40.0),
            ),
            optimizer=dict(student=dict(learning_rate=1e-3, b2=0.99)),
            training=dict(
                steps=400,
                batch_size=128,
                ema_half_life=2e3,
                ema_ramp_up=0.5,
                log_every=50,
                # Those that are kept are the way back.
                checkpoint_every=50,
                keep=8,
                sample_every=0,
            ),
            mesh=dict(data=-1, fsdp=1),
            evaluation=dict(samples=2000, seed=0, batch_size=500),
        )
    )
