"""One-step student of the CIFAR-10 teacher by Uni-Instruct (arXiv 2505.20755), class-conditional,
with the settings of its code.

    fdistill train --config=configs/cifar10_uni_instruct.py --workdir=runs/cifar10-uni-instruct
    [--config.data.data_dir=DIR] fdistill evaluate --workdir=runs/cifar10-uni-instruct

Needs runs/cifar10-teacher (configs/cifar10_teacher.py) and its data. 300 M images. FID there, from
EDM's teacher: 1.38. The code reads its ratio from a loss, and other than here does not move it with
the samples; its critic also sees EDM's augmentation pipe. Not run; our distances use other features
than FID's.
"""

from ml_collections import ConfigDict, config_dict


def get_config(divergence='forward_kl'):
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='tfds', dataset='cifar10', data_dir=config_dict.placeholder(str)),
            # The network is the teacher's; the fake score keeps its dropout of 0.13.
            teacher=dict(workdir='runs/cifar10-teacher'),
            method=dict(
                name='uni_instruct',
                divergence=divergence,
                weighting='dmd',
                # 0.01 to 100.
                gan_weight=1e-4,
                gan_weighting='dmd',
                # Images: 100 and 200 thousand.
                burn_in=391,
                gan_from=782,
                # EDM's weight has the mean 200, is halved, and the score's loss is a sum.
                discriminator_weight=100 / 3072,
                features='fake_score',
                sigma_init=2.5,
                # sigma <= 24.4.
                student_law=dict(name='karras_uniform', low=0.0, high=0.8),
                critic_law=dict(name='lognormal', mean=-1.2, std=1.2),
                cycle='alternate',
                student_every=1,
            ),
            discriminator=dict(name='channel_mean'),
            # SiD's eps of 1e-8 with our mean over 3072 values for its sums, the student's times
            # 100.
            optimizer=dict(
                student=dict(learning_rate=1e-5, b1=0.0, b2=0.999, eps=3e-14),
                # Without the code's clip of each entry of this gradient at 1.
                critic=dict(learning_rate=1e-5, b1=0.0, b2=0.999, eps=3e-12),
            ),
            training=dict(
                steps=1171875,
                batch_size=256,
                ema_half_life=0.5e6,
                ema_ramp_up=0.05,
                log_every=100,
                checkpoint_every=10000,
                sample_every=10000,
            ),
            mesh=dict(data=-1, fsdp=1, model=1),
            evaluation=dict(samples=50000, seed=0, batch_size=500),
        )
    )
