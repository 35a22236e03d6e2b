"""Teacher on MNIST for a laptop: the residual MLP on 28 x 28 pixels, class-conditional; legible
digits, not sharp ones.

    fdistill train --config=configs/mnist_mlp_teacher.py --workdir=runs/mnist-mlp-teacher
    [--config.data.data_dir=DIR] fdistill evaluate --workdir=runs/mnist-mlp-teacher

Needs the TFDS data set mnist as ArrayRecord in DIR, by default TFDS' own.
"""

from ml_collections import ConfigDict, config_dict


def get_config():
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='tfds', dataset='mnist', data_dir=config_dict.placeholder(str)),
            network=dict(name='mlp', width=512, blocks=4, embedding=64, dropout=0.1),
            # The standard deviation of its pixels is 0.62 in [-1, 1].
            denoiser=dict(sigma_data=0.6),
            method=dict(
                name='pretrain',
                law=dict(name='lognormal', mean=-0.4, std=1.4),
                sampler='heun',
                grid=dict(name='karras', steps=18, sigma_min=0.01, sigma_max=80.0),
            ),
            optimizer=dict(
                student=dict(
                    learning_rate=2e-3, b2=0.99, clip=1.0, warmup=200, schedule='cosine', final=0.02
                ),
            ),
            training=dict(
                steps=12000,
                batch_size=256,
                ema_half_life=1e5,
                ema_ramp_up=0.2,
                log_every=250,
                checkpoint_every=2000,
                sample_every=0,
            ),
            mesh=dict(data=-1, fsdp=1),
            evaluation=dict(samples=10000, seed=0, batch_size=500),
        )
    )
