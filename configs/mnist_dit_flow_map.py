"""Flow map of the MNIST transformer for two cores, by the Lagrangian form of flow map distillation.

    fdistill train --config=configs/mnist_dit_flow_map.py --workdir=runs/mnist-dit-flow-map
    [--config.data.data_dir=DIR] fdistill evaluate --workdir=runs/mnist-dit-flow-map
    fdistill sample --workdir=runs/mnist-dit-flow-map --steps=4

Needs runs/mnist-dit-teacher (configs/mnist_dit_teacher.py) and its data. 256,000 images. The
method's settings are those of configs/digits_flow_map_distill.py, but for the levels, which are
those that the teacher is sampled with; the learning rate is a choice. Not run at this length;
measured after 2,400 steps, three and a half minutes of two cores: fd_train 0.48 in one jump,
accuracy 0.99, and 0.34 and 0.98 in four (teacher, 36 evaluations: 0.23 and 0.98).
"""

from ml_collections import ConfigDict, config_dict


def get_config():
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='tfds', dataset='mnist', data_dir=config_dict.placeholder(str)),
            teacher=dict(workdir='runs/mnist-dit-teacher', guidance=1.5),
            network=dict(numbers=('until',)),
            method=dict(
                name='flow_map_distill',
                law=dict(name='karras_uniform', sigma_min=0.01, sigma_max=80.0),
                pairing='sorted',
                share_equal=0.1,
                form='lagrangian',
                power=0.5,
                c=0.001,
                levels=(80.0,),
            ),
            optimizer=dict(
                student=dict(
                    learning_rate=5e-4, b2=0.99, clip=1.0, warmup=200, schedule='cosine', final=0.1
                ),
            ),
            training=dict(
                steps=4000,
                batch_size=64,
                ema_half_life=1e4,
                ema_ramp_up=0.2,
                log_every=50,
                checkpoint_every=1000,
                sample_every=1000,
            ),
            mesh=dict(data=-1, fsdp=1),
            evaluation=dict(samples=5000, seed=0, batch_size=500),
        )
    )
