"""One Gaussian against two modes on the line, by any divergence, with the exact score and density
ratio: nothing else is learned.

    fdistill train --config=configs/pair_exact.py:js --workdir=runs/pair-js
    fdistill evaluate --workdir=runs/pair-js

A few seconds. `spread` tells the divergences apart: mode-seeking ones take the mode nearer to the
start, .25 of the data's standard deviation; forward KL matches the moments, 1.
"""

from ml_collections import ConfigDict


def get_config(divergence='reverse_kl', mixture='pair'):
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='mixture', mixture=mixture, labelled=False),
            # With sigma_data = sigma_init = 1 the student starts with standard deviation .5 and
            # mean offset/sqrt(2).
            network=dict(name='gaussian', spread=0.2),
            denoiser=dict(sigma_data=1.0),
            teacher=dict(oracle=mixture),
            method=dict(
                name='exact',
                divergence=divergence,
                student_law=dict(name='loguniform', sigma_min=0.02, sigma_max=0.1),
            ),
            optimizer=dict(student=dict(learning_rate=2e-2, b1=0.9, schedule='cosine', final=0.0)),
            training=dict(
                steps=600,
                batch_size=1024,
                ema_half_life=30e3,
                ema_ramp_up=0.5,
                log_every=50,
                checkpoint_every=0,
                sample_every=0,
            ),
            mesh=dict(data=-1, fsdp=1),
            evaluation=dict(samples=10000, seed=0, batch_size=10000),
        )
    )
