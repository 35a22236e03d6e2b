"""Teacher -> one-step students -> evaluation, on real handwritten digits, in one command.

    make demo            # or: python experiments/demo.py [--seeds 3] [--short]
    make demo-mnist      # or: python experiments/demo.py mnist [--config.data.data_dir=DIR]

digits: 8 x 8 pixels, that come with scikit-learn; some three minutes. mnist: 28 x 28, the TFDS data
set below DIR, by default TFDS' own folder; 25 to 35 minutes on two cores (estimate). Killed and
started again it goes on where it was: a finished model is not trained again, an unfinished one
resumes.
"""

import argparse
import pathlib
import sys
import time
from typing import NamedTuple

from fdistill.files.text import table

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


class Demo(NamedTuple):
    """teacher: its config. students: {name: config}. workdir: the default one."""

    teacher: str
    students: dict[str, str]
    workdir: str


DEMOS = {
    'digits': Demo(
        'digits_teacher.py',
        {
            'reverse_kl': 'digits_f_distill.py:reverse_kl',
            'js': 'digits_f_distill.py:js',
            'sim': 'digits_sim.py',
            'flow_map': 'digits_flow_map_distill.py',
        },
        'runs/demo',
    ),
    'mnist': Demo('mnist_dit_teacher.py', {'js': 'mnist_dit_f_distill.py:js'}, 'runs/demo-mnist'),
}
COLUMNS = (
    'nfe',
    'fd_held_out',
    'fd_train',
    'pixel_fd',
    'precision',
    'recall',
    'density',
    'coverage',
    'accuracy',
    'diversity',
    'nn_ratio',
    'seconds',
)
# Steps of the short form, which checks that everything runs, but no quality.
SHORT = {'teacher': 150, 'student': 60}
SHOWN = 20  # samples side by side in the picture


def parse(words):
    from fdistill.cli import split

    words, overrides = split(words)
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n')[0],
        allow_abbrev=False,
        epilog='Any value that the configs of teacher and students have in common can be set: '
        '--config.a.b=c.',
    )
    parser.add_argument(
        'name', nargs='?', choices=DEMOS, default='digits', help='default: %(default)s'
    )
    parser.add_argument(
        '--workdir',
        help='where everything goes; default: '
        + ', '.join(f'{demo.workdir} ({name})' for name, demo in DEMOS.items()),
    )
    parser.add_argument(
        '--seeds',
        type=int,
        default=1,
        help='students of each kind, for a mean; default: %(default)s',
    )
    parser.add_argument(
        '--short', action='store_true', help='a few steps only, to see that everything runs'
    )
    options = parser.parse_args(words)
    if options.seeds < 1:
        parser.error(f'--seeds={options.seeds}: need at least 1')
    keys = [word.partition('=')[0] for word in overrides]
    if '--config.seed' in keys:
        parser.error('--config.seed: each student has a seed of its own; give --seeds')
    if options.short and '--config.training.steps' in keys:
        parser.error('--short: sets config.training.steps itself; give one of the two')
    return options, overrides


def main(words=None):
    options, given = parse(sys.argv[1:] if words is None else words)
    demo = DEMOS[options.name]
    began = time.perf_counter()
    # After parsing, so that --help is instant.
    import numpy as np

    from fdistill import build, config
    from fdistill.evaluation import evaluate
    from fdistill.files import disk, pictures

    workdir = disk.folder_for(options.workdir or demo.workdir, '--workdir')
    teacher_dir = workdir / 'teacher'

    def load(file, kind, **overrides):
        settings = config.load(str(REPOSITORY / 'configs' / file))
        build.override(settings, given)
        if options.short:
            overrides['training.steps'] = SHORT[kind]
        with settings.unlocked():
            settings.update_from_flattened_dict(overrides)
        return settings

    # All before the first is trained, so that a mistake in one costs no time.
    trained, students = [('teacher', teacher_dir, load(demo.teacher, 'teacher'))], {}
    for name, file in demo.students.items():
        for seed in range(options.seeds):
            folder = workdir / (name if seed == 0 else f'{name}-seed{seed}')
            title = f'student by {name}' + (f', seed {seed}' if options.seeds > 1 else '')
            overrides = {'teacher.workdir': str(teacher_dir), 'seed': seed}
            trained.append((title, folder, load(file, 'student', **overrides)))
            students.setdefault(name, []).append(folder)
    for title, folder, settings in trained:
        print(f'\n== {title}', flush=True)
        build.train(settings, folder)

    print('\n== evaluation', flush=True)
    settings = config.read(teacher_dir)
    sources = [build.load_data(settings, split) for split in ('train', 'held_out')]
    against = evaluate.reference(*sources)
    same = {key: settings.evaluation[key] for key in ('samples', 'seed')}
    real = evaluate.reference_rows(*sources, **same, against=against)['train']

    def row(folder):
        return build.evaluate(None, folder, against=against)

    teacher = row(teacher_dir)
    protocol = teacher.pop('protocol')
    rows = {name: _mean([row(folder) for folder in folders]) for name, folders in students.items()}
    report = {
        'teacher': {key: teacher[key] for key in COLUMNS},
        'students': {
            name: {key: values[key] for key in values if key.removesuffix('_std') in COLUMNS}
            for name, values in rows.items()
        },
        'real': {key: real[key] for key in COLUMNS},
        'protocol': protocol,
        'seeds': options.seeds,
        'short': options.short,
        'seconds': time.perf_counter() - began,
    }
    disk.write_json(workdir / 'report.json', report)

    names = ['teacher', *students]
    runs = [
        build.from_workdir(teacher_dir),
        *(build.from_workdir(folders[0]) for folders in students.values()),
    ]
    noise = np.random.default_rng(0).standard_normal((SHOWN, *runs[0].shape)).astype(np.float32)
    label = np.arange(SHOWN, dtype=np.int32) % runs[0].num_classes
    images = _first(sources[0], label)
    samples = np.concatenate([images, *(np.asarray(run.sample(noise, label)) for run in runs)])
    pictures.write_png(
        workdir / 'samples.png', pictures.image_grid(samples, columns=SHOWN, tile=48)
    )

    print(_table(report))
    print(
        f'\n{workdir / "samples.png"}: row by row: training images, and from the same noise '
        f'{", ".join(names)}'
    )
    print(f'{workdir / "report.json"}: these numbers with their protocol')
    print(f'{report["seconds"]:.0f} s in all')
    return 0


def _first(source, labels):
    """Images with these labels, float32 in [-1, 1]: the first of each class, then the second."""
    import numpy as np

    from fdistill.data.sources import to_float

    left = {label: iter(np.flatnonzero(source.labels == label)) for label in set(labels.tolist())}
    return to_float(source.images[[next(left[label]) for label in labels.tolist()]], source.levels)


def _mean(rows):
    """The mean of rows over seeds, and the standard deviation of each number where there are
    several."""
    if len(rows) == 1:
        return rows[0]
    import statistics

    keys = [key for key in rows[0] if key not in ('protocol', 'details')]
    mean = {key: statistics.fmean(row[key] for row in rows) for key in keys}
    return mean | {
        f'{key}_std': statistics.stdev(row[key] for row in rows) for key in COLUMNS if key != 'nfe'
    }


def _table(report):
    lines = [['', *COLUMNS]]
    named = {'real images': report['real'], 'teacher': report['teacher'], **report['students']}
    for name, values in named.items():
        lines.append([name, f'{values["nfe"]:.0f}', *(f'{values[key]:.3f}' for key in COLUMNS[1:])])
    note = (
        f'\nfd: {report["protocol"]["fd_held_out"]}; lower is better, '
        '"real images" are training images drawn again'
    )
    return '\n'.join(['', *table(lines, str.rjust), note])


if __name__ == '__main__':
    from fdistill.errors import UserError
    from fdistill.files import process

    process.prepare()
    try:
        sys.exit(main())
    except UserError as error:
        print(f'demo: {error}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print('demo: interrupted; the same command goes on from here', file=sys.stderr)
        sys.exit(130)
