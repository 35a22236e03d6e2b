"""Teacher on scikit-learn's handwritten digits, 8 x 8 pixels, class-conditional.

    fdistill train --config=configs/digits_teacher.py --workdir=runs/digits-teacher
    fdistill evaluate --workdir=runs/digits-teacher

About 40 CPU-seconds.
Expect, with 35 network evaluations, fd_held_out about 0.11 (2000 training images drawn again: 0.11)
and accuracy 0.99. `digits_teacher.py:short` is a flawed teacher of 300 steps; fd_held_out 0.48.
"""

from ml_collections import ConfigDict

STEPS = {'full': 5000, 'short': 300}


def get_config(length='full'):
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='digits'),
            # Dropout holds off memorisation: without it the nearest training image comes too close
            # before the samples are good.
            network=dict(name='mlp', width=256, blocks=3, embedding=64, dropout=0.15),
            denoiser=dict(sigma_data=0.75),
            method=dict(
                name='pretrain',
                law=dict(name='lognormal', mean=-0.6, std=1.4),
                sampler='heun',
                # At sigma 10 the noise does not yet hide the mean of 64 pixels.
                grid=dict(name='karras', steps=18, sigma_min=0.02, sigma_max=40.0),
            ),
            optimizer=dict(
                student=dict(
                    learning_rate=4e-3,
                    b2=0.99,
                    weight_decay=1e-4,
                    clip=1.0,
                    warmup=100,
                    schedule='cosine',
                    final=0.02,
                ),
            ),
            training=dict(
                steps=STEPS[length],
                batch_size=128,
                ema_half_life=18e3,
                ema_ramp_up=0.2,
                log_every=250,
                checkpoint_every=STEPS[length] // 2,
                sample_every=0,
            ),
            mesh=dict(data=-1, fsdp=1),
            evaluation=dict(samples=2000, seed=0, batch_size=500),
        )
    )
