"""Teacher on MNIST, 28 x 28 pixels, class-conditional: a DDPM++ U-Net of 6 M parameters.

    fdistill train --config=configs/mnist_teacher.py --workdir=runs/mnist-teacher
    [--config.data.data_dir=DIR] fdistill evaluate --workdir=runs/mnist-teacher

Needs the TFDS data set mnist as ArrayRecord in DIR, by default TFDS' own. An hour or so of one GPU
(estimate). Not run.
"""

from ml_collections import ConfigDict, config_dict


def get_config():
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='tfds', dataset='mnist', data_dir=config_dict.placeholder(str)),
            network=dict(
                name='ddpmpp',
                model_channels=64,
                channel_mult=(1, 2, 2),
                num_blocks=2,
                attn_resolutions=(14,),
                dropout=0.1,
            ),
            # The standard deviation of its pixels is 0.62 in [-1, 1].
            denoiser=dict(sigma_data=0.6),
            method=dict(
                name='pretrain',
                law=dict(name='lognormal', mean=-1.2, std=1.2),
                sampler='heun',
                grid=dict(name='karras', steps=18, sigma_min=0.002, sigma_max=80.0),
            ),
            optimizer=dict(student=dict(learning_rate=5e-4, warmup=1000, clip=1.0)),
            training=dict(
                steps=50000,
                batch_size=256,
                ema_half_life=2e5,
                log_every=100,
                checkpoint_every=2500,
                sample_every=2500,
            ),
            mesh=dict(data=-1, fsdp=1),
            evaluation=dict(samples=10000, seed=0, batch_size=500),
        )
    )
