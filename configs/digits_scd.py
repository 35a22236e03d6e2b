"""One-step student of the digits teacher, by continuous-time consistency distillation (sCD).

    fdistill train --config=configs/digits_scd.py --workdir=runs/digits-scd
    fdistill evaluate --workdir=runs/digits-scd

Needs runs/digits-teacher (configs/digits_teacher.py). About 50 CPU-seconds.
Measured, seeds 0 and 1: fd_train 0.045 and 0.039 (teacher, 35 evaluations: 0.035), fd_held_out
0.129 and 0.123 (0.113), pixel_fd 0.66 (0.21), accuracy 0.995 and 0.996.
Without dropout, seed 0: fd_held_out 0.133. Without a derivative: configs/digits_dscd.py.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='digits'),
            teacher=dict(workdir='runs/digits-teacher'),
            method=dict(
                name='scd',
                law=dict(name='lognormal', mean=-0.6, std=1.4),
                warmup_steps=500,
                sigma_init=40.0,
                levels=(),
            ),
            optimizer=dict(
                student=dict(learning_rate=1e-3, b2=0.99, schedule='cosine', final=0.1),
            ),
            training=dict(
                steps=2400,
                batch_size=128,
                ema_half_life=9e3,
                ema_ramp_up=0.5,
                log_every=100,
                checkpoint_every=1200,
                sample_every=0,
            ),
            mesh=dict(data=-1, fsdp=1),
            evaluation=dict(samples=2000, seed=0, batch_size=500),
        )
    )
