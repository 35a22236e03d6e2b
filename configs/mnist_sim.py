"""One-step student of the MNIST teacher, by score implicit matching (SIM, arXiv 2410.16794).

    fdistill train --config=configs/mnist_sim.py --workdir=runs/mnist-sim
    [--config.data.data_dir=DIR] fdistill evaluate --workdir=runs/mnist-sim

Needs runs/mnist-teacher (configs/mnist_teacher.py) and its data. Hours of one GPU (estimate).
Settings by analogy with CIFAR-10's, not tuned. Not run.
"""

from ml_collections import ConfigDict, config_dict


def get_config():
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='tfds', dataset='mnist', data_dir=config_dict.placeholder(str)),
            # The network is the teacher's, with its dropout in the fake score.
            teacher=dict(workdir='runs/mnist-teacher'),
            method=dict(
                name='sim',
                c=0.1,
                scale='eps',
                sigma_init=2.5,
                student_law=dict(name='karras_uniform', low=0.0, high=0.8),
                critic_law=dict(name='lognormal', mean=-1.2, std=1.2),
                cycle='alternate',
                student_every=1,
            ),
            optimizer=dict(
                student=dict(learning_rate=1e-5, b1=0.0, b2=0.999),
                critic=dict(learning_rate=1e-5, b1=0.0, b2=0.999),
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
