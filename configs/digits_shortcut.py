"""Flow map of digits from data alone, by shortcut models; begins as the teacher's denoiser.

    fdistill train --config=configs/digits_shortcut.py --workdir=runs/digits-shortcut
    fdistill evaluate --workdir=runs/digits-shortcut
    fdistill sample --workdir=runs/digits-shortcut --steps=4

Needs runs/digits-teacher (configs/digits_teacher.py). About 36 CPU-seconds. Measured, seed 0, one
jump: fd_train 0.033, fd_held_out 0.119 (teacher, 35 evaluations: 0.035 and 0.113), pixel_fd 0.78,
accuracy 0.998, recall 0.62. With a share of 0.25 recall is 0.30, and 0.13 with power 0.
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
                name='shortcut',
                law=dict(name='karras_uniform', sigma_min=0.02, sigma_max=40.0),
                finest=64,
                share=0.5,
                target_decay=0.9,
                power=0.25,
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
