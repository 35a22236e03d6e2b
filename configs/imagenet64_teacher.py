"""Teacher on ImageNet at 64 x 64, class-conditional: EDM's ADM network (arXiv 2206.00364, table 7),
in bfloat16.

    fdistill train --config=configs/imagenet64_teacher.py --workdir=runs/imagenet64-teacher
    [--config.data.data_dir=DIR] fdistill evaluate --workdir=runs/imagenet64-teacher

Needs the TFDS data set imagenet_resized/64x64 as ArrayRecord in DIR, by default TFDS' own; EDM's
images are centre crops made in another way, so an FID is to be taken against these. 295.9 M
parameters, 2500 M images; EDM took 13 days of 32 A100 and reports FID 1.36 at 511 evaluations of a
stochastic sampler, which is not included. Not run.
"""

from ml_collections import ConfigDict, config_dict


def get_config():
    return ConfigDict(
        dict(
            seed=0,
            data=dict(
                name='tfds',
                dataset='imagenet_resized/64x64',
                held_out='validation',
                data_dir=config_dict.placeholder(str),
            ),
            network=dict(
                name='adm',
                model_channels=192,
                channel_mult=(1, 2, 3, 4),
                num_blocks=3,
                attn_resolutions=(32, 16, 8),
                dropout=0.1,
                bfloat16=True,
                remat='elementwise',
            ),
            denoiser=dict(sigma_data=0.5),
            method=dict(
                name='pretrain',
                law=dict(name='lognormal', mean=-1.2, std=1.2),
                sampler='heun',
                grid=dict(name='karras', steps=40, sigma_min=0.002, sigma_max=80.0, rho=7.0),
            ),
            # EDM sums over the 12288 values of an image, times 100, where we take the mean.
            # Warm-up: 10 M images.
            optimizer=dict(
                student=dict(learning_rate=1e-4, b1=0.9, b2=0.999, eps=1e-14, warmup=2441)
            ),
            training=dict(
                steps=610352,
                batch_size=4096,
                ema_half_life=50e6,
                ema_ramp_up=0.05,
                log_every=100,
                checkpoint_every=2500,
                sample_every=10000,
            ),
            mesh=dict(data=-1, fsdp=1, model=1),
            evaluation=dict(samples=50000, seed=0, batch_size=250),
        )
    )
