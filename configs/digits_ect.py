"""One-step generator of digits from a teacher's weights and data, by easy consistency tuning (ECT).

    fdistill train --config=configs/digits_ect.py --workdir=runs/digits-ect
    fdistill evaluate --workdir=runs/digits-ect

Needs runs/digits-teacher (configs/digits_teacher.py), to begin with. About 47 CPU-seconds.
Measured: fd_train 0.034 (teacher, 35 evaluations: 0.035), fd_held_out 0.123 (0.113), pixel_fd 0.56
(0.21), accuracy 0.998.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='digits'),
            start=dict(workdir='runs/digits-teacher'),
            network=dict(name='mlp', width=256, blocks=3, embedding=64, dropout=0.15),
            denoiser=dict(sigma_data=0.75),
            method=dict(
                name='ect',
                law=dict(name='lognormal', mean=-0.4, std=1.6),
                q=4.0,
                k=8.0,
                b=1.0,
                stage_steps=700,
                distance='pseudo_huber',
                weighting='step',
                sigma_init=40.0,
                levels=(),
            ),
            optimizer=dict(
                student=dict(learning_rate=0.001, b2=0.99, schedule='cosine', final=0.1),
            ),
            training=dict(
                steps=3000,
                batch_size=128,
                ema_half_life=9e3,
                ema_ramp_up=0.5,
                log_every=100,
                checkpoint_every=1500,
                sample_every=0,
            ),
            mesh=dict(data=-1, fsdp=1),
            evaluation=dict(samples=2000, seed=0, batch_size=500),
        )
    )
