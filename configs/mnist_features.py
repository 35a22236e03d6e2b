"""One-step generator of MNIST from data alone, by a distance of features: no teacher, no critic.

    fdistill train --config=configs/mnist_features.py:METHOD --workdir=runs/mnist-METHOD
    [--config.data.data_dir=DIR]
    fdistill evaluate --workdir=runs/mnist-METHOD

The argument is the method: `drifting`; `fd_loss`, which begins as its run; `drifting-pixels` and
`fd_loss-pixels`, which do not see the classifier by which fd is measured (not run). One to three
CPU-minutes each, and as much once for the classifiers of the independent scores.
Measured: fd_held_out 0.230 and 0.101, trained on it, and fd_ratio 76 and 60: the digits can be read
and the ground is not quite black.
"""

from ml_collections import ConfigDict, config_dict

CLASSIFIER, PIXELS = dict(name='classifier', seed=0), dict(name='pixels')
DRIFT = dict(name='drifting', temperatures=(0.02, 0.05, 0.2))
FRECHET = dict(name='fd_loss', decay=0.9, floor=1.0, smoothing=0.01, label_scale=1.0)
# All 784 pixels: what a few hundred random waves do not see is noise after training.
METHODS = {
    'drifting': (DRIFT, (CLASSIFIER, PIXELS)),
    'drifting-pixels': (DRIFT, PIXELS),
    'fd_loss': (FRECHET, (CLASSIFIER, PIXELS)),
    'fd_loss-pixels': (FRECHET, PIXELS),
}


def get_config(method='drifting'):
    settings, features = METHODS[method]
    tuned = settings is FRECHET  # It widens a collapsed student slowly; so it begins as another.
    start = dict(workdir='runs/mnist-' + method.replace('fd_loss', 'drifting'))
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='tfds', dataset='mnist', data_dir=config_dict.placeholder(str)),
            network=dict(name='mlp', width=512, blocks=4, embedding=64),
            denoiser=dict(sigma_data=0.6),
            **(dict(start=start) if tuned else {}),
            features=features,
            method=dict(settings, sigma_init=2.5),
            optimizer=dict(
                student=dict(
                    learning_rate=3e-4 if tuned else 1e-3,
                    b1=0.5,
                    b2=0.99,
                    schedule='cosine',
                    final=0.05,
                ),
            ),
            training=dict(
                steps=500 if tuned else 1200,
                batch_size=256,
                ema_half_life=20e3,
                ema_ramp_up=0.5,
                log_every=100,
                checkpoint_every=500 if tuned else 600,
                sample_every=0,
            ),
            mesh=dict(data=-1, fsdp=1),
            evaluation=dict(samples=10000, seed=0, batch_size=500),
        )
    )
