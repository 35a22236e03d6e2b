"""Measures a published teacher as its paper did, and compares the FID with the paper's.

    fdistill convert inception inception-2015-12-05.pkl weights/inception.safetensors
    fdistill convert teacher edm-cifar10-32x32-uncond-vp.pkl weights/cifar10-uncond.safetensors
    fdistill stats convert cifar10-32x32.npz weights/cifar10.npz --protocol=edm --count=50000
    python experiments/published_fid.py cifar10-uncond --weights=weights/cifar10-uncond.safetensors
        --detector=weights/inception.safetensors --statistics=weights/cifar10.npz

The first three need the files as they were published. Exit code 1 where the FID is not the paper's
to within --tolerance; the numbers are kept as `fdistill evaluate` keeps them, and what was measured
of a range of seeds is not measured again.
"""

import argparse
import sys
from typing import Any, NamedTuple

from fdistill import build
from fdistill.errors import UserError, pick


class Published(NamedTuple):
    """What a paper reports.

    fid: the lowest of three ranges of 50,000 seeds, or as the paper says.
    solver: of `build.from_weights`.
    file, source: the published weights, and where the number stands.
    """

    fid: float
    solver: dict[str, Any]
    file: str
    source: str
    protocol: str = 'edm'


_HEUN_18, _HEUN_40 = ({'sampler': 'heun', 'steps': steps} for steps in (18, 40))
_CHURN = {'name': 'heun', 's_churn': 40.0, 's_min': 0.05, 's_max': 50.0, 's_noise': 1.003}
_TABLE_2, _ABSTRACT = 'arXiv 2206.00364, table 2', 'arXiv 2206.00364, abstract'
PUBLISHED = {
    'cifar10-uncond': Published(1.97, _HEUN_18, 'edm-cifar10-32x32-uncond-vp.pkl', _TABLE_2),
    'cifar10-cond': Published(1.79, _HEUN_18, 'edm-cifar10-32x32-cond-vp.pkl', _TABLE_2),
    'ffhq': Published(2.39, _HEUN_40, 'edm-ffhq-64x64-uncond-vp.pkl', _TABLE_2),
    'afhqv2': Published(1.96, _HEUN_40, 'edm-afhqv2-64x64-uncond-vp.pkl', _TABLE_2),
    'imagenet64': Published(
        1.36,
        {'sampler': _CHURN, 'steps': 256},
        'edm-imagenet-64x64-cond-adm.pkl',
        _ABSTRACT,
    ),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f'{message}; see --help')


def parse(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = _Parser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('name', metavar='NAME', help=f'one of {", ".join(PUBLISHED)}')
    for name, text in (
        ('weights', 'of `fdistill convert teacher`'),
        ('detector', 'of `fdistill convert inception`'),
        ('statistics', "the publisher's, of `fdistill stats convert`"),
    ):
        parser.add_argument(f'--{name}', metavar='FILE', required=True, help=text)
    parser.add_argument('--ranges', type=int, help='of seeds; default: all three')
    parser.add_argument('--batch-size', type=int, metavar='B', help='images at once')
    parser.add_argument(
        '--tolerance', type=float, default=0.05, help='of the FID; default: %(default)s'
    )
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Runs a command line; 0 where the FID is the paper's, 1 where not, 2 for a user's error."""
    try:
        options = parse(words)
        row = pick(PUBLISHED, options.name, 'NAME')
        given = {name: getattr(options, name) for name in ('detector', 'statistics', 'ranges')}
        measured = build.evaluate(
            None,
            weights=options.weights,
            solver=row.solver,
            protocol=row.protocol,
            metrics=('fid',),
            batch_size=options.batch_size,
            **given,
        )
    except UserError as error:
        print(f'published_fid: {error}', file=sys.stderr)
        return 2
    name, fid = next((key, value) for key, value in measured.items() if key.startswith('fid'))
    apart = abs(fid - row.fid)
    said = 'agrees' if apart <= options.tolerance else 'does not agree'
    print(f'{name}: {fid:.4f}, published {row.fid} ({row.source}): {said}')
    return 0 if apart <= options.tolerance else 1


if __name__ == '__main__':
    sys.exit(main())
