"""Which divergence? The shipped comparisons, each in one command: teacher where there is one,
students, report.

    python experiments/divergences.py [mixtures digits mnist cifar10] [--workdir runs/divergences]
        [--config.data.data_dir=DIR]

mixtures: one Gaussian against two, everything but the student exact; three minutes on two cores.
  digits: an MLP on 8 x 8 images,
15 minutes. mnist, cifar10: U-Nets, for an accelerator; without one they run only if named. Killed
and started again it goes on where it was.
"""

import argparse
import pathlib
import sys
import time
from typing import NamedTuple

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / 'configs'


class Comparison(NamedTuple):
    """teacher: config that the students need first, or None. accelerator: whether it is hopeless
    without one."""

    teacher: str | None
    accelerator: bool


COMPARISONS = {
    'mixtures': Comparison(None, False),
    'digits': Comparison('digits_teacher.py', False),
    'mnist': Comparison('mnist_teacher.py', True),
    'cifar10': Comparison('cifar10_teacher.py', True),
}


def main(words=None):
    from fdistill.cli import split

    words, overrides = split(sys.argv[1:] if words is None else words)
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0], allow_abbrev=False)
    parser.add_argument(
        'names',
        nargs='*',
        metavar='NAME',
        help=f'of {", ".join(COMPARISONS)}; default: all that this machine can',
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
        if comparison.accelerator and not options.names and jax.default_backend() == 'cpu':
            print(
                f'== {name}: not run, there is no accelerator; name it to run it all the same',
                flush=True,
            )
            continue
        print(f'== {name}', flush=True)
        given = list(overrides)
        if comparison.teacher:
            teacher = config.load(str(CONFIGS / comparison.teacher))
            build.override(teacher, overrides)
            build.train(teacher, folder / 'teacher')
            given.append(f'--config.teacher.workdir={folder / "teacher"}')
        sweep.run(
            str(CONFIGS / 'sweeps' / f'{name}.py'),
            folder,
            overrides=given,
            vmap_seeds=not comparison.teacher,
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
