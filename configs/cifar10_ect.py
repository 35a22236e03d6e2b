"""One-step generator of CIFAR-10 from the weights of a teacher, by easy consistency tuning (ECT,
arXiv 2406.14548), with the settings of its code.

    fdistill train --config=configs/cifar10_ect.py --workdir=runs/cifar10-ect
    [--config.data.data_dir=DIR] fdistill evaluate --workdir=runs/cifar10-ect

Needs runs/cifar10-teacher (configs/cifar10_teacher.py), to begin with, and its data. 25.6 M images.
FID there, from EDM's teacher without classes: 3.86, with a second step from 0.821 (method.levels)
2.15; with twice the images 3.60 and 2.11. Other than there: classes; Adam with a warm-up of
2/(1 - b2) updates (arXiv 1910.04209) for RAdam. Not run.
"""

from ml_collections import ConfigDict, config_dict


def get_config():
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='tfds', dataset='cifar10', data_dir=config_dict.placeholder(str)),
            start=dict(workdir='runs/cifar10-teacher'),
            # The teacher's, with another dropout.
            network=dict(
                name='ddpmpp',
                model_channels=128,
                channel_mult=(2, 2, 2),
                num_blocks=4,
                attn_resolutions=(16,),
                dropout=0.2,
            ),
            denoiser=dict(sigma_data=0.5),
            method=dict(
                name='ect',
                law=dict(name='lognormal', mean=-1.1, std=2.0),
                q=2.0,
                k=8.0,
                b=1.0,
                # 3.2 M images.
                stage_steps=25000,
                distance='l2',
                weighting='step',
                sigma_init=80.0,
                levels=(),
            ),
            optimizer=dict(student=dict(learning_rate=1e-4, b1=0.9, b2=0.999, warmup=2000)),
            training=dict(
                steps=200000,
                batch_size=128,
                # Decay 0.9999 a step.
                ema_half_life=0.887e6,
                log_every=100,
                checkpoint_every=5000,
                sample_every=10000,
            ),
            mesh=dict(data=-1, fsdp=1, model=1),
            evaluation=dict(samples=50000, seed=0, batch_size=500),
        )
    )
