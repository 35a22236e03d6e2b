"""The digits teacher tuned on preferences, by MaPO: of two of its samples of a digit, the one with
the larger reward. It stays a denoiser, sampled by a solver.

    fdistill train --config=configs/digits_mapo.py --workdir=runs/digits-mapo
    fdistill evaluate --workdir=runs/digits-mapo

Needs runs/digits-teacher (configs/digits_teacher.py). `:f_dpo` is DPO in its place, under any
divergence from the teacher. Most of the time is the pairs': 30 evaluations of the teacher a step, a
minute of a core in all.
"""

from ml_collections import ConfigDict

OWN = {'mapo': dict(scale=0.5, beta=0.1, temperature=1000.0), 'f_dpo': dict(divergence='js')}


def get_config(method='mapo'):
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='digits'),
            teacher=dict(workdir='runs/digits-teacher'),
            reward=dict(name='brightness'),
            method=dict(
                name=method,
                law=dict(name='lognormal', mean=-1.2, std=1.2),
                grid=dict(name='karras', steps=8, sigma_min=0.02, sigma_max=80.0),
                **OWN[method],
            ),
            optimizer=dict(student=dict(learning_rate=1e-4, schedule='cosine', final=0.1)),
            training=dict(
                steps=300,
                batch_size=128,
                ema_half_life=5e3,
                ema_ramp_up=0.5,
                log_every=50,
                checkpoint_every=300,
                sample_every=0,
            ),
            mesh=dict(data=-1, fsdp=1),
            evaluation=dict(samples=2000, seed=0, batch_size=500),
        )
    )
