"""One-step generator of MNIST from data alone, by a distance of features: no teacher, no critic.

    fdistill train --config=configs/mnist_features.py:METHOD --workdir=runs/mnist-METHOD
    [--config.data.data_dir=DIR]
    fdistill evaluate --workdir=runs/mnist-METHOD

The argument is the method: drifting, or fd_loss; `drifting-pixels` and `fd_loss-waves` do not see
the classifier by which fd is measured. Not run.
"""

from ml_collections import ConfigDict, config_dict

CLASSIFIER, PIXELS = dict(name='classifier', seed=0), dict(name='pixels')
# Two moments of 784 pixels would be slow; those of waves of a width of half a distance say as much.
WAVES = dict(name='fourier', count=256, width=8.0)
DRIFT = dict(name='drifting', temperatures=(0.02, 0.05, 0.2))
FRECHET = dict(name='fd_loss', decay=0.9, floor=1.0, smoothing=0.01, label_scale=1.0)
METHODS = {
    'drifting': (DRIFT, (CLASSIFIER, PIXELS)),
    'drifting-pixels': (DRIFT, PIXELS),
    'fd_loss': (FRECHET, (CLASSIFIER, WAVES)),
    'fd_loss-waves': (FRECHET, WAVES),
}


def get_config(method='drifting'):
    settings, features = METHODS[method]
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='tfds', dataset='mnist', data_dir=config_dict.placeholder(str)),
            network=dict(name='mlp', width=512, blocks=4, embedding=64),
            denoiser=dict(sigma_data=0.6),
            features=features,
            method=dict(settings, sigma_init=2.5),
            optimizer=dict(
                student=dict(learning_rate=1e-3, b1=0.5, b2=0.99, schedule='cosine', final=0.05),
            ),
            training=dict(
                steps=3000,
                batch_size=256,
                ema_half_life=20e3,
                ema_ramp_up=0.5,
                log_every=100,
                checkpoint_every=1000,
                sample_every=0,
            ),
            mesh=dict(data=-1, fsdp=1),
            evaluation=dict(samples=10000, seed=0, batch_size=500),
        )
    )
