"""Digits in as many jumps as there are segments, by trajectory-segmented consistency distillation.

    fdistill train --config=configs/digits_tscd.py --workdir=runs/digits-tscd
    fdistill evaluate --workdir=runs/digits-tscd

Needs runs/digits-teacher (configs/digits_teacher.py). About 44 CPU-seconds.
Measured, one segment: fd_train 0.055 (teacher, 35 evaluations: 0.035), fd_held_out 0.130 (0.113),
pixel_fd 0.43 (0.21), accuracy 0.996; `:4`, four segments, which are four jumps: 0.051, 0.125,
0.26, 0.993.
"""

from ml_collections import ConfigDict


def get_config(segments='1'):
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='digits'),
            teacher=dict(workdir='runs/digits-teacher'),
            method=dict(
                name='tscd',
                grid=dict(name='karras', steps=18, sigma_min=0.02, sigma_max=40.0),
                segments=int(segments),
                end='floor',
                solver='heun',
                distance='squared_l2',
                target_decay=0.95,
                eta=0.0,
            ),
            optimizer=dict(
                student=dict(learning_rate=0.001, b2=0.99, schedule='cosine', final=0.1),
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
