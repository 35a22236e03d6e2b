"""Reports: of any set of run and sweep folders, one page that needs nothing else, the same as
Markdown, and all its numbers."""

import pathlib
import re
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import tqdm

from fdistill.errors import UserError
from fdistill.evaluation.protocol import MARK
from fdistill.files import disk
from fdistill.report import collect, page, pictures, plots, summary


class Earlier(TypedDict):
    """Of the report.json of an earlier report: the figures beside it."""

    figures: list[str]


def write(
    paths: Sequence[disk.Path],
    out: disk.Path | None = None,
    measure: str | None = None,
    quiet: bool = False,
) -> dict[str, pathlib.Path]:
    """Writes report.html, report.md with its PNG files, and report.json.

    Args:
      paths: folders of runs, sweeps and recipes.
      out: folder to write to; default: `report` in the first of them.
      measure: to rank groups by; default: the first of `summary.MEASURES` there is.
      quiet: no progress on stderr.

    Returns:
      {file name: path} of the three.

    Raises:
      UserError: no run, no result, a damaged file or an unknown measure; nothing has been written
        then.
    """
    place = disk.place(paths[0]) / 'report' if out is None else out
    out = disk.folder_for(place, '--out', ours=out is None)
    report = summary.summarise(collect.runs(paths), measure)
    report['paths'] = list(map(str, paths))
    figures = []
    for comparison in report['comparisons']:
        figures.append(_figures(comparison, report['notes'], quiet))
    # The figures of the report before this one; whatever else lies in the folder is none of ours.
    for name in _earlier(out / 'report.json'):
        (out / name).unlink(missing_ok=True)
    report['figures'] = [name for names in page.files(figures) for name in names]
    disk.write_json(out / 'report.json', report)
    for names, drawn in zip(page.files(figures), figures):
        for name, figure in zip(names, drawn):
            disk.write_bytes(out / name, figure.png)
    disk.write_bytes(out / 'report.md', page.markdown(report, figures).encode())
    kept = page.fitting(report, figures)
    if lost := sum(map(len, figures)) - sum(map(len, kept)):
        note = (
            f'{lost} figures are not in the page, which must not exceed {page.LIMIT / 1e6:g} MB; '
            'they are beside report.md.'
        )
        report = report | {'notes': [*report['notes'], note]}
    disk.write_bytes(out / 'report.html', page.html(report, kept).encode())
    return {name: out / name for name in ('report.html', 'report.md', 'report.json')}


def _earlier(path):
    """Names of the figures of the report that lies at a path, if there is one."""
    try:
        names = disk.read_json(path, Earlier)['figures']
    except (OSError, UserError):
        return ()
    return [name for name in names if re.fullmatch(r'\d+-\d+-[a-z0-9-]*\.png', name)]


def _figures(comparison, notes, quiet):
    """[page.Figure] of a comparison, in the order of the page."""
    groups = comparison['groups']
    if len(groups) > plots.MOST:
        notes.append(
            f'figures show the first {plots.MOST} of {len(groups)} groups; the tables and '
            'report.json have all.'
        )
    colour = {group['name']: index for index, group in enumerate(groups)}
    jobs = []

    def job(part, name, caption, function, *arguments):
        jobs.append((part, name, caption, function, arguments))

    for group in groups:
        if group['folder']:
            job(
                'samples',
                f'samples {group["name"]}',
                group['name'],
                pictures.draw,
                group['folder'],
                len(groups),
            )
    for key, kind in comparison['measures'].items():
        rows = [
            (_marked(group, key), colour[group['name']], group['measures'][key]) for group in groups
        ]
        if any(row[2]['mean'] is not None for row in rows):
            caption = (
                f'{key} ({kind["unit"]}): mean and 95 % interval over the seeds, '
                f'which are the ticks.{_legend(groups, key)}'
            )
            job('measures', key, caption, plots.by_group, rows, key, kind['unit'])
    chosen = comparison['measure']
    unit = f'{chosen} ({comparison["measures"][chosen]["unit"]})'
    if len({group['nfe'] for group in groups if group['nfe'] is not None}) > 1:
        points = _points(
            groups,
            colour,
            lambda group: {'mean': group['nfe'], 'half': None},
            _measured(chosen),
            chosen,
        )
        job(
            'measures',
            f'{chosen} against evaluations',
            f'{chosen} against network evaluations a sample, 95 % intervals.'
            f'{_legend(groups, chosen)}',
            plots.plane,
            points,
            'network evaluations a sample',
            unit,
            True,
        )
    known = comparison['measures']
    coverage = [
        (key.replace('precision', 'recall', 1), key) for key in known if key.startswith('precision')
    ]
    # What a reward costs is seen in the measure that it does not optimise.
    bought = [(key, chosen) for key in ('reward', 'reward_unseen') if key != chosen]
    for x, y in (('kl', 'high_quality'), ('diversity', 'accuracy'), *coverage, *bought):
        if x in known and y in known:
            labels = [f'{key} ({known[key]["unit"]})' for key in (x, y)]
            named = {
                'kl': 'Coverage of the modes against quality',
                'diversity': 'Accuracy against diversity',
                'reward': f'What the reward of the runs costs: {chosen} against it',
                'reward_unseen': f'{chosen} against the same reward by a classifier of its own',
            }
            what = named.get(x, 'Precision against recall')
            job(
                'measures',
                f'{y} against {x}',
                f'{what}, 95 % intervals.{_legend(groups, x, y)}',
                plots.plane,
                _points(groups, colour, _measured(x), _measured(y), x, y),
                *labels,
            )
    r = np.geomspace(1e-3, 1e3, 241)
    names = dict.fromkeys(
        group['divergence'] for group in groups if isinstance(group['divergence'], str)
    )
    lines, left_out = summary.weights(names, r)
    if left_out:
        notes.append(f'without a curve h(r), being unknown: {", ".join(left_out)}.')
    if lines:
        first = {
            name: colour[group['name']]
            for group in reversed(groups)
            if isinstance(name := group['divergence'], str)
        }
        job(
            'divergences',
            'h',
            'The weight h(r) of each divergence; no unit, no interval: a formula.',
            plots.weights,
            [(label, first[name], h) for label, (name, h) in lines.items()],
            r,
        )
    for key, label in summary.DISTRIBUTIONS.items():
        rows = [
            (group['name'], colour[group['name']], group['distributions'][key])
            for group in groups
            if key in group['distributions']
        ]
        if rows:
            caption = (
                f'Distribution of {label} over the second half of the training, '
                'from the lowest fifth of the noise to the highest: mean share of the samples in a '
                'cell with its 95 % interval over the seeds.'
            )
            job('divergences', f'distribution {key}', caption, plots.distributions, rows, label)
    for key, (title, unit) in summary.STATISTICS.items():
        rows = [
            (group['name'], colour[group['name']], group['logged'][key])
            for group in groups
            if key in group['logged']
        ]
        if rows:
            caption = (
                f'{title} ({unit}): over the steps of a run, then mean and 95 % interval '
                'over the seeds.'
            )
            job('divergences', f'logged {key}', caption, plots.by_group, rows, title, unit)
    for key, by in comparison['quality'].items():
        unit = summary.measure(key).unit
        caption = (
            f'{key} ({unit}) while training: mean of the seeds with its 95 % interval.'
            f'{_legend(groups, key)}'
        )
        shown = {group['name']: _marked(group, key) for group in groups}
        job(
            'quality',
            f'{key} on the way',
            caption,
            plots.curves,
            [(shown[name], colour[name], found) for name, found in by.items()],
            f'{key} ({unit})',
        )
    for key, by in comparison['curves'].items():
        unit = summary.STATISTICS.get(key.rpartition('/')[2], ('', 'as logged'))[1]
        job(
            'curves',
            f'curve {key}',
            f'{key} ({unit}): mean of the seeds with its 95 % interval.',
            plots.curves,
            [(name, colour[name], found) for name, found in by.items()],
            f'{key} ({unit})',
        )
    figures = []
    for part, name, caption, function, arguments in tqdm.tqdm(
        jobs, 'figures', disable=True if quiet else None, leave=False
    ):
        try:
            made = function(*arguments)
        except Exception as error:
            # A run without its checkpoint, or of an older version, must not cost the page its
            # numbers.
            if part != 'samples':
                raise
            kind = '' if isinstance(error, UserError) else f'{type(error).__name__}: '
            notes.append(f'{name}: no picture; {kind}{" ".join(str(error).split())}')
            continue
        png, shown = made if isinstance(made, tuple) else (made, '')
        figures.append(page.Figure(part, name, f'{caption}{": " if shown else ""}{shown}', png))
    return figures


def _measured(key):
    return lambda group: group['measures'][key]


def _marked(group, *keys):
    """The name of a group in a figure of these measures; labels have no room for words."""
    seen = any(group['measures'][key]['trained_on'] for key in keys)
    return f'† {group["name"]}' if seen else group['name']


def _legend(groups, *keys):
    seen = any(_marked(group, *keys) != group['name'] for group in groups)
    return f' †: {MARK}, so no evidence of quality.' if seen else ''


def _points(groups, colour, x, y, *keys):
    points = [
        (_marked(group, *keys), colour[group['name']], x(group), y(group)) for group in groups
    ]
    return [
        point for point in points if point[2]['mean'] is not None and point[3]['mean'] is not None
    ]
