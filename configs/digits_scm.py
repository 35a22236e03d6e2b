"""One-step student of the digits teacher, by continuous-time consistency training (sCT).

    fdistill train --config=configs/digits_scm.py --workdir=runs/digits-scm
    fdistill evaluate --workdir=runs/digits-scm

Needs runs/digits-teacher (configs/digits_teacher.py), to begin with. About 50 CPU-seconds.
Measured, seeds 0 and 1: fd_train 0.037 and 0.038 (teacher, 35 evaluations: 0.035), fd_held_out
0.121 and 0.117 (0.113), pixel_fd 0.51 and 0.50 (0.21), accuracy 0.995 and 0.996.
From its own initialisation (no dropout, 3600 steps, warmup_steps=1500, learning_rate=2e-3):
fd_held_out 0.213, accuracy 0.969.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='digits'),
            start=dict(workdir='runs/digits-teacher'),
            method=dict(
                name='scm',
                law=dict(name='lognormal', mean=-0.6, std=1.4),
                warmup_steps=600,
                sigma_init=40.0,
                levels=(),
            ),
            optimizer=dict(
                student=dict(learning_rate=1e-3, b2=0.99, schedule='cosine', final=0.1),
            ),
            training=dict(
                steps=3000,
                batch_size=128,
                ema_half_life=9e3,
                ema_ramp_up=0.5,
                log_every=100,
                checkpoint_every=1500,
                sample_every=0,
            ),
            mesh=dict(data=-1, fsdp=1),
            evaluation=dict(samples=2000, seed=0, batch_size=500),
        )
    )
