"""Ring of 8 Gaussians by the methods of pairs, which the oracle makes as they are needed, and by
progressive distillation of it.

    fdistill train --config=configs/ring_pairs.py --workdir=runs/ring-pairs
    fdistill evaluate --workdir=runs/ring-pairs

The argument is the method, as ring_pairs.py:reflow, or :progressive, from 8 steps to 4.
`flow_guided` needs runs/ring-reflow (that of `reflow`). Up to 27 CPU-seconds.
Measured in one step: kd, reflow and flow_guided find 8 modes with a high-quality share of 0.974,
0.937 and 0.975 (exact samples: 0.99).
"""

from ml_collections import ConfigDict

GRID = dict(name='karras', steps=18, sigma_min=0.02, sigma_max=10.0)
LAW = dict(name='u_shaped_time', edge=0.02)
OWN = {
    'reflow': dict(
        law=LAW, grid=dict(name='even_time', steps=1, sigma_max=49.0), sampler='same_noise'
    ),
    'kd': dict(sigma_init=49.0, pixel_weight=0.5),
    'flow_guided': dict(sigma_init=49.0),
    'progressive': dict(grid=GRID | dict(steps=8), from_teacher=False),
}


def get_config(method='kd'):
    guided = method == 'flow_guided'
    sampler = 'same_noise' if guided else 'heun'
    grid = dict(name='even_time', steps=8, sigma_max=49.0) if guided else GRID
    pairs = {} if method == 'progressive' else dict(pairs=dict(sampler=sampler, grid=grid))
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='mixture', mixture='ring', labelled=False),
            network=dict(name='mlp', width=64, blocks=2, embedding=64, fourier=3),
            denoiser=dict(sigma_data=0.7),
            teacher=dict(workdir='runs/ring-reflow') if guided else dict(oracle='ring'),
            **pairs,
            method=dict(name=method) | OWN[method],
            optimizer=dict(
                student=dict(learning_rate=3e-3, b2=0.99, schedule='cosine', final=0.02)
            ),
            training=dict(
                steps=4000,
                batch_size=256,
                ema_half_life=30e3,
                ema_ramp_up=0.5,
                log_every=200,
                checkpoint_every=2000,
                sample_every=0,
            ),
            mesh=dict(data=-1, fsdp=1),
            evaluation=dict(samples=10000, seed=0, batch_size=1000),
        )
    )
