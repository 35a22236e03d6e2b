"""Progressive distillation of the digits teacher, from 16 steps to 8, 4, 2 and 1: a stage each.

    fdistill train --config=configs/digits_progressive.py --workdir=runs/digits-progressive-1
    fdistill evaluate --workdir=runs/digits-progressive-1

Needs runs/digits-teacher (configs/digits_teacher.py). The argument is the stage, as :2, which needs
runs/digits-progressive-1. About 24 CPU-seconds a stage.
Measured in 8, 4, 2 and 1 steps: fd_held_out 0.124, 0.126, 0.124 and 0.125 (teacher, 35 evaluations:
0.113), pixel_fd 0.42, 0.46, 0.49 and 0.51 (0.21), accuracy 0.999 to 1.
"""

from ml_collections import ConfigDict


def get_config(stage='1'):
    first, before = stage == '1', f'runs/digits-progressive-{int(stage) - 1}'
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='digits'),
            teacher=dict(workdir='runs/digits-teacher' if first else before),
            network=dict(dropout=0.0),
            method=dict(
                name='progressive',
                grid=dict(name='karras', steps=16, sigma_min=0.02, sigma_max=40.0),
                stage=int(stage),
            ),
            optimizer=dict(
                student=dict(learning_rate=2e-3, b2=0.99, schedule='cosine', final=0.02),
            ),
            training=dict(
                steps=2000,
                batch_size=128,
                ema_half_life=9e3,
                ema_ramp_up=0.5,
                log_every=100,
                checkpoint_every=1000,
                sample_every=0,
            ),
            mesh=dict(data=-1, fsdp=1),
            evaluation=dict(samples=2000, seed=0, batch_size=500),
        )
    )
