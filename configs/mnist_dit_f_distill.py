"""One-step student of the MNIST transformer for two cores, by any f-divergence; the ratio comes
from the teacher's features.

    fdistill train --config=configs/mnist_dit_f_distill.py:js --workdir=runs/mnist-dit-js
    [--config.data.data_dir=DIR] fdistill evaluate --workdir=runs/mnist-dit-js

Needs runs/mnist-dit-teacher (configs/mnist_dit_teacher.py) and its data. 128,000 images, six to
nine minutes of two cores; measured with js, three seeds: fd_train 0.23, 0.22, 0.23, accuracy 0.98
to 0.99; its teacher, with 36 evaluations, 0.23 and 0.98.
"""

from ml_collections import ConfigDict, config_dict


def get_config(divergence='js'):
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='tfds', dataset='mnist', data_dir=config_dict.placeholder(str)),
            teacher=dict(workdir='runs/mnist-dit-teacher', guidance=1.5),
            method=dict(
                name='f_distill',
                divergence=divergence,
                gan_weight=0.0,
                features='teacher',
                ratio_low=0.1,
                ratio_high=10.0,
                cycle='alternate',
                student_every=1,
                sigma_init=2.5,
                student_law=dict(name='lognormal', mean=0.0, std=1.2),
                critic_law=dict(name='lognormal', mean=0.0, std=1.2),
            ),
            discriminator=dict(name='conv', indices=(1, 3)),
            optimizer=dict(
                student=dict(learning_rate=3e-4, b1=0.0, b2=0.99, schedule='cosine', final=0.1),
                critic=dict(learning_rate=6e-4, b1=0.0, b2=0.99, schedule='cosine', final=0.1),
            ),
            training=dict(
                steps=2000,
                batch_size=64,
                ema_half_life=1e4,
                ema_ramp_up=0.2,
                log_every=50,
                checkpoint_every=500,
                sample_every=500,
            ),
            mesh=dict(data=-1, fsdp=1),
            evaluation=dict(samples=5000, seed=0, batch_size=500),
        )
    )
