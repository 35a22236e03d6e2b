"""The second stage of a truncated consistency model (TCM) on digits.

    fdistill train --config=configs/digits_tcm.py --workdir=runs/digits-tcm
    fdistill evaluate --workdir=runs/digits-tcm

Needs runs/digits-ect (configs/digits_ect.py), its first stage. About 41 CPU-seconds.
Measured: fd_train 0.027 (first stage: 0.034), fd_held_out 0.109 (0.123), pixel_fd 0.44 (0.56),
accuracy 0.999.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='digits'),
            teacher=dict(workdir='runs/digits-ect'),
            method=dict(
                name='tcm',
                law=dict(
                    name='log_student_t',
                    mean=0.0,
                    scale=0.2,
                    df=0.01,
                    sigma_min=1.0,
                    sigma_max=40.0,
                ),
                transition=1.0,
                boundary_share=0.25,
                boundary_weight=0.1,
                q=64.0,
                k=8.0,
                stage_steps=2000,
                distance='pseudo_huber',
                weighting='step',
                sigma_init=40.0,
                levels=(),
            ),
            optimizer=dict(
                student=dict(learning_rate=5e-4, b2=0.99, schedule='cosine', final=0.1),
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
