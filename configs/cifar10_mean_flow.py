"""One-step generator of CIFAR-10 from data alone, by MeanFlow (arXiv 2505.13447), with the settings
of the paper's experiment in the authors' code (cifar10_v0).

    fdistill train --config=configs/cifar10_mean_flow.py --workdir=runs/cifar10-mean-flow
    [--config.data.data_dir=DIR] fdistill evaluate --workdir=runs/cifar10-mean-flow

Needs the TFDS data set cifar10 as ArrayRecord in DIR, by default TFDS' own. 819 M images. FID
there, without classes: 2.92. Their cifar10_v1, about 2.8, has pairing='independent',
lognormal(-0.6, 1.6) and until_law lognormal(-4, 1.6). Other than there: classes; images are
mirrored only, without EDM's augmentation; filter [1, 1]; the second time is added to the embedding
of the first, and is until itself in place of t - r. Samples begin at t = 0.999, as FastGen's. Not
run.
"""

from ml_collections import ConfigDict, config_dict


def get_config():
    return ConfigDict(
        dict(
            seed=0,
            data=dict(
                name='tfds', dataset='cifar10', data_dir=config_dict.placeholder(str), flip=True
            ),
            network=dict(
                name='ddpmpp',
                model_channels=128,
                channel_mult=(2, 2, 2),
                num_blocks=4,
                attn_resolutions=(16,),
                dropout=0.2,
                numbers=('until',),
            ),
            # The network is the velocity, at t in [0, 1].
            denoiser=dict(name='prediction', prediction='flow', schedule=dict(name='flow')),
            method=dict(
                name='mean_flow',
                law=dict(name='lognormal', mean=-2.0, std=2.0),
                pairing='sorted',
                share_equal=0.25,
                power=0.75,
                c=0.001,
                levels=(999.0,),
            ),
            optimizer=dict(student=dict(learning_rate=6e-4, b1=0.9, b2=0.999, warmup=9600)),
            training=dict(
                steps=800000,
                batch_size=1024,
                # Decay 0.99995 a step.
                ema_half_life=14.2e6,
                log_every=100,
                checkpoint_every=10000,
                sample_every=10000,
            ),
            mesh=dict(data=-1, fsdp=1, model=1),
            evaluation=dict(samples=50000, seed=0, batch_size=500),
        )
    )
