"""Frozen networks that see features, for distances of distributions: the section `features`."""

import functools
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fdistill.build.sections import load_data, named, real
from fdistill.data.sources import Source, to_float
from fdistill.diffusion import denoiser as denoisers
from fdistill.errors import UserError
from fdistill.evaluation import features as own
from fdistill.evaluation import protocol
from fdistill.evaluation import resize as resizing
from fdistill.evaluation.frechet import Moments
from fdistill.networks import Encoder, lpips
from fdistill.networks.classifier import classifier
from fdistill.types import Place
from fdistill.weights import store
from fdistill.weights.detectors import DETECTORS
from fdistill.weights.lpips import KINDS

WHERE = 'config.features'
# Images at once, in a pass over the data.
BLOCK = 250
# Features of one network whose covariance fits into memory.
MOST_OF_MOMENTS = 2**14


class Made(NamedTuple):
    """An encoder and how to get its weights.

    encoder: `Encoder`.
    load() -> parameters on the host; None where it has none.
    """

    encoder: Encoder
    load: Callable[[], Any] | None = None


def pixels(plain: Mapping[str, Any]) -> Made:
    """The elements of a sample themselves, as those of points and latents."""
    return Made(Encoder(lambda key, x, condition: {}, lambda _, x: (x.reshape(len(x), -1),)))


def fourier(
    plain: Mapping[str, Any], *, count: int = 256, width: float = 0.2, seed: int = 0
) -> Made:
    """Random waves sqrt(2) cos(w.x + b), whose products are a Gaussian kernel on average: for
    points, of whose coordinates two moments say little.

    Args:
      plain: the resolved config.
      count: of the waves, >= 1.
      width: of the kernel, > 0; w ~ N(0, I / width^2).
      seed: of the waves, >= 0.

    Reference: Rahimi and Recht, Random features for large-scale kernel machines, 2007.
    """
    if count < 1 or not width > 0 or seed < 0:
        raise ValueError(f'count={count}, width={width}, seed={seed}: need >= 1, > 0 and >= 0')

    def init(key, x, condition):
        key_wave, key_phase = jax.random.split(key)
        wave = jax.random.normal(key_wave, (x[0].size, count)) / width
        return {'wave': wave, 'phase': jax.random.uniform(key_phase, (count,), maxval=2 * jnp.pi)}

    def apply(params, x):
        angle = jnp.matmul(x.reshape(len(x), -1), params['wave'], precision='highest')
        return (jnp.sqrt(2) * jnp.cos(angle + params['phase']),)

    def load():
        return init(jax.random.key(seed), jnp.zeros((1, *plain['image']['shape'])), {})

    return Made(Encoder(init, apply), load)


def own_classifier(plain: Mapping[str, Any], *, seed: int = 0, layers: bool = False) -> Made:
    """The features of `evaluation.features.classifier_features`, which measure as well; or all
    layers of that network, each of unit length at each position, as LPIPS compares them.

    Args:
      plain: the resolved config, of whose data the classifier is.
      seed: of its training, >= 0.
      layers: for a distance of one image to another. What lies beyond the grey levels is seen then,
        and so pulled back.
    """
    shape = _images(plain, 'classifier')
    if seed < 0:
        raise ValueError(f'seed={seed}: need >= 0')
    model = classifier(num_classes=max(plain['image']['num_classes'], 1), image_shape=shape)

    def init(key, x, condition):
        params = model.init(key, x)
        return {
            'network': params,
            'scale': jnp.ones(jax.eval_shape(model.apply, params, x)[1].shape[1]),
        }

    def load():
        trained = own.trained_classifier(load_data(real(plain), 'train'), seed)
        return {'network': trained.params, 'scale': trained.scale}

    def apply(params, x):
        if layers:
            return tuple(map(lpips.normalised, model.layers(params['network'], x)))
        return (model.apply(params['network'], jnp.clip(x, -1, 1))[1] / params['scale'],)

    return Made(Encoder(init, apply), load)


def published(detector: str, plain: Mapping[str, Any], *, weights: Annotated[str, Place]) -> Made:
    """A published network, fed as by the first protocol that has it, but for the rounding of images
    to grey levels, which has no gradient.

    Args:
      detector: key of `weights.detectors.DETECTORS`.
      plain: the resolved config.
      weights: file that `fdistill convert` wrote.
    """
    _images(plain, detector, (1, 3))
    network = DETECTORS[detector].network(None)
    rules = next(rules for rules in protocol.PROTOCOLS.values() if rules.detector == detector)

    def apply(params, x):
        prepared = protocol.prepare(rules, (jnp.clip(x, -1, 1) + 1) * 127.5)
        return (network.apply(params, prepared)['pool'],)

    return _converted(detector, network, weights, apply)


def perceptual(
    kind: str,
    plain: Mapping[str, Any],
    *,
    weights: Annotated[str, Place],
    resize: int = 0,
    pooling: str = 'max',
) -> Made:
    """The layers of LPIPS, so that `losses.perceptual` of them is LPIPS; images are not clipped.

    Args:
      kind: key of `weights.lpips.KINDS`.
      plain: the resolved config.
      weights: file that `fdistill convert` wrote.
      resize: pixels of a side that images have before, bilinearly; 0: they stay as they are. 2-RF++
        has 224, SlimFlow 64.
      pooling: key of `lpips.POOLINGS`.
    """
    sides = _images(plain, kind, (1, 3))[:2]
    network = lpips.lpips(KINDS[kind], pooling)
    if (resize or min(sides)) < network.smallest:
        raise UserError(
            f'{WHERE}.resize={resize}: {kind} sees images of at least {network.smallest} pixels a '
            f'side, and these have {sides[0]} x {sides[1]}; set resize=64'
        )
    bilinear = functools.partial(resizing.bilinear, resizing.half_pixel_positions)

    def apply(params, x):
        x = resizing.separable(x, resize, weights=bilinear) if resize else x
        return network.apply(params, jnp.broadcast_to(x, (*x.shape[:3], 3)))

    return _converted(kind, network, weights, apply)


def _converted(kind, network, weights, apply):
    """`Made` of a network's shapes and from_arrays, and of the file of its weights."""

    def init(key, x, condition):
        shapes = network.shapes()
        return network.from_arrays({name: np.zeros(s, np.float32) for name, s in shapes.items()})

    def load():
        arrays, metadata = store.load(weights, network.shapes())
        if metadata.get('kind') != kind:
            raise UserError(
                f'{WHERE}.weights={weights}: holds weights {metadata.get("kind")!r}, not {kind}'
            )
        return network.from_arrays(arrays)

    return Made(Encoder(init, apply), load)


ENCODERS = {
    'pixels': pixels,
    'fourier': fourier,
    'classifier': own_classifier,
    **{name: functools.partial(published, name) for name in DETECTORS},
    **{kind: functools.partial(perceptual, kind) for kind in KINDS},
}


def encoder(plain: Mapping[str, Any]) -> Made:
    """What the section `features` of a resolved config says: one row of `ENCODERS`, or several,
    whose distances are added.

    Raises:
      UserError: on whatever the user can mend.
    """
    section = plain.get('features')
    if not section:
        raise UserError(
            f'{WHERE}: missing; give one of {", ".join(ENCODERS)} with its settings, as '
            "dict(name='pixels'), or several in a tuple"
        )
    if not isinstance(section, (list, tuple)):
        return named(ENCODERS, section, WHERE, plain=plain)
    parts = [named(ENCODERS, one, f'{WHERE}[{k}]', plain=plain) for k, one in enumerate(section)]

    def init(key, x, condition):
        return tuple(part.encoder.init(key, x, condition) for part in parts)

    def load():
        return tuple(part.load() if part.load else {} for part in parts)

    def apply(params, x):
        each = params if any(part.load for part in parts) else [{}] * len(parts)
        return sum((part.encoder.apply(p, x) for part, p in zip(parts, each, strict=True)), ())

    return Made(Encoder(init, apply), load if any(part.load for part in parts) else None)


def accumulated(encoder: Encoder, microbatches: int) -> Encoder:
    """The same, which sees a batch in parts: see `denoiser.in_parts`."""

    def apply(params, x):
        if not 1 < microbatches <= len(x):
            return encoder.apply(params, x)
        return denoisers.in_parts(lambda part, _: encoder.apply(params, part), x, microbatches)

    return encoder._replace(apply=apply)


class Reference(NamedTuple):
    """Moments of the data's features, of each encoder {'mean': [d], 'variances': [d], 'axes':
    [d, d]}: the covariance is axes diag(variances) axes'. With labels, d is that of the features
    and the classes.

    init(key, x, condition) -> moments, of which the shapes are meant.
    load() -> moments float32, on the host.
    known() -> what they are made from, besides the data and the encoder's weights, which are known
      themselves. Not their bits, in which machines differ, as in the signs of axes.
    """

    init: Callable[..., Any]
    load: Callable[[], Any]
    known: Callable[[], dict[str, Any]]


def reference(plain: Mapping[str, Any], made: Made, label_scale: float) -> Reference:
    """The `Reference` of the training split, mirrored images among it where they are trained on.

    Args:
      plain: the resolved config.
      made: of its `encoder`.
      label_scale: of one-hot labels that join the features; 0: they do not.
    """
    classes = plain['image']['num_classes'] if label_scale else 0
    flip = bool(plain['data'].get('flip'))
    if label_scale and not classes:
        raise UserError(
            f'config.method.label_scale={label_scale}: the data has no labels; set it 0'
        )

    def init(key, x, condition):
        seen = made.encoder.apply(made.encoder.init(key, x, condition), x)
        widths = [one.shape[1] + classes for one in seen]
        return tuple(
            {'mean': jnp.zeros(d), 'variances': jnp.zeros(d), 'axes': jnp.zeros((d, d))}
            for d in widths
        )

    def load():
        source, params = load_data(real(plain), 'train'), made.load() if made.load else {}
        found = measured(made.encoder, params, source, flip, label_scale)
        return tuple(_along_axes(one) for one in found)

    def known():
        names = [one['name'] if isinstance(one, Mapping) else one for one in _rows(plain)]
        return {'features': names, 'flip': flip, 'label_scale': float(label_scale)}

    return Reference(init, load, known)


def measured(
    encoder: Encoder, params: Any, source: Source, flip: bool = False, label_scale: float = 0.0
) -> list[Moments]:
    """`Moments` of the features of all samples of a source, one for each network.

    Args:
      encoder, params: what sees them.
      source: `Source`.
      flip: of each image its mirror image counts as well.
      label_scale: of one-hot labels that join the features; 0: they do not.

    Raises:
      UserError: more features than have a covariance.
    """
    run, found = jax.jit(encoder.apply), None
    one = jax.ShapeDtypeStruct((1, *source.images.shape[1:]), np.float32)
    if (most := max(f.shape[1] for f in jax.eval_shape(run, params, one))) > MOST_OF_MOMENTS:
        raise UserError(
            f'{WHERE}: {most:,} features of one network have no covariance that fits into memory, '
            f'for {MOST_OF_MOMENTS:,} are the most; use others, as classifier'
        )
    labels = label_scale * np.eye(source.num_classes)[source.labels] if label_scale else None
    for start in range(0, len(source.images), BLOCK):
        block = to_float(np.asarray(source.images[start : start + BLOCK]), source.levels)
        padding = [(0, BLOCK - len(block))] + [(0, 0)] * (block.ndim - 1)
        views = (block, block[:, :, ::-1]) if flip else (block,)
        for view in views:
            seen = [np.asarray(f)[: len(block)] for f in run(params, np.pad(view, padding))]
            if labels is not None:
                seen = [np.hstack([f, labels[start : start + BLOCK]]) for f in seen]
            found = found or [Moments.empty(f.shape[1]) for f in seen]
            found = [before.update(f) for before, f in zip(found, seen, strict=True)]
    return found


def _rows(plain):
    """The section `features` as a sequence of sections."""
    section = plain['features']
    return section if isinstance(section, (list, tuple)) else [section]


def _along_axes(moments):
    variances, axes = np.linalg.eigh(moments.covariance)
    found = {'mean': moments.mean, 'variances': np.maximum(variances, 0), 'axes': axes}
    return {name: array.astype(np.float32) for name, array in found.items()}


def _images(plain, name, channels=None):
    """The shape of images; UserError where the samples are none, or have other channels than
    these."""
    image = plain['image']
    if len(image['shape']) != 3 or 'latents' in image:
        raise UserError(f'{WHERE}.name={name!r}: sees images, and the samples are none; use pixels')
    if channels and image['shape'][2] not in channels:
        raise UserError(
            f'{WHERE}.name={name!r}: sees images of {" or ".join(map(str, channels))} channels, '
            f'and these have {image["shape"][2]}; use pixels or classifier'
        )
    return tuple(image['shape'])
