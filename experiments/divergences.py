"""Which divergence? The shipped comparisons, each in one command: teacher where there is one,
students, report.

    python experiments/divergences.py [mixtures digits mnist mnist_small cifar10]
        [--workdir runs/divergences] [--config.data.data_dir=DIR]

mixtures: one Gaussian against two, everything but the student exact; three minutes on two cores.
digits: an MLP on 8 x 8 images, 15 minutes. mnist: transformers, students as large as their teacher,
and mnist_small, of a quarter of its parameters; hours of two cores. cifar10: U-Nets, for an
accelerator. Without names, those that take hours of CPU run on an accelerator alone. Killed and
started again it goes on where it was.
"""

import argparse
import pathlib
import sys
import time
from typing import NamedTuple

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / 'configs'


class Comparison(NamedTuple):
    """What the students of a sweep need first: {section of their config: (folder, config of the
    run there)}; folders of one name are one run for all comparisons. long: on CPU, hours or more.
    """

    first: dict[str, tuple[str, str]]
    long: bool


MNIST = {'teacher': ('mnist-dit-teacher', 'mnist_dit_teacher.py')}
COMPARISONS = {
    'mixtures': Comparison({}, False),
    'digits': Comparison({'teacher': ('digits-teacher', 'digits_teacher.py')}, False),
    'mnist': Comparison(MNIST, True),
    'mnist_small': Comparison(
        MNIST | {'start': ('mnist-dit-teacher-small', 'mnist_dit_teacher.py:small')}, True
    ),
    'cifar10': Comparison({'teacher': ('cifar10-teacher', 'cifar10_teacher.py')}, True),
}


def main(words=None):
    from fdistill.cli import split

    words, overrides = split(sys.argv[1:] if words is None else words)
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0], allow_abbrev=False)
    parser.add_argument(
        'names',
        nargs='*',
        metavar='NAME',
        help=f'of {", ".join(COMPARISONS)}; default: on CPU, all that do not take hours; else all',
    )
    parser.add_argument(
        '--workdir', default='runs/divergences', help='where everything goes; default: %(default)s'
    )
    options = parser.parse_args(words)
    if unknown := set(options.names) - set(COMPARISONS):
        parser.error(f'{unknown.pop()}: known are {", ".join(COMPARISONS)}')
    # After parsing, so that --help is instant.
    import jax

    from fdistill import build, config, report, sweep

    for name in options.names or COMPARISONS:
        comparison, folder, began = (
            COMPARISONS[name],
            pathlib.Path(options.workdir) / name,
            time.perf_counter(),
        )
        if comparison.long and not options.names and jax.default_backend() == 'cpu':
            print(f'== {name}: not run, on CPU it takes hours; name it to run it', flush=True)
            continue
        print(f'== {name}', flush=True)
        given = list(overrides)
        for section, (called, file) in comparison.first.items():
            needed = config.load(str(CONFIGS / file))
            build.override(needed, overrides)
            build.train(needed, folder.parent / called)
            given.append(f'--config.{section}.workdir={folder.parent / called}')
        sweep.run(
            str(CONFIGS / 'sweeps' / f'{name}.py'),
            folder,
            overrides=given,
            vmap_seeds=not comparison.first,
        )
        written = report.write([folder])
        print(f'{written["report.html"]}: {time.perf_counter() - began:.0f} s', flush=True)
    return 0


if __name__ == '__main__':
    from fdistill.errors import NotFinite, UserError
    from fdistill.files import process

    process.prepare()
    try:
        sys.exit(main())
    except (NotFinite, UserError) as error:
        print(f'divergences: {error}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print('divergences: interrupted; the same command goes on from here', file=sys.stderr)
        sys.exit(130)
