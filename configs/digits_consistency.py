"""One-step student of the digits teacher, by consistency distillation.

    fdistill train --config=configs/digits_consistency.py --workdir=runs/digits-consistency
    fdistill evaluate --workdir=runs/digits-consistency

Needs runs/digits-teacher (configs/digits_teacher.py). About 35 CPU-seconds.
Measured, seeds 0 and 1: fd_train 0.054 and 0.057 (teacher, 35 evaluations: 0.035), fd_held_out
0.130 and 0.132 (0.113), pixel_fd 0.42 (0.21), accuracy 0.997. With levels=(1.5,), two evaluations:
fd_train 0.062 and 0.064, pixel_fd 0.35. With distance='pseudo_huber' and weighting='step', seed 0:
fd_train 0.041, but pixel_fd 0.94.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='digits'),
            teacher=dict(workdir='runs/digits-teacher'),
            method=dict(
                name='consistency',
                grid=dict(name='karras', steps=18, sigma_min=0.02, sigma_max=40.0),
                solver='heun',
                distance='squared_l2',
                weighting='unit',
                target_decay=0.95,
                sigma_init=40.0,
                levels=(),
            ),
            optimizer=dict(
                student=dict(learning_rate=1e-3, b2=0.99, schedule='cosine', final=0.1),
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
