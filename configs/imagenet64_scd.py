"""One-step student of EDM2's ImageNet-64 teacher of size S by continuous-time consistency
distillation (sCD of sCM, arXiv 2410.11081, table of ImageNet-64).

    fdistill convert teacher edm2-img64-s-1073741-0.075.pkl weights/imagenet64-edm2-s.safetensors
    fdistill train --config=configs/imagenet64_scd.py --workdir=runs/imagenet64-scd
    fdistill evaluate --workdir=runs/imagenet64-scd

Needs the teacher as EDM2 published it, and ImageNet at 64 x 64. 819 M images. FID there, of size S:
2.97, with a second step from 0.98 (method.levels) 2.07. The paper's teachers are its own, with t
and positional features for ln(sigma)/4 and Fourier features, and with a double normalisation;
FastGen warns that EDM2's Fourier features make this training unstable. A cosine stands for EDM2's
learning rate, which falls with the root of the step from the 35,000th on: both to 0.3 of the peak.
Not run.
"""

from ml_collections import ConfigDict, config_dict


def get_config():
    return ConfigDict(
        dict(
            seed=0,
            data=dict(
                name='tfds',
                dataset='imagenet_resized/64x64',
                held_out='validation',
                data_dir=config_dict.placeholder(str),
            ),
            teacher=dict(weights='weights/imagenet64-edm2-s.safetensors'),
            # The teacher's, EDM2-S. float32: a derivative in bfloat16 has two digits.
            network=dict(
                name='edm2',
                model_channels=192,
                channel_mult=(1, 2, 3, 4),
                num_blocks=3,
                attn_resolutions=(16, 8),
                dropout=0.0,
                remat='elementwise',
            ),
            method=dict(
                name='scd',
                law=dict(name='lognormal', mean=-1.0, std=1.6),
                warmup_steps=10000,
                c=0.1,
                sigma_init=80.0,
                levels=(),
            ),
            optimizer=dict(
                student=dict(
                    learning_rate=1e-4,
                    b2=0.99,
                    eps=1e-11,
                    schedule='cosine',
                    final=0.3,
                    unit_weights=True,
                ),
            ),
            training=dict(
                steps=400000,
                batch_size=2048,
                # The ramp is EDM2's average of relative length 0.05: ln(2)/(16.97 + 1). At the end
                # the half life is 31.6 M images.
                ema_half_life=32e6,
                ema_ramp_up=0.0386,
                log_every=100,
                checkpoint_every=5000,
                sample_every=5000,
            ),
            mesh=dict(data=-1, fsdp=1, model=1),
            evaluation=dict(samples=50000, seed=0, batch_size=250),
        )
    )
