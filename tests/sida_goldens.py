"""Losses of SiDA's and Uni-Instruct's own code for toy networks, and how they were recorded.

`python tests/sida_goldens.py SID UNI_INSTRUCT` writes data/sida_goldens.npz; SID is a clone of
github.com/mingyuanzhou/SiD at its branch sida, UNI_INSTRUCT one of
github.com/a-little-hoof/Uni_Instruct (3cdf92e). Recorded with torch 2.13.0+cpu in float64, one
sample after another, for in that code the GAN term of a sample is a batch's mean.
"""

import importlib
import pathlib
import sys

import numpy as np

GOLDENS = pathlib.Path(__file__).parent / 'data' / 'sida_goldens.npz'
SHAPE = (3, 4, 4)
SAMPLES = 4


def networks(np):
    """(D_T, D_F, its channel mean), functions of x_t[B,3,4,4], of numpy or torch."""
    return (
        lambda x: 0.7 * np.tanh(x),
        lambda x: 0.5 * np.sin(x) + 0.1 * x,
        lambda x: (0.3 * x + np.cos(x)).mean(1),
    )


def _record(module, name, **options):
    import torch

    d_teacher, d_fake, mean = networks(torch)
    loss = getattr(importlib.import_module(module), name)()
    told = {}

    def score(x_t, sigma, labels, augment_labels=None, return_flag='decoder'):
        told.update(x_t=x_t, sigma=sigma)
        answers = {'encoder': mean(x_t)[:, None], 'decoder': d_fake(x_t)}
        return (
            [answers[part] for part in return_flag.split('_')[::-1]]
            if '_' in return_flag
            else (answers[return_flag])
        )

    def teacher(x_t, sigma, labels, augment_labels=None):
        return d_teacher(x_t)

    found = {}

    def keep(**values):
        for key, value in values.items():
            found.setdefault(key, []).append(value.detach().numpy()[0])

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    for _ in range(SAMPLES):
        x = torch.randn(1, *SHAPE, requires_grad=True)
        first, gan, *_ = loss.generator_share_encoder_loss(teacher, score, x, **options)
        # As in the loop that trains with them.
        n = x[0].numel()
        gan = gan.mean(dim=[1, 2, 3]) * n * 0.01
        total = 0.5 * 100 * first.sum() + 0.5 * gan.sum()
        keep(x=x, x_t=told['x_t'], sigma=told['sigma'][:, 0, 0, 0])
        keep(score=first.sum(dim=[1, 2, 3]), gan=gan, gradient=torch.autograd.grad(total, x)[0])
        real = torch.randn(1, *SHAPE)
        denoising, adversarial = loss.fakescore_discriminator_share_encoder_loss(
            score, x, real_images=real
        )
        keep(
            critic_real_t=told['x_t'],
            critic_fake_t=told['x_t'] - real + x,
            critic_sigma=told['sigma'][:, 0, 0, 0],
            denoising=denoising.sum(dim=[1, 2, 3]),
            adversarial=adversarial[:, 0, 0, 0],
        )
    return {key: np.stack(values) for key, values in found.items()}


if __name__ == '__main__':
    cases = {
        'sida': (sys.argv[1], 'sida_training.sida_loss', 'SIDA_EDMLoss', {'alpha': 1.0}),
        'uni_instruct': (sys.argv[2], 'fsim_training.fsim_loss', 'FSIM_EDMLoss', {}),
    }
    arrays = {}
    for case, (folder, *named, options) in cases.items():
        sys.path.insert(0, folder)
        arrays |= {f'{case}/{key}': x for key, x in _record(*named, **options).items()}
        sys.path.pop(0)
        for module in [name for name in sys.modules if name.split('.')[0] == 'torch_utils']:
            del sys.modules[module]
    np.savez_compressed(GOLDENS, **arrays)
