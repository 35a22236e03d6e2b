"""Quality against network evaluations of every sampler on a trained teacher: a table, a picture
with error bars, JSON.

    python experiments/samplers.py --workdir=runs/demo/teacher [--evaluations 5 7 9 11 15 21 35]
    [--seeds 3]
        [--samplers heun ghvb_3.8 ...] [--samples 2000] [--out DIR] [--config.data.data_dir=DIR]

Any run made by a pre-training config will do. Killed and started again it goes on where it was.
"""

import argparse
import hashlib
import pathlib
import re
import statistics
import sys
import time

from fdistill.files import text

# Those whose lines share a panel of the picture: title -> {label: section of a config}.
FAMILIES = {
    'one-step methods': {
        'euler': {'name': 'euler'},
        'heun': {'name': 'heun'},
    },
    'multistep, variable step': {
        'lms_4': {'name': 'lms', 'order': 4},
        'deis_2': {'name': 'deis', 'order': 2},
        'deis_3': {'name': 'deis', 'order': 3},
        'dpmpp_2m': {'name': 'dpmpp_2m'},
        'dpmpp_3m': {'name': 'dpmpp_3m'},
        'unipc_2': {'name': 'unipc', 'order': 2},
    },
    'constant weights, momentum': {
        'adams_bashforth_2': {'name': 'adams_bashforth', 'order': 2},
        'adams_bashforth_4': {'name': 'adams_bashforth', 'order': 4},
        'ghvb_1.8': {'name': 'ghvb', 'order': 1.8},
        'ghvb_3.8': {'name': 'ghvb', 'order': 3.8},
        'ghvb_3.8_index': {'name': 'ghvb', 'order': 3.8, 'coords': 'index'},
        'hb_0.8': {'name': 'heavy_ball', 'base': 'adams_bashforth', 'order': 2, 'beta': 0.8},
        'hb_0.8_dpmpp': {'name': 'heavy_ball', 'base': 'dpmpp', 'order': 2, 'beta': 0.8},
    },
    'with noise': {
        'ancestral': {'name': 'ancestral'},
        'heun_churn': {'name': 'heun', 's_churn': 5.0, 's_noise': 1.003},
        'dpmpp_2m_sde': {'name': 'dpmpp_2m', 'eta': 1.0},
        'dpmpp_3m_sde': {'name': 'dpmpp_3m', 'eta': 1.0},
    },
}
SAMPLERS = {label: section for family in FAMILIES.values() for label, section in family.items()}
REFERENCE = 'dpmpp_2m'  # Drawn in grey in every panel.
# Columns of the table, as far as the data has them.
SHOWN = ('fd_train', 'fd_held_out', 'pixel_fd', 'accuracy')


def parse(words):
    from fdistill.cli import split

    words, overrides = split(words)
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0], allow_abbrev=False)
    parser.add_argument('--workdir', required=True, help='run folder of a teacher')
    parser.add_argument(
        '--evaluations',
        type=int,
        nargs='+',
        default=[5, 7, 9, 11, 15, 21, 35],
        metavar='N',
        help='of the network, a sample; even ones leave Heun out; default: 5 7 9 11 15 21 35',
    )
    parser.add_argument(
        '--seeds',
        type=int,
        default=3,
        help='of the noise, for mean and spread; default: %(default)s',
    )
    parser.add_argument('--samples', type=int, help='a seed; default: as in the config')
    parser.add_argument(
        '--samplers',
        nargs='+',
        default=list(SAMPLERS),
        metavar='NAME',
        help=f'default: {" ".join(SAMPLERS)}',
    )
    parser.add_argument('--out', metavar='DIR', help='default: samplers in the workdir')
    options = parser.parse_args(words)
    for name in options.samplers:
        if name not in SAMPLERS:
            parser.error(f'--samplers: unknown {name}; known are {", ".join(SAMPLERS)}')
    if options.seeds < 1 or min(options.evaluations) < 1:
        parser.error(
            f'--seeds={options.seeds}, --evaluations={options.evaluations}: need numbers >= 1'
        )
    return options, overrides


def steps_of(section, evaluations):
    """Steps that end in 0 and cost so many evaluations, or None."""
    from fdistill.diffusion.samplers import SAMPLERS as known

    return next(
        (
            n
            for n in range(1, evaluations + 1)
            if known[section['name']].evaluations(n) == evaluations
        ),
        None,
    )


def main(words=None):
    options, overrides = parse(words)
    began = time.perf_counter()
    import tqdm

    from fdistill import build, config
    from fdistill.evaluation import evaluate
    from fdistill.files import CONFIG, disk

    workdir = pathlib.Path(options.workdir)
    out = disk.folder_for(workdir / 'samplers' if options.out is None else options.out, '--out')
    settings = config.read(workdir)
    config.override(settings, overrides)
    run = build.from_workdir(workdir)
    if not build.has_solver(settings):
        raise UserError(f'--workdir={workdir}: holds a student; samplers are for a teacher')
    samples = options.samples or settings.get('evaluation', {}).get('samples', 2000)
    # Kept points are those of the same weights, grid and number of samples.
    asked = {'step': run.step, 'grid': config.to_json(settings.method.grid), 'samples': samples}
    asked |= {'config': hashlib.sha256((workdir / CONFIG).read_bytes()).hexdigest()}
    file = out / 'samplers.json'
    report = disk.read_json(file) if file.exists() else {}
    if report.get('of') != asked:
        report = {'of': asked, 'points': {}}

    points = [
        (f'{label}/{evaluations}/{seed}', label, steps_of(SAMPLERS[label], evaluations), seed)
        for label in options.samplers
        for evaluations in sorted(set(options.evaluations))
        if steps_of(SAMPLERS[label], evaluations)
        for seed in range(options.seeds)
    ]
    missing = [point for point in points if point[0] not in report['points']]
    against = evaluate.reference(
        *(build.load_data(settings, split) for split in ('train', 'held_out'))
    )
    chosen = None
    for key, label, steps, seed in tqdm.tqdm(missing, 'points', unit='point', disable=None):
        if chosen != (label, steps):
            chosen, sampled = (
                (label, steps),
                build.from_workdir(workdir, sampler=SAMPLERS[label], steps=steps),
            )
        row = evaluate.evaluate(
            sampled.sample,
            against.train,
            against.held_out,
            nfe=sampled.nfe,
            samples=samples,
            seed=seed,
            progress=False,
            against=against,
        )
        report['protocol'] = row.pop('protocol')
        report['points'][key] = row
        disk.write_json(file, report)

    lines = summary(report, [point[0] for point in points])
    print(table(lines))
    picture(
        lines, out / 'samplers.png', f'{workdir.name}, {samples} samples, {options.seeds} seeds'
    )
    protocol = re.sub(r',seed\d+', '', report['protocol'][measure(lines)])
    print(
        f'\n{protocol}; mean and standard deviation of {options.seeds} seeds of the noise, '
        'lower is better'
    )
    print(f'{out / "samplers.png"}\n{file}\n{time.perf_counter() - began:.0f} s in all')
    return 0


def summary(report, keys):
    """{label: {evaluations: {column: (mean, standard deviation over the seeds)}}}."""
    rows = {}
    for key in keys:
        label, evaluations, _ = key.split('/')
        rows.setdefault(label, {}).setdefault(int(evaluations), []).append(report['points'][key])
    return {
        label: {
            evaluations: {
                column: (
                    statistics.fmean(row[column] for row in of),
                    spread([row[column] for row in of]),
                )
                for column in of[0]
            }
            for evaluations, of in by_cost.items()
        }
        for label, by_cost in rows.items()
    }


def spread(values):
    return statistics.stdev(values) if len(values) > 1 else 0.0


def measure(lines):
    """The column that is drawn: points have no classifier, and so no fd_train."""
    first = next(iter(next(iter(lines.values())).values()))
    return next(column for column in SHOWN if column in first)


def table(lines):
    column = measure(lines)
    costs = sorted({cost for by_cost in lines.values() for cost in by_cost})
    cells = [[f'{column} at evaluations', *map(str, costs)]]
    for label, by_cost in lines.items():
        shown = (by_cost.get(cost) for cost in costs)
        cells.append(
            [
                label,
                *(f'{row[column][0]:.3f} ±{row[column][1]:.3f}' if row else '' for row in shown),
            ]
        )
    return '\n'.join(text.table(cells, str.rjust))


def picture(lines, path, title):
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    from fdistill.files import disk

    column = measure(lines)
    families = {
        name: [label for label in family if label in lines] for name, family in FAMILIES.items()
    }
    families = {name: labels for name, labels in families.items() if labels}
    size = {'figsize': (4 * len(families), 4.2), 'layout': 'constrained'}
    figure, axes = pyplot.subplots(1, len(families), sharey=True, squeeze=False, **size)
    values = [row[column][0] for by_cost in lines.values() for row in by_cost.values()]
    for axis, (name, labels) in zip(axes[0], families.items()):
        for label in dict.fromkeys([*([REFERENCE] if REFERENCE in lines else []), *labels]):
            costs = sorted(lines[label])
            mean, spread = zip(*(lines[label][cost][column] for cost in costs))
            grey = {} if label in labels else {'color': '0.75', 'zorder': 0}
            axis.errorbar(
                costs,
                mean,
                spread,
                marker='o',
                markersize=3,
                capsize=2,
                linewidth=1.2,
                label=label,
                **grey,
            )
        axis.set(title=name, xlabel='network evaluations', xscale='log', yscale='log')
        axis.set_xticks(costs, map(str, costs))
        axis.minorticks_off()
        ticks = [10.0**n * k for n in range(-4, 5) for k in (1, 2, 5)]
        axis.set_yticks(ticks, [f'{tick:g}' for tick in ticks])
        # What diverges leaves the picture rather than squeezing it.
        axis.set_ylim(0.8 * min(values), min(1.2 * max(values), 30 * min(values)))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    axes[0, 0].set_ylabel(f'{column} (lower is better)')
    figure.suptitle(title)
    disk.write(path, lambda temporary: figure.savefig(temporary, dpi=110))
    pyplot.close(figure)


if __name__ == '__main__':
    from fdistill.errors import UserError
    from fdistill.files import process

    process.prepare()
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f'samplers: {error}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print('samplers: interrupted; the same command goes on from here', file=sys.stderr)
        sys.exit(130)
