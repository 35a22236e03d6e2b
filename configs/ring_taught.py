"""Ring of 8 Gaussians from a learned teacher: DisBack, and what has a reward.

    fdistill train --config=configs/ring_teacher.py --workdir=runs/ring-teacher
    fdistill train --config=configs/ring_taught.py:METHOD --workdir=runs/ring-METHOD
    fdistill evaluate --workdir=runs/ring-METHOD

The argument is the method: `degrade`, in runs/ring-degrade, then `disback`; `di_plus_plus`,
`di_star`, `mapo` or `f_dpo`. The reward is the first coordinate, so that these are to lean to one
side. Measured values are in docs/results.md.
"""

from ml_collections import ConfigDict

LAW = dict(name='loguniform', sigma_min=0.03, sigma_max=3.0)
GRID = dict(name='karras', steps=18, sigma_min=0.02, sigma_max=10.0)
STUDENT = dict(sigma_init=1.4, student_law=LAW, critic_law=LAW)
# The norm of a 2-vector is often almost 0, so DMD's weight is no good here.
GAP = STUDENT | dict(weighting='unit')
METHODS = {
    'degrade': dict(sigma_init=1.4, law=LAW, grid=GRID),
    'disback': GAP | dict(interval=250),
    'di_plus_plus': GAP | dict(reward_weight=0.03),
    'di_star': STUDENT | dict(c=0.1, scale='unit', reward_weight=0.03),
    'mapo': dict(law=LAW, grid=GRID, scale=0.5, beta=0.1, temperature=1000.0),
    'f_dpo': dict(law=LAW, grid=GRID, divergence='js', temperature=10.0),
}
RATES = {'degrade': 1e-3, 'mapo': 1e-4, 'f_dpo': 1e-4}
STEPS = {'degrade': 400, 'mapo': 300, 'f_dpo': 300}


def get_config(method='disback'):
    path = dict(workdir='runs/ring-degrade', steps=(50, 100, 200, 400))
    reward = dict(name='linear', direction=(1.0, 0.0))
    steps, rates = STEPS.get(method, 3000), dict(student=RATES.get(method, 3e-3))
    if 'critic_law' in METHODS[method]:
        rates |= dict(critic=2e-3)
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='mixture', mixture='ring', labelled=False),
            teacher=dict(workdir='runs/ring-teacher'),
            **(dict(path=path) if method == 'disback' else {}),
            **({} if method in ('degrade', 'disback') else dict(reward=reward)),
            method=dict(name=method) | METHODS[method],
            optimizer={
                role: dict(learning_rate=rate, b1=0.5, b2=0.99, schedule='cosine', final=0.05)
                for role, rate in rates.items()
            },
            training=dict(
                steps=steps,
                batch_size=256,
                ema_half_life=90e3,
                ema_ramp_up=0.5,
                log_every=50,
                # Those of the degradation are the way back.
                checkpoint_every=50 if method == 'degrade' else steps,
                keep=8,
                sample_every=0,
            ),
            mesh=dict(data=-1, fsdp=1),
            evaluation=dict(samples=10000, seed=0, batch_size=1000),
        )
    )
