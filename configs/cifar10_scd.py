"""One-step student of the CIFAR-10 teacher by continuous-time consistency distillation (sCD of sCM,
arXiv 2410.11081).

    fdistill train --config=configs/cifar10_scd.py --workdir=runs/cifar10-scd
    [--config.data.data_dir=DIR] fdistill evaluate --workdir=runs/cifar10-scd

Needs runs/cifar10-teacher (configs/cifar10_teacher.py) and its data. 256 M images, FastGen's
number. FID in the paper, without classes: 3.66, with a second step from 0.98 (method.levels) 2.52;
FastGen, whose teacher is EDM's, 3.22. Other than in the paper: classes; EDM's noise input
ln(sigma)/4 for t (denoiser.noise_input='angle' in the teacher's file) and its normalisation in the
blocks; Adam with a warm-up of 2/(1 - b2) updates (arXiv 1910.04209) for RAdam. Not run.
"""

from ml_collections import ConfigDict, config_dict


def get_config():
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='tfds', dataset='cifar10', data_dir=config_dict.placeholder(str)),
            teacher=dict(workdir='runs/cifar10-teacher'),
            # The teacher's, without its dropout.
            network=dict(
                name='ddpmpp',
                model_channels=128,
                channel_mult=(2, 2, 2),
                num_blocks=4,
                attn_resolutions=(16,),
                dropout=0.0,
            ),
            method=dict(
                name='scd',
                law=dict(name='lognormal', mean=-1.0, std=1.4),
                warmup_steps=10000,
                c=0.1,
                sigma_init=80.0,
                levels=(),
            ),
            optimizer=dict(student=dict(learning_rate=1e-4, b1=0.9, b2=0.99, warmup=200)),
            training=dict(
                steps=500000,
                batch_size=512,
                ema_half_life=0.5e6,
                log_every=100,
                checkpoint_every=5000,
                sample_every=10000,
            ),
            mesh=dict(data=-1, fsdp=1, model=1),
            evaluation=dict(samples=50000, seed=0, batch_size=500),
        )
    )
