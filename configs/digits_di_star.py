"""One-step student of the digits teacher with a reward, by Diff-Instruct*: 8s that look like a 3.

    fdistill train --config=configs/digits_di_star.py --workdir=runs/digits-di-star
    fdistill evaluate --workdir=runs/digits-di-star

Needs runs/digits-teacher (configs/digits_teacher.py). About 30 CPU-seconds, after the classifier of
the reward. `:brightness` wants brighter images instead; what larger weights do is in
docs/results.md.
"""

from ml_collections import ConfigDict

REWARDS = {
    # Another classifier than the one that evaluates, which is that of seed 0.
    'classifier': dict(name='classifier', seed=1, wanted=3, unwanted=8, only=8),
    'brightness': dict(name='brightness'),
}


def get_config(reward='classifier'):
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='digits'),
            teacher=dict(workdir='runs/digits-teacher'),
            reward=REWARDS[reward],
            method=dict(
                name='di_star',
                reward_weight=0.01,
                reward_normalised=False,
                c=0.1,
                scale='eps',
                sigma_init=2.5,
                student_law=dict(name='lognormal', mean=0.0, std=1.0),
                critic_law=dict(name='lognormal', mean=0.0, std=1.0),
            ),
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
