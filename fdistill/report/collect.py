"""From folders to runs: settings, results and logs."""

import contextlib
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fdistill import build, recipe, sweep
from fdistill import config as configs
from fdistill.errors import UserError
from fdistill.evaluation import evaluate
from fdistill.evaluation.subject import Row
from fdistill.files import CONFIG, disk
from fdistill.methods.method import DEPLOYED
from fdistill.training.loop import unhealthy
from fdistill.training.writer import Line

AGAIN = 'delete it, and run `fdistill evaluate` again'
HEALTH = ('diversity', 'saturation')  # of `metrics.health`, as they are logged
# Of the data: what changes neither the real data nor what samples are compared with.
SAME_DATA = ('data.flip', 'data.data_dir', 'data.labelled')

# Of a row: what is said of its numbers.
TOLD = ('protocol', 'trained_on', 'details')

# Steps [n], {name: [n] numbers}, and seconds of training at each step, or None where unknown.
Curves = tuple[list[int], dict[str, list[float]], list[float] | None]


class Run(NamedTuple):
    """A run, a trial of a sweep or a stage of a recipe.

    name: of its folder.
    settings: {dotted key: value} of its config, without the seed and what `build.comparable` leaves
      out.
    data: those settings that say which data it is measured against.
    seed: of its config, or None.
    status: done, failed or missing (no result yet).
    row: of its evaluation, numbers as floats, or None.
    error: of a failed trial, or ''.
    fingerprint: of its config, as of `sweep.fingerprint`.
    seconds: of the whole trial or stage, or None.
    stopped: by which rule it ended early, or ''.
    """

    name: str
    folder: pathlib.Path
    settings: Mapping[str, Any]
    data: Mapping[str, Any]
    seed: int | None
    status: str
    row: dict | None
    error: str
    fingerprint: str
    seconds: float | None
    stopped: str


def runs(paths: Iterable[disk.Path]) -> tuple[Run, ...]:
    """The runs below workdirs, each once.

    Args:
      paths: folders, of runs, sweeps or recipes.

    Returns:
      tuple of `Run`, at least one of them done.

    Raises:
      UserError: a folder without a run, a damaged file, or no result in any of them.
    """
    found = {}
    for path in map(disk.place, paths):
        for run in _below(path):
            found.setdefault(run.folder.resolve(), run)
    found = tuple(found.values())
    if not any(run.status == 'done' for run in found):
        failed = [run for run in found if run.status == 'failed']
        why = (
            f'; {len(failed)} failed, the first with: {failed[0].error}'
            if failed
            else '; run `fdistill evaluate` on one first'
        )
        raise UserError(f'report: no result yet in {", ".join(map(str, paths))}{why}')
    return found


def _below(path):
    if disk.exists(path / CONFIG, path, 'report'):
        return [_run(path)]
    if (path / recipe.RECIPE).is_file():
        return _stages(path)
    trials = path / 'trials'
    if not trials.is_dir():
        raise UserError(f'report {path}: no run there; give the folder of a run, sweep or recipe')
    listed = sweep.listed(path)
    # Others are of an earlier version of the sweep, and no less a result.
    names = [
        *listed,
        *sorted(
            entry.name for entry in trials.iterdir() if entry.is_dir() and entry.name not in listed
        ),
    ]
    if not names:
        raise UserError(f'report {path}: a sweep without trials')
    return _completed([_run(trials / name) for name in names])


def _stages(path):
    """The stages of a recipe that train and were measured, or failed."""
    found = []
    for name, record in recipe.records(path).items():
        if record['kind'] != 'config':
            continue
        folder = disk.place(record['folder']) if record['given'] else path / name
        run = _run(folder)._replace(name=name, seconds=record['seconds'] or None)
        failed = record['status'] == 'failed'
        if failed:
            run = run._replace(status='failed', error=record.get('error', ''))
        found += [run] * (failed or run.status == 'done')
    return found


def _completed(trials):
    """Trials that failed before they left a config get the settings of a sibling, of the same base,
    but for what the sweep set."""
    known = {_kind(run): run for run in trials if (run.folder / CONFIG).is_file()}
    completed = []
    for run in trials:
        if not run.settings:
            settings = _without_seed(disk.flat(_overrides(run)))
            if sibling := known.get(_kind(run)):
                # It names the base, and is no setting. Without a sibling nothing else does.
                settings.pop('config', None)
                settings = {**sibling.settings, **settings}
            data = _data(settings)
            if sibling and data == _data(sibling.settings):
                data = sibling.data
            run = run._replace(settings=settings, data=data)
        completed.append(run)
    return completed


def _kind(run):
    """Equal for trials of one base in which the sweep set the same keys."""
    overrides = _overrides(run)
    return overrides.get('config'), tuple(sorted(overrides))


def _overrides(run):
    file = run.folder / sweep.RESULT
    return _result(file)['overrides'] if file.is_file() else {}


def _run(folder):
    config = configs.to_json(configs.read(folder, 'report')) if (folder / CONFIG).is_file() else {}
    settings = _without_seed(build.comparable(config)) if config else {}
    known = {'status': 'missing'}
    if (folder / sweep.RESULT).is_file():
        known = _result(folder / sweep.RESULT)
        # Evaluated again later, under another protocol.
        row, measured = known.get('row'), _rows(folder)
        if row and (more := measured.get(row.get('step'))):
            both = {key: more.get(key, {}) | row.get(key, {}) for key in ('protocol', 'details')}
            both['trained_on'] = [*more['trained_on'], *row.get('trained_on', ())]
            known = known | {'row': more | row | both}
    elif measured := _rows(folder):
        known = {'status': 'done', 'row': [*measured.values()][-1]}
    row = known.get('row')
    if row is not None:
        row = {key: value if key in TOLD else number(value) for key, value in row.items()}
        if row.get('step') != config.get('training', {}).get('steps'):
            settings['step'] = row.get('step')
    return Run(
        name=folder.name or folder.resolve().name,
        folder=folder,
        settings=settings,
        data=_measured_against(config, settings),
        seed=config.get('seed', known.get('overrides', {}).get('seed', 0)),
        status=known['status'],
        row=row,
        error=known.get('error', ''),
        fingerprint=known.get('fingerprint') or (sweep.fingerprint(config) if config else ''),
        seconds=known.get('seconds'),
        stopped=stopped(config, disk.read_json_lines(folder / 'metrics.jsonl', Line)),
    )


def _rows(folder):
    """{step: row} of the evaluations in a folder, in order; those of one step under several
    protocols are one row.

    What was measured under a published protocol has its name in the key, as 'fid5k edm', and what
    it was compared with too where that alone tells two numbers apart.
    """
    rows = {}
    for path in sorted((folder / 'eval').glob('step-*.json')):
        row = _checked(path, disk.read_json(path, Row, AGAIN))
        if 'solver' in row.get('details', {}):
            continue  # Another than the run's own.
        merged = rows.setdefault(row['step'], {'protocol': {}, 'details': {}, 'trained_on': []})
        rules = row.get('details', {}).get('rules', {}).get('name')
        for key, name in row.get('protocol', {}).items():
            known = f'{key} {rules}' if rules else key
            if merged['protocol'].get(known, name) != name:
                known += f' {row["details"]["statistics"]["reference"]}'
            merged['protocol'][known], merged[known] = name, row.pop(key)
            merged['trained_on'] += [known] if key in row.get('trained_on', ()) else []
            if rules:
                used = [
                    row['details'].get(part, {}).get('sha256', '')
                    for part in ('detector', 'statistics')
                ]
                merged['details'].setdefault('digests', {})[known] = used
        merged['details'] |= row.get('details', {})
        merged.update({key: value for key, value in row.items() if key not in TOLD})
    return dict(sorted(rows.items()))


def _without_seed(flat):
    return {key: value for key, value in flat.items() if key != 'seed'}


def _measured_against(config, settings):
    """`Run.data`; of pairs the data of their teacher, if they are still there."""
    if config.get('data', {}).get('name') == 'pairs':
        with contextlib.suppress(UserError):
            settings = build.comparable(build.real(config))
    return _data(settings)


def _data(settings):
    return {
        key: value
        for key, value in settings.items()
        if key.startswith('data.') and key not in SAME_DATA
    }


def _result(path):
    known = disk.read_json(path, sweep.Outcome, sweep.AGAIN)
    if known['status'] == 'done':
        _checked(path, known.get('row', {'protocol': {}}))
    return known


def _checked(path, row):
    """A row, once it is known that it has what its protocol names."""
    absent = [key for key in row['protocol'] if key not in row]
    if absent or not evaluate.numbers(row):
        what = f'no {absent[0]!r}' if absent else 'no number'
        raise UserError(f'{path} is damaged: has {what}; {AGAIN}')
    return row


def number(value: Any) -> float:
    """A float, also of the strings that JSON keeps for 'nan' and 'inf'; NaN of what is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def stopped(config: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> str:
    """What rule of its section `training` ended a run before its last step, in words; '' if none
    did.

    Args:
      config: of the run.
      lines: of its metrics.jsonl.
    """
    rules, last = config.get('training', {}), lines[-1] if lines else {}
    if last.get('step', 0) >= rules.get('steps', math.inf):
        return ''
    health = {name: number(last[key]) for name in HEALTH if (key := f'{DEPLOYED}/{name}') in last}
    least, most = rules.get('diversity_below', 0.0), rules.get('saturation_above', 1.0)
    return unhealthy(health, number(least), number(most))


def logged(run: Run) -> Curves:
    """What a run logged while it trained.

    Returns:
      (steps [n], {metric: [n] floats}, seconds [n] or None): seconds of training at each step,
      interpolated between the lines of timing.jsonl; the clock of a resumed run begins anew there,
      and goes on here.
    """
    lines = disk.read_json_lines(run.folder / 'metrics.jsonl', Line)
    keys = dict.fromkeys(key for line in lines for key in line if key != 'step')
    steps = [line['step'] for line in lines]
    metrics = {key: [number(line.get(key)) for line in lines] for key in keys}
    return steps, metrics, _seconds(run, steps)


def _seconds(run, steps):
    known, offset, last = [(0, 0.0)], 0.0, 0.0
    for line in disk.read_json_lines(run.folder / 'timing.jsonl', Line):
        seconds = number(line.get('seconds'))
        if math.isfinite(seconds):
            offset += last if seconds < last else 0.0
            last = seconds
            known.append((line['step'], offset + seconds))
    return None if len(known) < 2 else [_between(known, step) for step in steps]


def evaluated(run: Run) -> Curves:
    """The measurements of a run that were made while it trained.

    Returns:
      as `logged`: (steps [n], {measure: [n] floats}, seconds [n] or None), of what was measured at
      several steps.
    """
    rows = _rows(run.folder)
    # A key measured in another way at some step would make a curve of two things.
    keys = [
        key
        for key, name in (run.row or {}).get('protocol', {}).items()
        if all(row['protocol'].get(key, name) == name for row in rows.values())
    ]
    # A number measured once is in the table.
    keys = [key for key in keys if sum(key in row for row in rows.values()) > 1]
    steps = [step for step, row in rows.items() if any(key in row for key in keys)]
    return (
        steps,
        {key: [number(rows[step].get(key)) for step in steps] for key in keys},
        _seconds(run, steps),
    )


def histograms(run: Run) -> dict[str, tuple[list[float], np.ndarray]]:
    """Counts of log r and log h by noise level in the second half of the training.

    Returns:
      {metric: (edges [cells + 1], counts float [levels, cells])}; empty for a run that logged none.
    """
    path = run.folder / 'histograms.jsonl'
    lines = disk.read_json_lines(path, Line)
    late = [line for line in lines if 2 * line['step'] > lines[-1]['step']]
    found = {}
    try:
        for line in late:
            edges = np.asarray(line['edges'], np.float64)
            for name in line.keys() - {'step', 'edges'}:
                counts = np.asarray(line[name], np.float64)
                if edges.ndim != 1 or counts.ndim != 2 or counts.shape[1] != len(edges) - 1:
                    raise ValueError(f'{name!r} are not counts [levels, cells]')
                if not ((counts >= 0) & (counts < 2**53)).all():
                    raise ValueError(f'{name!r} are not counts, but {counts.min()} and more')
                found[name] = found.get(name, 0.0) + counts
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f'{path} is damaged: {error}; {disk.AGAIN}') from error
    return {name: (late[-1]['edges'], found[name]) for name in sorted(found)}


def _between(known, step):
    """Linear between the points (step, seconds), and with the last slope beyond them."""
    (x0, y0), (x1, y1) = known[-2:]
    for (a, y), (b, z) in zip(known, known[1:]):
        if step <= b:
            (x0, y0), (x1, y1) = (a, y), (b, z)
            break
    return y0 + (y1 - y0) * (step - x0) / max(x1 - x0, 1)
