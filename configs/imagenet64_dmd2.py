"""One-step student of the ImageNet-64 teacher by DMD2 (arXiv 2405.14867), as in its paper in a
single run.

    fdistill train --config=configs/imagenet64_dmd2.py --workdir=runs/imagenet64-dmd2
    [--config.data.data_dir=DIR] fdistill evaluate --workdir=runs/imagenet64-dmd2

Needs runs/imagenet64-teacher (configs/imagenet64_teacher.py) and its data. 56 M images; DMD2
trained on 7 GPUs of 40 images each and reports FID 1.51 from EDM's teacher (1.28 by a longer run in
two stages). Not run.
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
            teacher=dict(workdir='runs/imagenet64-teacher'),
            # The teacher's, without its dropout.
            network=dict(
                name='adm',
                model_channels=192,
                channel_mult=(1, 2, 3, 4),
                num_blocks=3,
                attn_resolutions=(32, 16, 8),
                dropout=0.0,
                bfloat16=True,
                remat='elementwise',
            ),
            method=dict(
                name='dmd2',
                sigma_init=80.0,
                student_law=dict(name='karras_uniform', low=0.02, high=0.98),
                critic_law=dict(name='karras_uniform', low=0.0, high=1.0),
                critic_weighting='edm',
                features='fake_score',
                gan_weight=3e-3,
                gan_fresh_noise=True,
                discriminator_weight=1e-2,
                cycle='dmd2',
                student_every=5,
            ),
            # The bottleneck, 8 x 8.
            discriminator=dict(name='conv', indices=(-1,)),
            # Warm-up: 500 steps, which are 100 updates of the student.
            optimizer=dict(
                student=dict(
                    learning_rate=2e-6, b1=0.9, b2=0.999, weight_decay=0.01, clip=10.0, warmup=100
                ),
                critic=dict(
                    learning_rate=2e-6, b1=0.9, b2=0.999, weight_decay=0.01, clip=10.0, warmup=500
                ),
            ),
            training=dict(
                steps=200000,
                batch_size=280,
                # DMD2 keeps no average of the weights: a half-life of one image.
                ema_half_life=1.0,
                log_every=100,
                checkpoint_every=5000,
                sample_every=5000,
            ),
            mesh=dict(data=-1, fsdp=1, model=1),
            evaluation=dict(samples=50000, seed=0, batch_size=250),
        )
    )
