"""One-step student of the CIFAR-10 teacher by DMD2 (arXiv 2405.14867), as FastGen sets it: the
paper has no CIFAR-10.

    fdistill train --config=configs/cifar10_dmd2.py --workdir=runs/cifar10-dmd2
    [--config.data.data_dir=DIR] fdistill evaluate --workdir=runs/cifar10-dmd2

Needs runs/cifar10-teacher (configs/cifar10_teacher.py) and its data. 205 M images. FastGen's FID
from EDM's teacher is 1.99, f-distill's reproduction 2.13. The paper's own choices are in
configs/imagenet64_dmd2.py. Not run; our distances use other features.
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
                name='dmd2',
                sigma_init=80.0,
                student_law=dict(name='karras_uniform', low=0.002, high=0.998),
                critic_law=dict(name='karras_uniform', low=0.002, high=0.998),
                # FastGen leaves the fake score unweighted; the default here is DMD2's 'edm'.
                critic_weighting='unit',
                features='teacher',
                gan_weight=1e-3,
                gan_fresh_noise=False,
                discriminator_weight=1.0,
                cycle='fastgen',
                student_every=5,
            ),
            # One logit for each resolution: 32, 16 and 8.
            discriminator=dict(name='conv', indices=(0, 1, 2)),
            optimizer=dict(
                student=dict(learning_rate=1e-4, b1=0.9, b2=0.999, weight_decay=0.01, clip=10.0),
                critic=dict(learning_rate=1e-4, b1=0.9, b2=0.999, weight_decay=0.01),
            ),
            training=dict(
                steps=100000,
                batch_size=2048,
                # FastGen: decay 0.9999 a step, which is 0.9995 an update of the student.
                ema_half_life=2.84e6,
                log_every=100,
                checkpoint_every=2500,
                sample_every=2500,
            ),
            mesh=dict(data=-1, fsdp=1, model=1),
            evaluation=dict(samples=50000, seed=0, batch_size=500),
        )
    )
