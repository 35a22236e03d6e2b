"""Teacher on CIFAR-10, class-conditional: EDM's DDPM++ (arXiv 2206.00364, table 7) without its
augmentation pipe.

    fdistill train --config=configs/cifar10_teacher.py --workdir=runs/cifar10-teacher
    [--config.data.data_dir=DIR] fdistill evaluate --workdir=runs/cifar10-teacher

Needs the TFDS data set cifar10 as ArrayRecord in DIR, by default TFDS' own. 55.7 M parameters, 200
M images; EDM took two days of 8 V100 and reports FID 1.79 with augmentation at 35 evaluations.
Mirrored images stand in for the pipe. Not run; our distances use other features than FID's and do
not compare with it.
"""

from ml_collections import ConfigDict, config_dict


def get_config():
    return ConfigDict(
        dict(
            seed=0,
            data=dict(
                name='tfds', dataset='cifar10', data_dir=config_dict.placeholder(str), flip=True
            ),
            network=dict(
                name='ddpmpp',
                model_channels=128,
                channel_mult=(2, 2, 2),
                num_blocks=4,
                attn_resolutions=(16,),
                dropout=0.13,
            ),
            denoiser=dict(sigma_data=0.5),
            method=dict(
                name='pretrain',
                law=dict(name='lognormal', mean=-1.2, std=1.2),
                sampler='heun',
                grid=dict(name='karras', steps=18, sigma_min=0.002, sigma_max=80.0, rho=7.0),
            ),
            # EDM sums over an image's 3072 values where we take the mean: its eps of 1e-8 is 3e-12
            # here. Warm-up: 10 M images.
            optimizer=dict(
                student=dict(learning_rate=1e-3, b1=0.9, b2=0.999, eps=3e-12, warmup=19531)
            ),
            training=dict(
                steps=390625,
                batch_size=512,
                ema_half_life=0.5e6,
                ema_ramp_up=0.05,
                log_every=100,
                checkpoint_every=5000,
                sample_every=10000,
            ),
            mesh=dict(data=-1, fsdp=1, model=1),
            evaluation=dict(samples=50000, seed=0, batch_size=500),
        )
    )
