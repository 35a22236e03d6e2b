"""Networks behind one type. flax is imported in this package only."""

from typing import Any, Callable, NamedTuple


class Network(NamedTuple):
    """A network as two pure functions; it knows neither the noise schedule nor the mesh.

    init(key, x[B,...], c_noise[B], label[B]) -> params
    apply(params, x, c_noise, label, key=None, augment=None) -> (out[B,...], features)

    `x` is preconditioned input, `c_noise` the noise conditioning (EDM: ln(sigma)/4), `label` int32
    with -1 for "no label", `key` switches dropout on, `augment` is [B, A] of augmentation labels or
    None. `out` has the shape of `x` and is float32. `features` is a tuple of activations for
    discriminator heads.
    """

    init: Callable[..., Any]
    apply: Callable[..., Any]


class Head(NamedTuple):
    """A discriminator on a network's features; a positive logit means real.

    init(key, features, c_noise[B], label[B]) -> params
    apply(params, features, c_noise, label) -> logits[B, heads], float32
    """

    init: Callable[..., Any]
    apply: Callable[..., Any]


from fdistill.networks.gaussian import gaussian  # noqa: E402  They import the types above.
from fdistill.networks.heads import conv_head  # noqa: E402
from fdistill.networks.mlp import mlp, mlp_head  # noqa: E402
from fdistill.networks.unet import adm, ddpmpp, ncsnpp  # noqa: E402

NETWORKS = {'mlp': mlp, 'gaussian': gaussian, 'ddpmpp': ddpmpp, 'ncsnpp': ncsnpp, 'adm': adm}
HEADS = {'mlp': mlp_head, 'conv': conv_head}
