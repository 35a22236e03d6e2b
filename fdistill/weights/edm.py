"""Networks of EDM and EDM2 out of NVIDIA's pickles, by the names and settings that these hold.

A pickle holds modules under 'ema' and other names, each with the arguments it was built with. The
average 'ema' is the published network. Its preconditioning is the outer module; the settings of
both are its keyword arguments.

Reference: github.com/NVlabs/edm at 008a4e5 and github.com/NVlabs/edm2 at 4bf8162,
  training/networks.py and training/networks_edm2.py (names, defaults, formulas).
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fdistill.networks.unet import edm_name
from fdistill.weights.found import Found, Refused, ShapesOf, matched, settled

LICENCE = 'CC BY-NC-SA 4.0 (NVIDIA), if these are the published weights'

_REQUIRED = {'img_resolution': 0, 'img_channels': 0, 'label_dim': 0, 'use_fp16': False}


def _edm(settings):
    return {'name': 'edm', 'sigma_data': settings['sigma_data']}


def _vp(settings):
    beta_d, beta_min = settings['beta_d'], settings['beta_min']

    def sigma(t):
        return math.sqrt(math.expm1(0.5 * beta_d * t**2 + beta_min * t))

    return {
        'name': 'prediction',
        'prediction': 'eps',
        'schedule': {'name': 'vp_linear', 'beta_min': beta_min, 'beta_max': beta_min + beta_d},
        'time_scale': float(settings['M'] - 1),
        'sigma_range': [sigma(settings['epsilon_t']), sigma(1.0)],
    }


def _ve(settings):
    return {'name': 've', 'sigma_range': [settings['sigma_min'], settings['sigma_max']]}


# Class of the preconditioning: its section `denoiser`, and its own settings with their defaults.
_PRECONDITIONINGS = {
    'EDMPrecond': (_edm, {'sigma_min': 0, 'sigma_max': math.inf, 'sigma_data': 0.5}),
    'VPPrecond': (_vp, {'beta_d': 19.9, 'beta_min': 0.1, 'M': 1000, 'epsilon_t': 1e-5}),
    'VEPrecond': (_ve, {'sigma_min': 0.02, 'sigma_max': 100}),
}
_MODEL_TYPE = {'EDMPrecond': 'DhariwalUNet', 'VPPrecond': 'SongUNet', 'VEPrecond': 'SongUNet'}

_UNET = {'augment_dim': 0, 'channel_mult_emb': 4, 'dropout': 0.1, 'label_dropout': 0}
_SONG = {
    'model_channels': 128,
    'channel_mult': [1, 2, 2, 2],
    'num_blocks': 4,
    'attn_resolutions': [16],
    'embedding_type': 'positional',
    'channel_mult_noise': 1,
    'encoder_type': 'standard',
    'decoder_type': 'standard',
    'resample_filter': [1, 1],
}
_DHARIWAL = {
    'model_channels': 192,
    'channel_mult': [1, 2, 3, 4],
    'num_blocks': 3,
    'attn_resolutions': [32, 16, 8],
}
# What distinguishes Song's two networks, by our names for them.
_KINDS = {
    'ddpmpp': ('positional', 1, 'standard', 'standard', [1, 1]),
    'ncsnpp': ('fourier', 2, 'residual', 'standard', [1, 3, 3, 1]),
}


def _song(settings):
    names = 'embedding_type channel_mult_noise encoder_type decoder_type resample_filter'.split()
    found = tuple(settings.pop(name) for name in names)
    kinds = [name for name, kind in _KINDS.items() if kind == (*found[:4], list(found[4]))]
    if not kinds:
        said = ', '.join(f'{name}={value!r}' for name, value in zip(names, found))
        raise Refused(f'is a SongUNet of no published kind ({said}); use DDPM++ or NCSN++')
    return kinds[0]


# Class of the network: its settings with their defaults, and our name for it.
_NETWORKS = {
    'SongUNet': (_SONG, _song),
    'DhariwalUNet': (_DHARIWAL, lambda settings: 'adm'),
}


def _ema(tree):
    """The module 'ema' of a pickle, or None."""
    module = tree.get('ema') if isinstance(tree, dict) else None
    return module if isinstance(module, dict) and 'class_name' in module else None


def fits(tree: Any) -> bool:
    """Whether a file holds a network of EDM."""
    module = _ema(tree)
    known = (*_PRECONDITIONINGS, 'iDDPMPrecond')
    return module is not None and module['class_name'] in known


def fits_edm2(tree: Any) -> bool:
    """Whether a file holds a network of EDM2."""
    module = _ema(tree)
    return module is not None and module['class_name'] == 'Precond'


def _arguments(module, what):
    """Keyword arguments that a module was built with."""
    if module['init_args']:
        raise Refused(f'{what} was built with arguments that have no names; take another file')
    given = module['init_kwargs']
    if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
        raise Refused(f'{what} does not say what it was built with; take another file')
    return given


def _flat(module):
    """{dotted name: array}."""
    from fdistill.weights import reader

    return reader.flatten(module)


def _image(settings):
    """What the data is; its settings are taken out."""
    sizes = {name: settings.pop(name) for name in ('img_resolution', 'img_channels', 'label_dim')}
    for name, size in sizes.items():
        if type(size) is not int or size < (name != 'label_dim'):
            raise Refused(f'{name}={size!r:.40}: is no size; take the file as it was published')
    resolution, channels, classes = sizes.values()
    return {'shape': [resolution, resolution, channels], 'num_classes': classes}


def find(tree: Mapping[str, Any], shapes_of: ShapesOf) -> Found:
    """The average of an EDM pickle: DDPM++, NCSN++ or ADM under EDM's, VP or VE preconditioning.

    Args:
      tree: the file; the average is taken out of it, so that memory holds its arrays once.
      shapes_of: see `found.ShapesOf`.

    Raises:
      Refused: it is another network, has settings that are not known, or other arrays.
    """
    module = tree.pop('ema')
    kind = module['class_name']
    if kind not in _PRECONDITIONINGS:
        known = ', '.join(_PRECONDITIONINGS)
        raise Refused(f'its preconditioning is {kind}, which is not supported; known are {known}')
    denoiser, own = _PRECONDITIONINGS[kind]
    given = dict(_arguments(module, kind))
    name = given.pop('model_type', _MODEL_TYPE[kind])
    if not isinstance(name, str) or name not in _NETWORKS:
        raise Refused(f'its network is {name!r:.40}; known are {", ".join(_NETWORKS)}')
    defaults, choose = _NETWORKS[name]
    settings = settled(given, _REQUIRED | own | _UNET | defaults, f'{kind} of {name}')
    image = _image(settings)
    taps = settings.get('resample_filter', [1, 1])
    section = denoiser(settings)
    section_network = {'name': choose(settings)}
    # How a network was trained and computed there is not part of it.
    for key in (*own, 'use_fp16', 'label_dropout'):
        del settings[key]
    model = {'network': section_network | settings, 'denoiser': section, 'image': image}

    arrays = {key.removeprefix('model.'): array for key, array in _flat(module).items()}
    del module
    unused = {}
    for key in list(arrays):
        if key.endswith('.resample_filter'):
            _check_filter(key, arrays[key], taps)
            unused[key] = 'constant of the architecture'
    places = {path: edm_name(path.split('/')) for path in shapes_of(model)}
    names = {path: place for path, (place, _) in places.items()}
    matched(arrays, names, unused)
    turned = {}
    for path, (place, axes) in places.items():
        array = arrays.pop(place)
        turned[path] = np.ascontiguousarray(
            array.transpose(axes) if array.ndim == len(axes) else array
        )
    sources = {path: (f'ema.model.{place}',) for path, place in names.items()}
    return Found(model, turned, sources, LICENCE, unused)


def _check_filter(name, array, taps):
    expected = np.outer(taps, taps)[None, None] / sum(taps) ** 2
    if array.shape != expected.shape or np.abs(array - expected).max() > 1e-3:
        raise Refused(f'{name!r} is not the filter {list(taps)} of the network')


_EDM2 = {
    'model_channels': 192,
    'channel_mult': [1, 2, 3, 4],
    'channel_mult_noise': None,
    'channel_mult_emb': None,
    'num_blocks': 3,
    'attn_resolutions': [16, 8],
    'label_balance': 0.5,
    'concat_balance': 0.5,
    'resample_filter': [1, 1],
    'channels_per_head': 64,
    'dropout': 0,
    'res_balance': 0.3,
    'attn_balance': 0.3,
    'clip_act': 256,
}


def find_edm2(tree: Mapping[str, Any], shapes_of: ShapesOf) -> Found:
    """The average of an EDM2 pickle. The estimate of the loss's variance that it was trained with
    is left out.

    Args and raises: as of `find`.
    """
    module = tree.pop('ema')
    own = {'sigma_data': 0.5, 'logvar_channels': 128}
    given = _arguments(module, 'Precond')
    settings = settled(given, _REQUIRED | own | _EDM2, 'Precond of EDM2')
    image = _image(settings)
    if (taps := list(settings.pop('resample_filter'))) != [1, 1]:
        raise Refused(f'its resample_filter is {taps}; EDM2 has [1, 1]')
    denoiser = {'name': 'edm', 'sigma_data': settings['sigma_data']}
    for key in (*own, 'use_fp16'):
        del settings[key]
    settings |= {'dropout': float(settings['dropout'])}
    model = {'network': {'name': 'edm2'} | settings, 'denoiser': denoiser, 'image': image}
    arrays = _flat(module)
    unused = {
        name: "the uncertainty in EDM2's training loss"
        for name in arrays
        if name.startswith('logvar_')
    }
    names = {name: f'unet.{name}' for name in shapes_of(model)}
    matched(arrays, names, unused)
    found = {ours: arrays[theirs] for ours, theirs in names.items()}
    sources = {ours: (f'ema.{theirs}',) for ours, theirs in names.items()}
    return Found(model, found, sources, LICENCE, unused)
