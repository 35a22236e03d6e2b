"""Flow map of the digits teacher, by MeanFlow with the teacher's velocity.

    fdistill train --config=configs/digits_flow_map_distill.py --workdir=runs/digits-flow-map
    fdistill evaluate --workdir=runs/digits-flow-map

Needs runs/digits-teacher (configs/digits_teacher.py).
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
