"""One-step student of the digits teacher, by an adversary on the teacher's features: LADD, or with
the argument `add` ADD, which adds the teacher's denoiser.

    fdistill train --config=configs/digits_ladd.py --workdir=runs/digits-ladd
    fdistill evaluate --workdir=runs/digits-ladd

Needs runs/digits-teacher (configs/digits_teacher.py). About 30 CPU-seconds; measured values are in
docs/results.md.
"""

from ml_collections import ConfigDict

LAW = dict(name='lognormal', mean=0.0, std=1.0)
OWN = {'ladd': {}, 'add': dict(student_law=LAW, distillation_weight=0.1)}


def get_config(method='ladd'):
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='digits'),
            teacher=dict(workdir='runs/digits-teacher'),
            method=dict(
                name=method,
                sigma_init=2.5,
                critic_law=LAW,
                r1_weight=1.0,
                **OWN[method],
            ),
            discriminator=dict(name='mlp', width=256, layers=2),
            optimizer=dict(
                student=dict(learning_rate=5e-4, b1=0.0, b2=0.99, schedule='cosine', final=0.1),
                critic=dict(learning_rate=1e-3, b1=0.0, b2=0.99, schedule='cosine', final=0.1),
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
