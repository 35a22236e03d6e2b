"""One-step student of the MNIST teacher, by any f-divergence (f-distill, arXiv 2502.15681).

    fdistill train --config=configs/mnist_f_distill.py:js --workdir=runs/mnist-js
    [--config.data.data_dir=DIR] fdistill evaluate --workdir=runs/mnist-js

Needs runs/mnist-teacher (configs/mnist_teacher.py) and its data. Hours of one GPU (estimate).
Settings by analogy with CIFAR-10's, not tuned. Not run.
"""

from ml_collections import ConfigDict, config_dict


def get_config(divergence='js'):
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='tfds', dataset='mnist', data_dir=config_dict.placeholder(str)),
            teacher=dict(workdir='runs/mnist-teacher'),
            # The teacher's, without its dropout.
            network=dict(
                name='ddpmpp',
                model_channels=64,
                channel_mult=(1, 2, 2),
                num_blocks=2,
                attn_resolutions=(14,),
                dropout=0.0,
            ),
            method=dict(
                name='f_distill',
                divergence=divergence,
                sigma_init=80.0,
                student_law=dict(name='karras_uniform', low=0.002, high=0.998),
                critic_law=dict(name='karras_uniform', low=0.002, high=0.998),
                features='teacher',
                gan_weight=1e-3,
                bins=10,
                bins_decay=0.5,
                cycle='fastgen',
                student_every=5,
            ),
            # One logit for each resolution: 28, 14 and 7.
            discriminator=dict(name='conv', indices=(0, 1, 2)),
            optimizer=dict(
                student=dict(learning_rate=1e-4, weight_decay=0.01, clip=10.0),
                critic=dict(learning_rate=1e-4, weight_decay=0.01),
            ),
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
