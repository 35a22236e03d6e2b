"""Flow map of the digits teacher, by MeanFlow with the teacher's velocity.

    fdistill train --config=configs/digits_mean_flow_distill.py --workdir=runs/digits-distilled
    fdistill evaluate --workdir=runs/digits-distilled

Needs runs/digits-teacher (configs/digits_teacher.py). About 35 to 45 CPU-seconds.
Measured, seeds 0 and 1: fd_train 0.034 and 0.031 (teacher, 35 evaluations: 0.035), fd_held_out
0.127 and 0.118 (0.113), pixel_fd 1.0 (0.21), accuracy 1.000 and 0.999. With the law
lognormal(-0.6, 1.4) of the teacher, which hardly knows sigma 40, fd_held_out 0.244 in 1800 steps.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='digits'),
            teacher=dict(workdir='runs/digits-teacher'),
            network=dict(dropout=0.0, numbers=('until',)),
            method=dict(
                name='mean_flow_distill',
                law=dict(name='karras_uniform', sigma_min=0.02, sigma_max=40.0),
                pairing='sorted',
                share_equal=0.25,
                power=0.75,
                c=0.001,
                levels=(40.0,),
            ),
            optimizer=dict(
                student=dict(learning_rate=2e-3, b2=0.99, schedule='cosine', final=0.1),
            ),
            training=dict(
                steps=2200,
                batch_size=128,
                ema_half_life=9e3,
                ema_ramp_up=0.5,
                log_every=100,
                checkpoint_every=1100,
                sample_every=0,
            ),
            mesh=dict(data=-1, fsdp=1),
            evaluation=dict(samples=2000, seed=0, batch_size=500),
        )
    )
