"""All numbers of a report as one plain dict, which becomes report.json and which the page shows."""

import json
import platform
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import scipy

from fdistill import divergences
from fdistill.errors import UserError, suggest
from fdistill.evaluation import evaluate
from fdistill.evaluation.protocol import MARK, Measure
from fdistill.evaluation.scores import MEASURES as PUBLISHED
from fdistill.files import disk
from fdistill.report import collect, statistics

MAX_POINTS = 200  # of a curve
ABSENT = '(absent)'  # A setting that a group does not have.


# In the order in which the first that was measured is what groups are ranked by.
MEASURES = {**evaluate.DISTANCES, **PUBLISHED, **evaluate.OTHERS}
# Of what a student logs, that which tells divergences apart, over the steps of a run: (title,
# unit).
STATISTICS = {
    'ratio': ('mean density ratio', 'r = teacher / student'),
    'h': ('mean weight', 'h(r)'),
    'clipped': ('clipped ratios', 'share of samples'),
    'kl': ('KL(student || teacher) less the lag of the critic', 'nats a sample'),
    'kl_seen': ('KL(student || teacher) as the critic sees it', 'nats a sample'),
    'grad_norm': ('mean gradient norm', 'L2'),
    'grad_norm_variance': ('variance of the gradient norm over steps', 'L2 squared'),
    # Free of the trend (von Neumann, 1941).
    'grad_norm_noise': ('noise of the gradient norm without its trend', 'L2 squared'),
}
# Of what a student logs by noise level: axis of its histogram.
DISTRIBUTIONS = {
    'student/log_ratio': 'log r, r = teacher / student, before any clip (nats)',
    'student/log_h': 'log h(r), r normalised and clipped as trained with (nats)',
    'student/log_tangent': 'log of the norm of the tangent, before it is normalised (nats)',
}


def measure(key: str) -> Measure:
    """The `Measure` of a key; one with a number of samples or a protocol behind it, as 'fid5k edm',
    is that of the name alone."""
    name, _, protocol = key.partition(' ')
    count = None
    if name not in MEASURES and (proxy := re.fullmatch(r'(\w+?)(\d+k?)', name)):
        name, count = proxy.groups()
    if name in MEASURES:
        said = [
            MEASURES[name].title,
            *([f'of {count} samples'] if count else []),
            *([f'under {protocol}'] if protocol else []),
        ]
        return MEASURES[name]._replace(title=', '.join(said))
    return MEASURES.get(key, Measure(key, 'as evaluated', 0, 'unknown to this report'))


def summarise(runs: Sequence[collect.Run], wanted: str | None = None) -> dict[str, Any]:
    """The numbers of a report.

    Args:
      runs: of `collect.runs`.
      wanted: measure to rank by; default: the first of `MEASURES` that a comparison has and no run
        in it was trained on.

    Returns:
      dict of plain values: versions, runs, differing and common settings, notes, and comparisons,
      in each of which all numbers are of one protocol on the same data.

    Raises:
      UserError: `wanted` was not measured.
    """
    notes = [f'{run.folder} ended early: {run.stopped}.' for run in runs if run.stopped]
    done = _without_twins([run for run in runs if run.status == 'done'], notes)
    known = dict.fromkeys(key for run in done for key in evaluate.numbers(run.row))
    if wanted and wanted not in known:
        raise UserError(f'--measure={wanted}: was not measured{suggest(wanted, known)}')
    parts = _parts(done)
    if len(parts) > 1:
        notes.append(
            f'{len(parts)} comparisons: the runs were measured under different protocols or on '
            'different data, which makes '
            'their numbers incomparable. Each comparison has a table, tests and plots of its own.'
        )
    differing = differing_settings(runs)
    names = _names(runs, differing)
    failed = [run for run in runs if run.status == 'failed']
    missing = [run for run in runs if run.status == 'missing']
    if missing:
        notes.append(f'{len(missing)} without a result yet: {_listed(missing)}.')
    comparisons, placed = [], set()
    for members in parts:
        settings = {as_text(run.settings) for run in members}
        left = [run for run in failed if run.folder not in placed]
        theirs = [
            run for run in left if as_text(run.settings) in settings or run.data == members[0].data
        ]
        placed |= {run.folder for run in theirs}
        comparisons.append(_comparison(members, theirs, names, wanted))
    if any(run.folder not in placed for run in failed):
        notes.append(
            'failed, on data of no comparison: '
            f'{_listed([run for run in failed if run.folder not in placed])}.'
        )
    return {
        'versions': versions(),
        'runs': [_plain(run, names) for run in runs],
        'differing': {
            key: {names[text]: value for text, value in by.items()} for key, by in differing.items()
        },
        'common': {
            key: value for key, value in runs[0].settings.items() if _everywhere(key, value, runs)
        },
        'comparisons': comparisons,
        'notes': notes,
    }


def versions() -> dict[str, str]:
    """Of what made the report."""
    return disk.versions() | {
        'scipy': scipy.__version__,
        'machine': f'{platform.system()} {platform.machine()}',
    }


def _parts(runs):
    """Runs in lists whose members are on the same data and agree on how each measure that they
    share was measured."""
    parts = []
    for run in runs:
        names = run.row['protocol']
        for members, known in parts:
            shared = names.keys() & known.keys()
            if (
                members[0].data == run.data
                and (shared or not known)
                and all(names[key] == known[key] for key in shared)
            ):
                members.append(run)
                known.update(names)
                break
        else:
            parts.append(([run], dict(names)))
    return [members for members, _ in parts]


def _without_twins(runs, notes):
    """One run of each settings, protocol and seed: two would count one draw twice."""
    kept = {}
    for run in runs:
        first = kept.setdefault(
            (as_text(run.settings), as_text(run.row['protocol']), run.seed), run
        )
        if first is not run:
            notes.append(
                f'{run.folder} is left out: of the same settings and seed as {first.folder}.'
            )
    return list(kept.values())


def as_text(value: Any) -> str:
    """Equal for equal values, whatever the order of their keys."""
    return json.dumps(value, sort_keys=True)


def _listed(runs, most=20):
    more = f' and {len(runs) - most} more' if len(runs) > most else ''
    return ', '.join(run.name for run in runs[:most]) + more


def _everywhere(key, value, runs):
    return all(key in run.settings and run.settings[key] == value for run in runs if run.settings)


def differing_settings(runs: Sequence[collect.Run]) -> dict[str, dict[str, Any]]:
    """{dotted key: {settings as text: value}} of what is not the same in all runs."""
    distinct = {as_text(run.settings): run.settings for run in runs if run.settings}
    keys = dict.fromkeys(key for settings in distinct.values() for key in settings)
    values = {
        key: {text: settings.get(key, ABSENT) for text, settings in distinct.items()}
        for key in keys
    }
    return {key: by for key, by in values.items() if len(set(map(as_text, by.values()))) > 1}


def _names(runs, differing):
    """{settings as text: a short name of the group}, no two alike."""
    names, by_folder = {}, {}
    for run in runs:
        text = as_text(run.settings)
        if text in names:
            continue
        names[text] = _said(differing, text)
        # Runs that have little in common are known by their folders, those of a sweep over methods
        # by what it calls them.
        if not differing and len(runs) > 1:
            names[text] = 'all runs'
        elif re.search('(^|,)config=', run.name) or not 0 < len(names[text]) <= 60:
            words = re.sub(r'(^|,)seed=[^,]*|(?<![^,])(config|divergence)=', '', run.name)
            words = words.strip(',').replace(',', ', ') or run.name
            by_folder.setdefault(words, []).append(text)
    for words, texts in by_folder.items():
        for text in texts:
            more = _said(_telling(texts, differing), text)
            names[text] = f'{words}, {more}' if more else words
    taken = set()
    for text, name in names.items():
        while name in taken:
            name += "'"
        names[text] = name
        taken.add(name)
    return names


def _said(differing, text):
    """The settings of a group in short, as 'width=64, steps=100'."""
    values = {key: by[text] for key, by in differing.items() if by.get(text, ABSENT) != ABSENT}
    lasts = [key.rpartition('.')[2] for key in values]
    shown = {
        key if lasts.count(last) > 1 else last: value
        for (key, value), last in zip(values.items(), lasts)
    }
    # A word says enough by itself, a number does not.
    if len(shown) == 1 and isinstance(*shown.values(), str):
        return str(*shown.values())
    return ', '.join(f'{key}={value}' for key, value in shown.items())


def _telling(texts, differing):
    """Of `differing`, a few keys that tell these groups apart; first those that all of them have,
    and of these the one of most values."""
    values = {
        key: [as_text(by.get(text, ABSENT)) for text in texts] for key, by in differing.items()
    }
    order = sorted(values, key=lambda key: (as_text(ABSENT) in values[key], -len({*values[key]})))
    chosen, apart = [], 1
    for key in order:
        now = len(set(zip(*(values[one] for one in [*chosen, key]))))
        if now > apart:
            chosen, apart = [*chosen, key], now
    return {key: differing[key] for key in chosen}


def _plain(run, names):
    return {
        'name': run.name,
        'folder': str(run.folder),
        'group': names[as_text(run.settings)],
        'seed': run.seed,
        'status': run.status,
        'error': run.error,
        'fingerprint': run.fingerprint,
        'seconds': run.seconds,
        'versions': (run.row or {}).get('details', {}).get('versions', {}),
        'checkpoint': (run.row or {}).get('details', {}).get('checkpoint', ''),
        'row': run.row,
    }


def _comparison(runs, failed, names, wanted):
    """Everything about runs that may be compared."""
    keys = list(dict.fromkeys(key for run in runs for key in evaluate.numbers(run.row)))
    keys.sort(key=lambda key: list(MEASURES).index(key) if key in MEASURES else len(MEASURES))
    members = {}
    for run in [*runs, *failed]:
        members.setdefault(names[as_text(run.settings)], []).append(run)
    groups = [_group(name, of, keys) for name, of in members.items()]
    # A number that some were trained on ranks these first for that alone.
    apart = [key for key in keys if not any(of['measures'][key]['trained_on'] for of in groups)]
    chosen = wanted if wanted in keys else [*apart, *keys][0]
    rankings = {key: _ranking(groups, key) for key in keys}
    order = {row['group']: index for index, row in enumerate(rankings[chosen]['rows'])}
    groups.sort(key=lambda group: order.get(group['name'], len(order)))
    return {
        'data': runs[0].data,
        'protocol': {key: name for run in runs for key, name in run.row['protocol'].items()},
        'digests': {
            key: of
            for run in runs
            for key, of in run.row.get('details', {}).get('digests', {}).items()
        },
        'measure': chosen,
        'measures': {key: measure(key)._asdict() for key in keys},
        'groups': groups,
        'rankings': rankings,
        'quality': _curves(members, [group['name'] for group in groups], collect.evaluated),
        'curves': _curves(members, [group['name'] for group in groups], collect.logged),
    }


def _group(name, runs, keys):
    done, failed = ([run for run in runs if run.status == status] for status in ('done', 'failed'))
    found = {
        'name': name,
        'settings': runs[0].settings,
        'divergence': runs[0].settings.get('method.divergence'),
        'nfe': done[0].row.get('nfe') if done else None,
        'seeds': sorted((run.seed for run in done), key=str),
        'failed': [{'name': run.name, 'seed': run.seed, 'error': run.error} for run in failed],
        'folder': str(min(done, key=lambda run: str(run.seed)).folder) if done else None,
        'measures': {},
        'logged': {},
        'distributions': distributions(done),
    }
    for key in keys:
        values = {
            str(run.seed): run.row[key]
            for run in done
            if key in run.row and np.isfinite(run.row[key])
        }
        lost = sum(key in run.row and not np.isfinite(run.row[key]) for run in done)
        found['measures'][key] = statistics.interval(list(values.values()))._asdict() | {
            'values': values,
            'not_finite': lost,
            'trained_on': any(key in run.row.get('trained_on', ()) for run in done),
        }
    trained = [(run, collect.logged(run)[1]) for run in done]
    for key in STATISTICS:
        values = {
            str(run.seed): value
            for run, metrics in trained
            if (value := _statistic(key, metrics)) is not None
        }
        if values:
            found['logged'][key] = statistics.interval(list(values.values()))._asdict() | {
                'values': values
            }
    return found


def _statistic(key, metrics):
    """One of STATISTICS of a run, or None."""
    name, function, fewest = {
        'grad_norm_variance': ('grad_norm', lambda values: values.var(ddof=1), 2),
        'grad_norm_noise': ('grad_norm', lambda values: np.square(np.diff(values)).mean() / 2, 2),
    }.get(key, (key, np.mean, 1))
    values = np.asarray(metrics.get(f'student/{name}', ()), np.float64)
    values = values[np.isfinite(values)]
    return float(function(values)) if len(values) >= fewest else None


def _ranking(groups, key):
    """Tests and places of a measure, and what they say in words."""
    kind = measure(key)
    scores = {
        group['name']: values for group in groups if (values := group['measures'][key]['values'])
    }
    pairs = statistics.compare(scores)
    rows = [
        {'group': name, 'best': best, 'worst': worst, 'not_separated': others}
        for name, (best, worst, others) in statistics.places(scores, pairs, kind.sign or -1).items()
    ]
    tests = [
        {
            'a': pair.a,
            'b': pair.b,
            **pair.test._asdict(),
            'holm': pair.holm,
            'separated': pair.separated,
        }
        for pair in pairs
    ]
    marked = [group['name'] for group in groups if group['measures'][key]['trained_on']]
    return {
        'rows': rows,
        'tests': tests,
        'trained_on': marked,
        'words': _words(key, kind, rows, pairs, marked),
    }


def _words(key, kind, rows, pairs, marked):
    end = {
        1: 'more is better',
        -1: 'less is better',
        0: f'neither end is better ({kind.ideal}), sorted from small to large',
    }
    words = [f'{key} ({kind.unit}): {end[kind.sign]}.']
    if marked:
        words.append(
            f'{MARK}: {", ".join(marked)}. The features of this number were part of their '
            'training, so that it says how well they were trained and not how good their samples '
            'are; their places and tests are no evidence against groups that were not.'
        )
    if len(rows) < 2:
        return [*words, 'One group: nothing to compare.']
    seeds = [pair.test.n for pair in pairs]
    apart = sum(pair.separated for pair in pairs)
    n = f'{min(seeds)} to {max(seeds)}' if min(seeds) < max(seeds) else f'{max(seeds)}'
    words.append(
        f'Pairs separated: {apart} of {len(pairs)}, by paired t tests, Holm-corrected; common '
        f'seeds: {n}.'
    )
    if max(seeds) < 2:
        words.append(
            'n is too small: a test needs at least two common seeds, so nothing is separated.'
        )
    else:
        size = statistics.critical(max(seeds), len(pairs))
        few = ' n is small, so only large differences can be.' if max(seeds) < 5 else ''
        words.append(f'The clearest pair is separated if its |t| exceeds {size:.1f}.{few}')
    if equal := sum('equal' in pair.test.note for pair in pairs):
        words.append(
            f'Pairs that differ by the same in all seeds, so that t is undefined: {equal}; they '
            'are not separated.'
        )
    first = rows[0]
    name = first['group'] + f' ({MARK})' * (first['group'] in marked)
    which = {1: 'highest', -1: 'lowest', 0: 'smallest'}[kind.sign]
    if first['not_separated']:
        words.append(
            f'not separated: {name}, of the {which} mean, and {", ".join(first["not_separated"])}.'
        )
    else:
        words.append(f'{name}, of the {which} mean, is separated from every other group.')
    return words


def _curves(members, order, read):
    """{metric: {group: {step, seconds, mean, half, n}}} over the seeds, at most MAX_POINTS a
    curve."""
    curves = {}
    for name in order:
        runs = [run for run in members[name] if run.status == 'done']
        found = [(steps, metrics, seconds) for steps, metrics, seconds in map(read, runs) if steps]
        for key in dict.fromkeys(key for _, metrics, _ in found for key in metrics):
            points = {}
            for steps, metrics, seconds in found:
                for index, (step, value) in enumerate(zip(steps, metrics.get(key, ()))):
                    if np.isfinite(value):
                        points.setdefault(step, []).append(
                            (value, seconds[index] if seconds else None)
                        )
            chosen = sorted(points)[:: max(1, -(-len(points) // MAX_POINTS))]
            if not any(value for step in chosen for value, _ in points[step]):
                continue  # 0 throughout, as the count of skipped steps should be.
            intervals = [
                statistics.interval([value for value, _ in points[step]]) for step in chosen
            ]
            clocks = [[clock for _, clock in points[step] if clock is not None] for step in chosen]
            curves.setdefault(key, {})[name] = {
                'step': chosen,
                'seconds': [float(np.mean(clock)) if clock else None for clock in clocks],
                'mean': [one.mean for one in intervals],
                'half': [one.half for one in intervals],
                'n': [one.n for one in intervals],
            }
    return curves


def weights(
    names: Iterable[str], r: np.ndarray
) -> tuple[dict[str, tuple[str, np.ndarray]], list[str]]:
    """({label: (divergence, h(r) [n])}, names that are no divergence); a schedule has a curve for
    each of its parts."""
    curves, left_out = {}, []
    for name in names:
        try:
            weighting = divergences.weighting(name)
        except ValueError:
            left_out.append(name)
            continue
        for what, (sigma, step) in weighting.shown.items():
            h = np.broadcast_to(
                np.asarray(weighting.h(r, np.full_like(r, sigma), step), np.float64), r.shape
            )
            curves[f'{name}, {what}' if what else name] = (name, h)
    return curves, left_out


def distributions(runs: Sequence[collect.Run]) -> dict[str, dict[str, Any]]:
    """How log r and log h were distributed in the second half of the training, by noise level.

    Args:
      runs: of one group, done.

    Returns:
      {name: {edges [cells + 1], mean, half: share of the samples in each cell [levels][cells], over
      the seeds, n}}; None in `half` with one seed.
    """
    shares = {}
    for run in runs:
        for name, (edges, counts) in collect.histograms(run).items():
            share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
            shares.setdefault((name, tuple(edges), counts.shape), []).append(share)
    found = {}
    for (name, edges, _), of in shares.items():
        cells = [
            [statistics.interval(values) for values in np.stack(of)[:, level].T]
            for level in range(len(of[0]))
        ]
        mean, half = (
            [[getattr(cell, key) for cell in row] for row in cells] for key in ('mean', 'half')
        )
        found[name] = {'edges': list(edges), 'mean': mean, 'half': half, 'n': len(of)}
    return found
