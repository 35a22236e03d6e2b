"""One-step generator of digits by improved MeanFlow, tuned from the weights of the digits teacher.

    fdistill train --config=configs/digits_improved_mean_flow.py --workdir=runs/digits-improved
    fdistill evaluate --workdir=runs/digits-improved

Needs runs/digits-teacher (configs/digits_teacher.py), which it begins as and does not ask again.
About 40 to 50 CPU-seconds.
Measured, seeds 0 and 1: fd_train 0.032 and 0.034 (teacher, 35 evaluations: 0.035), fd_held_out
0.121 and 0.122 (0.113), pixel_fd 0.56 and 0.63 (0.21), accuracy 0.998 and 0.999.
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
                name='improved_mean_flow',
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
