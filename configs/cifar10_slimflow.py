"""SlimFlow on CIFAR-10 (arXiv 2407.12718), with the settings of its code: a student of half of the
teacher's parameters by annealing reflow, then flow-guided distillation.

    fdistill train --config=configs/cifar10_slimflow.py --workdir=runs/cifar10-slimflow-reflow
    fdistill train --config=configs/cifar10_slimflow.py:distil --workdir=runs/cifar10-slimflow
    [--config.data.data_dir=DIR] fdistill evaluate --workdir=runs/cifar10-slimflow

The first needs runs/cifar10-teacher (configs/cifar10_teacher.py), which makes pairs as they are
needed; the paper makes 50,000 before, which serve the second stage, too, where LPIPS's weights are
needed, converted. FID there 4.53 with 27.9 M parameters, 5.02 with 15.7 M (model_channels=96). The
length of the second stage is ours. Not run.
"""

from ml_collections import ConfigDict, config_dict

FIRST = dict(
    network=dict(
        name='ddpmpp',
        model_channels=128,
        channel_mult=(1, 2, 2),
        num_blocks=2,
        attn_resolutions=(16,),
        dropout=0.15,
    ),
    denoiser=dict(sigma_data=0.5),
    teacher=dict(workdir='runs/cifar10-teacher'),
    pairs=dict(sampler='heun', grid=dict(name='karras', steps=18, sigma_min=0.002, sigma_max=80.0)),
    method=dict(
        name='reflow',
        law=dict(name='uniform_time', low=1e-3, high=1 - 1e-3),
        annealing='linear',
        annealing_steps=300000,
        grid=dict(name='even_time', steps=1, sigma_max=999.0),
    ),
)
SECOND = dict(
    teacher=dict(workdir='runs/cifar10-slimflow-reflow'),
    pairs=dict(sampler='euler', grid=dict(name='even_time', steps=25, sigma_max=999.0)),
    method=dict(name='flow_guided', sigma_init=999.0, pixel_weight=0.0, perceptual_weight=1.0),
    features=dict(name='lpips-vgg', weights='weights/lpips-vgg.safetensors', resize=64),
)


def get_config(stage='reflow'):
    own, steps = (FIRST, 800000) if stage == 'reflow' else (SECOND, 300000)
    return ConfigDict(
        dict(
            seed=0,
            data=dict(
                name='tfds', dataset='cifar10', data_dir=config_dict.placeholder(str), flip=True
            ),
            **own,
            optimizer=dict(student=dict(learning_rate=2e-4, b2=0.999, warmup=5000, clip=1.0)),
            training=dict(
                steps=steps,
                batch_size=128,
                ema_half_life=8.87e7,  # Decay 0.999999 a step.
                ema_ramp_up=0.05,
                log_every=100,
                checkpoint_every=50000,
                sample_every=10000,
            ),
            mesh=dict(data=-1, fsdp=1, model=1),
            evaluation=dict(samples=50000, seed=0, batch_size=500),
        )
    )
