"""One-step student of the digits teacher, by adversarial score identity distillation (SiDA).

    fdistill train --config=configs/digits_sida.py --workdir=runs/digits-sida
    fdistill evaluate --workdir=runs/digits-sida

Needs runs/digits-teacher (configs/digits_teacher.py). About 40 CPU-seconds; measured values are in
docs/results.md. SiD2A, a student that SiD has trained before: --config.start.workdir=RUN.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='digits'),
            teacher=dict(workdir='runs/digits-teacher'),
            method=dict(
                name='sida',
                alpha=1.0,
                gan_weight=1e-3,
                burn_in=50,
                gan_from=100,
                discriminator_weight=0.1,
                sigma_init=2.5,
                student_law=dict(name='lognormal', mean=0.0, std=1.0),
                critic_law=dict(name='lognormal', mean=0.0, std=1.0),
            ),
            discriminator=dict(name='channel_mean'),
            optimizer=dict(
                student=dict(learning_rate=1e-3, b1=0.0, b2=0.99, schedule='cosine', final=0.1),
                critic=dict(learning_rate=3e-3, b1=0.0, b2=0.99, schedule='cosine', final=0.1),
            ),
            training=dict(
                steps=1800,
                batch_size=128,
                ema_half_life=9e3,
                ema_ramp_up=0.5,
                log_every=100,
                checkpoint_every=900,
                sample_every=0,
            ),
            mesh=dict(data=-1, fsdp=1),
            evaluation=dict(samples=2000, seed=0, batch_size=500),
        )
    )
