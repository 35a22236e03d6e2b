"""2-rectified flow++ of the CIFAR-10 teacher (arXiv 2405.20320), with the settings of its code.

    fdistill train --config=configs/cifar10_reflow.py --workdir=runs/cifar10-reflow
    [--config.data.data_dir=DIR] fdistill evaluate --workdir=runs/cifar10-reflow

Needs runs/cifar10-teacher (configs/cifar10_teacher.py), which makes pairs as they are needed, 35
evaluations each; the paper makes a million of them before. Needs LPIPS's weights, converted. 410 M
images. FID there in one step 3.38, without classes and from EDM's VE network. Not run.
"""

from ml_collections import ConfigDict, config_dict

TEACHER = dict(workdir='runs/cifar10-teacher')


def get_config():
    return ConfigDict(
        dict(
            seed=0,
            data=dict(
                name='tfds', dataset='cifar10', data_dir=config_dict.placeholder(str), flip=True
            ),
            teacher=TEACHER,
            start=TEACHER,
            network=dict(dropout=0.0),
            pairs=dict(
                sampler='heun',
                grid=dict(name='karras', steps=18, sigma_min=0.002, sigma_max=80.0),
            ),
            method=dict(
                name='reflow',
                law=dict(name='u_shaped_time', steepness=4.0, edge=1e-5),
                distance='pseudo_huber',
                c=0.00054,
                fade=True,
                perceptual_weight=1.0,
                perceptual_by_time=True,
                grid=dict(name='even_time', steps=1, sigma_max=99999.0),
                sampler='same_noise',
            ),
            features=dict(
                name='lpips-vgg',
                weights='weights/lpips-vgg.safetensors',
                resize=224,
                pooling='average',
            ),
            optimizer=dict(student=dict(learning_rate=2e-4, b1=0.9, b2=0.999, warmup=5000)),
            training=dict(
                steps=800000,
                batch_size=512,
                # Decay 0.9999 a step.
                ema_half_life=3.55e6,
                log_every=100,
                checkpoint_every=10000,
                sample_every=10000,
            ),
            mesh=dict(data=-1, fsdp=1, model=1),
            evaluation=dict(samples=50000, seed=0, batch_size=500),
        )
    )
