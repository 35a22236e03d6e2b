"""One-step student of the MNIST transformer for two cores, by score identity distillation (SiD,
arXiv 2404.04057).

    fdistill train --config=configs/mnist_dit_sid.py --workdir=runs/mnist-dit-sid
    [--config.data.data_dir=DIR] fdistill evaluate --workdir=runs/mnist-dit-sid

Needs runs/mnist-dit-teacher (configs/mnist_dit_teacher.py) and its data. Not run. Long and short
guidance (SiD-LSG): --config.method.critic_guidance=1.5 --config.method.fake_guidance=1.5, as the
teacher's.
"""

from ml_collections import ConfigDict, config_dict


def get_config():
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='tfds', dataset='mnist', data_dir=config_dict.placeholder(str)),
            teacher=dict(workdir='runs/mnist-dit-teacher', guidance=1.5),
            method=dict(
                name='sid',
                alpha=1.0,
                cycle='alternate',
                student_every=1,
                sigma_init=2.5,
                student_law=dict(name='lognormal', mean=0.0, std=1.2),
                critic_law=dict(name='lognormal', mean=0.0, std=1.2),
            ),
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
