"""One-step generator of digits from data alone, by consistency training (CT).

fdistill train --config=configs/digits_ct.py --workdir=runs/digits-ct
fdistill evaluate --workdir=runs/digits-ct
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='digits'),
            network=dict(name='mlp', width=256, blocks=3, embedding=64),
            denoiser=dict(sigma_data=0.75, boundary=0.02),
            method=dict(
                name='consistency_training',
                growth='root',
                intervals=(2, 60),
                growth_steps=4000,
                sigma_min=0.02,
                sigma_max=40.0,
                distance='squared_l2',
                target_decay=0.9,
                sigma_init=40.0,
                levels=(),
            ),
            optimizer=dict(
                student=dict(learning_rate=0.001, b2=0.99, schedule='cosine', final=0.1),
            ),
            training=dict(
                steps=4000,
                batch_size=128,
                ema_half_life=9e3,
                ema_ramp_up=0.5,
                log_every=100,
                checkpoint_every=2000,
                sample_every=0,
            ),
            mesh=dict(data=-1, fsdp=1),
            evaluation=dict(samples=2000, seed=0, batch_size=500),
        )
    )
