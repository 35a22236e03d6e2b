"""One-step generator of digits by MeanFlow, tuned from the weights of the digits teacher.

    fdistill train --config=configs/digits_mean_flow.py --workdir=runs/digits-mean-flow
    fdistill evaluate --workdir=runs/digits-mean-flow

Needs runs/digits-teacher (configs/digits_teacher.py), which it begins as and does not ask again.
About 36 to 45 CPU-seconds.
Measured, seeds 0 and 1: fd_train 0.044 and 0.060 (teacher, 35 evaluations: 0.035), fd_held_out
0.128 and 0.136 (0.113), pixel_fd 0.52 and 0.57 (0.21), accuracy 0.998. Seed 0 with power=0.75 and
c=0.001: fd_held_out 0.135; with pairing='sorted' 0.163; with power=0 besides, 0.56. Seed 1 with
3600 steps 0.174, with dropout 0.1 0.150. From no weights, in 55 to 65 CPU-seconds, 0.20 at best.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='digits'),
            start=dict(workdir='runs/digits-teacher'),
            network=dict(dropout=0.0, numbers=('until',)),
            method=dict(
                name='mean_flow',
                law=dict(name='karras_uniform', sigma_min=0.02, sigma_max=40.0),
                pairing='independent',
                until_law=dict(name='lognormal', mean=-4.0, std=1.6),
                share_equal=0.25,
                power=1.0,
                c=0.01,
                levels=(40.0,),
            ),
            optimizer=dict(
                student=dict(
                    learning_rate=2e-3,
                    b2=0.99,
                    weight_decay=1e-4,
                    clip=1.0,
                    warmup=100,
                    schedule='cosine',
                    final=0.02,
                ),
            ),
            training=dict(
                steps=2600,
                batch_size=128,
                ema_half_life=18e3,
                ema_ramp_up=0.2,
                log_every=250,
                checkpoint_every=1300,
                sample_every=0,
            ),
            mesh=dict(data=-1, fsdp=1),
            evaluation=dict(samples=2000, seed=0, batch_size=500),
        )
    )
