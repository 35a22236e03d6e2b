"""One-step generator of digits by an adversary and optimal transport, without a teacher:
adversarial flow models.

    fdistill train --config=configs/digits_adversarial_flow.py --workdir=runs/digits-adversarial
    fdistill evaluate --workdir=runs/digits-adversarial

About 60 CPU-seconds; measured values are in docs/results.md.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='digits'),
            network=dict(name='mlp', width=256, blocks=3, embedding=64),
            denoiser=dict(sigma_data=0.75),
            method=dict(
                name='adversarial_flow',
                ot_weight=0.2,
                ot_final=0.005,
                ot_steps=3000,
                # 0.05 E |grad l|^2; a discriminator of 64 pixels does not see a step of 0.01.
                r1_weight=5.0,
                r2_weight=5.0,
                penalty_step=0.1,
            ),
            discriminator=dict(name='mlp', width=256, layers=3),
            optimizer=dict(
                student=dict(learning_rate=5e-4, b1=0.0, b2=0.9, schedule='cosine', final=0.1),
                critic=dict(learning_rate=1e-3, b1=0.0, b2=0.9, schedule='cosine', final=0.1),
            ),
            training=dict(
                steps=5000,
                batch_size=128,
                ema_half_life=9e3,
                ema_ramp_up=0.5,
                log_every=100,
                checkpoint_every=2500,
                sample_every=0,
            ),
            mesh=dict(data=-1, fsdp=1),
            evaluation=dict(samples=2000, seed=0, batch_size=500),
        )
    )
