"""Flow map of the digits teacher, by the Lagrangian form of flow map distillation.

    fdistill train --config=configs/digits_flow_map_distill.py --workdir=runs/digits-flow-map
    fdistill evaluate --workdir=runs/digits-flow-map
    fdistill sample --workdir=runs/digits-flow-map --steps=4

Needs runs/digits-teacher (configs/digits_teacher.py). About 40 to 50 CPU-seconds.
Measured, seeds 0 and 1, one jump: fd_train 0.033 and 0.032 (teacher, 35 evaluations: 0.035),
fd_held_out 0.126 and 0.125 (0.113), pixel_fd 0.53 (0.21), accuracy 1.000. The weights of seed 0
with two jumps: fd_train 0.032, fd_held_out 0.117, pixel_fd 0.31; with four: 0.040, 0.123, 0.26.
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
                name='flow_map_distill',
                law=dict(name='karras_uniform', sigma_min=0.02, sigma_max=40.0),
                pairing='sorted',
                share_equal=0.1,
                form='lagrangian',
                power=0.5,
                c=0.001,
                levels=(40.0,),
            ),
            optimizer=dict(
                student=dict(learning_rate=2e-3, b2=0.99, schedule='cosine', final=0.1),
            ),
            training=dict(
                steps=2600,
                batch_size=128,
                ema_half_life=9e3,
                ema_ramp_up=0.5,
                log_every=100,
                checkpoint_every=1300,
                sample_every=0,
            ),
            mesh=dict(data=-1, fsdp=1),
            evaluation=dict(samples=2000, seed=0, batch_size=500),
        )
    )
