"""What the log of a run says of its health, in words: `fdistill doctor`.

Nothing is run and no weights are read: numbers alone, of config.json, metrics.jsonl and
timing.jsonl, and of reference logs of our own runs in `reference/`.
"""

import math
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypedDict

import numpy as np

from fdistill import config as configs
from fdistill.errors import UserError
from fdistill.files import disk
from fdistill.files.text import table
from fdistill.methods import METHODS
from fdistill.report import plots
from fdistill.report.collect import number, stopped
from fdistill.training.writer import Line

REFERENCES = pathlib.Path(__file__).parent / 'reference'
RECENT = 600  # seconds since its last line within which a log may still grow
FEWEST = 5  # values that make a trend

# What is logged and says nothing by itself, and why.
MEANINGLESS = {
    'denoising': 'its least value is not 0; that of a fake score moves with the student',
    'score': 'its mean is 0 at the best fake score, whatever the student',
    'consistency': 'its target moves with the student',
    'gan': 'neither side of a game falls for good',
    'r1': 'a penalty, as large as the discriminator is steep',
}
# What is the same quantity whatever the data and the networks; the rest is compared between runs
# on the same data only.
SCALE_FREE = ('ratio', 'clipped', 'h', 'h_min', 'h_max', 'discriminator_accuracy')
COUNTS = ('skipped', 'spikes')
# How far beyond the range of a reference is still called alike: a factor, and for shares a sum.
APART, SHARES, BESIDE = 3.0, ('clipped', 'discriminator_accuracy'), 0.2
GAPS = ('score_gap', 'denoiser_gap')


class Header(TypedDict):
    """The first line of a reference log: what was run, with what and when."""

    config: str
    method: dict
    data: dict
    seed: int
    versions: dict[str, str]
    date: str


class Log(NamedTuple):
    """What a run folder says.

    config: of the run.
    steps: to be done; done: of the last line.
    values: {metric: (steps [n], values [n])} of the lines in which it is finite.
    bad: {metric: the first step at which it is not}.
    speed: images a second, [m].
    age: seconds since the last line.
    stopped: by which rule of the config the run ended early, or ''.
    """

    config: Mapping[str, Any]
    steps: int
    done: int
    values: Mapping[str, tuple[np.ndarray, np.ndarray]]
    bad: Mapping[str, int]
    speed: np.ndarray
    age: float
    stopped: str


class Finding(NamedTuple):
    """level: 'normal', 'watch' or 'wrong'. what: the metric. text: what it means, in words."""

    level: str
    what: str
    text: str


def examine(workdir: disk.Path) -> dict[str, Any]:
    """What is normal in the log of a run and what is not, as plain values.

    Args:
      workdir: run folder.

    Returns:
      {'workdir', 'method', 'step', 'steps', 'healthy', 'reference' (its header, or None),
      'findings': [{'level', 'what', 'text'}], the worst first, 'meaningless': {metric: why}}.

    Raises:
      UserError: no run folder, a damaged file, or no log yet.
    """
    log = read(workdir)
    name, known, alike = reference(log.config)
    found = [finding for check in CHECKS for finding in check(log)]
    found += compared(log, known, alike)
    order = ('wrong', 'watch', 'normal')
    found = sorted(found, key=lambda finding: order.index(finding.level))
    return {
        'workdir': str(workdir),
        'method': log.config['method'],
        'step': log.done,
        'steps': log.steps,
        'healthy': all(finding.level != 'wrong' for finding in found),
        'reference': name and {'name': name, **known[0]},
        'findings': [finding._asdict() for finding in found],
        'meaningless': {
            key: MEANINGLESS[last]
            for key in log.values
            if (last := key.rpartition('/')[2]) in MEANINGLESS
        },
    }


def page(result: Mapping[str, Any]) -> str:
    """What `examine` found, as lines for people."""
    said = [f'{result["workdir"]}: {result["method"]["name"]}, step {result["step"]}']
    if known := result['reference']:
        versions = ', '.join(f'{name} {of}' for name, of in known['versions'].items())
        seed, date = known['seed'], known['date']
        said += [
            f'compared with {known["name"]} ({known["config"]}, seed {seed}, {versions}, {date})'
        ]
    else:
        said += ['no reference log of this method: judged by what holds for all']
    said += ['', *table([one['level'], one['what'], one['text']] for one in result['findings'])]
    if result['meaningless']:
        said += ['', 'These say nothing by themselves, rising or falling:']
        said += table(['', key, why] for key, why in result['meaningless'].items())
    said += ['', 'healthy' if result['healthy'] else 'something is wrong']
    return '\n'.join(said) + '\n'


def write(result: Mapping[str, Any], out: disk.Path) -> list[pathlib.Path]:
    """Writes doctor.png, each metric over the steps with the range of the reference, and
    doctor.json."""
    out, log = pathlib.Path(out), read(result['workdir'])
    _, known, alike = reference(log.config)
    bands = {key: (low, high) for key, low, high in _bands(known, alike) if key in log.values}
    panels = [(key, *found, bands.get(key)) for key, found in sorted(log.values.items())]
    wrong = {one['what'] for one in result['findings'] if one['level'] == 'wrong'}
    disk.write_bytes(out / 'doctor.png', plots.health(panels, wrong))
    disk.write_json(out / 'doctor.json', result)
    return [out / 'doctor.png', out / 'doctor.json']


def read(workdir: disk.Path) -> Log:
    """The `Log` of a run folder; errors as of `examine`."""
    folder = disk.place(workdir)
    config = configs.to_json(configs.read(folder, 'doctor'))
    steps, name = config.get('training', {}).get('steps'), config.get('method', {}).get('name')
    if not isinstance(steps, int) or not isinstance(name, str):
        raise UserError(
            f'{folder}: its config has training.steps={steps!r} and method.name={name!r}; '
            f'{disk.AGAIN}'
        )
    lines = disk.read_json_lines(folder / 'metrics.jsonl', Line)
    if not lines:
        raise UserError(f'doctor {folder}: nothing is logged there yet; try again after a log')
    timing = disk.read_json_lines(folder / 'timing.jsonl', Line)
    speed = np.array([number(line.get('images_per_second')) for line in timing])
    age = time.time() - disk.changed(folder / 'metrics.jsonl')
    bad = {}
    for line in lines:
        for key, value in line.items():
            if not math.isfinite(number(value)):
                bad.setdefault(key, line['step'])
    speed = speed[np.isfinite(speed)]
    ended = stopped(config, lines)
    return Log(config, steps, lines[-1]['step'], _values(lines), bad, speed, age, ended)


def _values(lines):
    found = {}
    for line in lines:
        for key, value in line.items():
            if key != 'step' and math.isfinite(number(value)):
                found.setdefault(key, []).append((line['step'], number(value)))
    return {key: tuple(np.array(those, float).T) for key, those in found.items()}


def reference(config: Mapping[str, Any]) -> tuple[str | None, list[Any], bool]:
    """(Name, lines and whether it is of the same data) of the reference log nearest to a config:
    of its method, and if there is a choice of its divergence and data; None where there is none."""
    best = None, [], False
    most = 0
    for path in sorted(REFERENCES.glob('*.jsonl')):
        lines = disk.read_json_lines(path)
        of = disk.from_json(path.read_bytes().split(b'\n')[0], Header)
        method, alike = config['method'], of['data'] == data_of(config)
        same = method.get('divergence') == of['method'].get('divergence')
        if method['name'] == of['method']['name'] and (score := 1 + 2 * alike + same) > most:
            best, most = (path.stem, [of, *lines[1:]], alike), score
    return best


def data_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says of which data it is trained on."""
    section = config.get('data', {})
    return {key: section[key] for key in ('name', 'mixture') if key in section}


def _late(values, share=0.5):
    """The values of the last share of the steps, of (steps, values)."""
    steps, found = values
    return found[steps >= steps[-1] - share * (steps[-1] - steps[0])]


def growth(values: tuple[np.ndarray, np.ndarray]) -> float | None:
    """The factor by which a positive quantity grows over the last half of its log: the line of
    least squares through its logarithm; None of too few values.

    Args:
      values: (steps [n], values [n]).
    """
    steps, found = values
    late = (steps >= steps[-1] / 2 + steps[0] / 2) & (found > 0)
    if late.sum() < FEWEST or not np.ptp(steps[late]):
        return None
    slope = np.polyfit(steps[late], np.log(found[late]), 1)[0]
    return math.exp(min(slope * np.ptp(steps[late]), 700))


def _of(log, *names):
    """(metric, its role, (steps, values)) of the metrics of these names."""
    for key, values in log.values.items():
        role, _, name = key.rpartition('/')
        if name in names:
            yield key, role, values


def _judged(what, text, wrong):
    """Normal, or what is wrong in words."""
    return Finding('wrong', what, f'{text}: {wrong}') if wrong else Finding('normal', what, text)


def _finite(log):
    bad = [f'{key} from step {step}' for key, step in log.bad.items()]
    if bad:
        yield Finding('wrong', 'not finite', f'{", ".join(bad)}: lower the learning rate, set clip')
    else:
        yield Finding('normal', 'finite', 'every number that was logged is finite')


def _updates(log, role):
    """How many updates of a role there were at most."""
    method = log.config['method']
    known = configs.parameters(METHODS[method['name']]) if method['name'] in METHODS else {}
    default = known['student_every'].default if 'student_every' in known else 1
    every = method.get('student_every', default) if role == 'student' else 1
    return max(log.done // every, 1) if isinstance(every, int) and every > 0 else log.done


def _counted(log, name, most, wrong):
    for key, role, (_, counts) in _of(log, name):
        share = np.max(counts, initial=0) / _updates(log, role)
        text = f'{share:.2%} of the updates'
        if share > most:
            yield Finding('wrong', key, f'{text}: {wrong}')
        elif share:
            yield Finding('watch', key, f'{text}: each was left out, and the weights are clean')
        else:
            yield Finding('normal', key, 'none')


def _skipped(log):
    yield from _counted(log, 'skipped', 0.01, 'not finite that often; lower the learning rate')


def _spikes(log):
    yield from _counted(log, 'spikes', 0.05, 'no longer the exception; clip, or raise spike_sigmas')


def _rollbacks(log):
    if 'rollbacks' in log.values:
        count = log.values['rollbacks'][1][-1]
        yield Finding('watch', 'rollbacks', f'{count:.0f}: went back to a checkpoint and on')


def _trends(log, names, limits, text):
    watch, wrong = limits
    for key, role, values in _of(log, *names):
        factor = growth(values)
        if factor is None:
            continue
        level = 'wrong' if factor > wrong else 'watch' if factor > watch else 'normal'
        said = f'times {factor:.2g} over the last half'
        yield Finding(
            level, key, said if level == 'normal' else f'{said}: {text}'.format(role=role)
        )


def _gradients(log):
    text = 'explodes or drifts; lower optimizer.{role}.learning_rate or set its clip'
    yield from _trends(log, ('grad_norm',), (3, 10), text)


def _gaps(log):
    text = 'the student moves away from the teacher, or its critic is left behind'
    yield from _trends(log, GAPS, (1.5, 3), text)


def _divergence(log):
    """Of what `critic.divergence` logs. The critic's estimate moved along D_T - D_F to where it is
    nearest to the student leaves (kl + seen)^2/(4 seen), which is never above the divergence
    either, and unlike `kl` does not rise because the critic catches up."""
    for key, role, (steps, seen) in _of(log, 'kl_seen'):
        # What is not finite is not among the values of a log, and is judged elsewhere.
        nothing = steps[:0], seen[:0]
        (_, kl), (_, noise) = (
            log.values.get(f'{role}/{name}', nothing) for name in ('kl', 'kl_noise')
        )
        if not len(kl) == len(noise) == len(seen) >= FEWEST or seen.min() <= 0:
            continue
        if not all(part.any() for part in _quarters(steps)):
            continue
        along = np.maximum(kl + seen, 0) / 2
        bound, error = along**2 / seen, along * noise / seen
        (third, n), (last, m) = (
            (np.mean(of[part], axis=0), max(part.sum(), 1))
            for of, part in (
                (np.stack([bound, error**2], axis=1), part) for part in _quarters(steps)
            )
        )
        risen = last[0] - third[0] > 4 * math.sqrt(last[1] / m + third[1] / n)
        factor = growth((steps, bound)) or 1.0
        level = 'normal' if not risen or factor < 1.5 else 'watch' if factor < 3 else 'wrong'
        text = f'at least {last[0]:.3g} ± {math.sqrt(last[1] / m):.1g} nats from the teacher'
        if level != 'normal':
            text += f', times {factor:.2g} over the last half: the student moves away from it'
        yield Finding(level, f'{role}/kl', text)
        share = (1 - np.mean(_late((steps, kl))) / np.mean(_late((steps, seen)))) / 2
        text = f'the student is {share:.0%} of the way from where its critic sees it to the teacher'
        remedy = (
            'raise student_every or optimizer.critic.learning_rate, or lower that of the student'
        )
        if share > 0.5:
            text += f': that tells more of it than the critic; {remedy}'
        elif share < -0.5:
            text += f': it is farther off than its critic knows; {remedy}'
        level = 'wrong' if share > 0.5 else 'watch' if share < -0.5 else 'normal'
        yield Finding(level, key, text)


def _quarters(steps):
    """Which values are of the third quarter of the steps, and of the last."""
    middle, end = ((1 - part) * steps[0] + part * steps[-1] for part in (0.5, 0.75))
    return (middle <= steps) & (steps < end), steps >= end


def _weights(log):
    for key, role, values in _of(log, 'h_max'):
        if f'{role}/h' not in log.values:
            continue
        share = np.median(_late(values)) / max(np.median(_late(log.values[f'{role}/h'])), 1e-30)
        text = f'the largest weight of a batch is {share:.3g} times the mean'
        yield _judged(key, text, share > 50 and 'few samples carry the gradient; lower ratio_high')


def _clipped(log):
    for key, _, values in _of(log, 'clipped'):
        share = np.mean(_late(values))
        text = f'{share:.0%} of the ratios are clipped over the last half'
        wrong = 'h is a constant for them; widen ratio_low and ratio_high, or slow the critic'
        yield _judged(key, text, share > 0.5 and wrong)


def _collapse(log):
    for key, role, values in _of(log, 'sample_std'):
        of_data = log.values.get(f'{role}/data_std')
        data = np.median(of_data[1]) if of_data else _sigma_data(log.config)
        share = np.mean(_late(values, 0.25)) / max(data, 1e-30)
        text = f'{share:.0%} of the standard deviation of the data'
        wrong = 'the samples collapse'
        if not share < 0.5:
            wrong = 'the samples spread beyond the data, as when over-saturated'
        yield _judged(key, text, not 0.5 <= share <= 2 and wrong)


def _sigma_data(config):
    section = config.get('denoiser', {})
    return number(section.get('sigma_data', 0.5)) if isinstance(section, dict) else 0.5


def _discriminator(log):
    for key, _, values in _of(log, 'discriminator_accuracy'):
        late, best = np.mean(_late(values, 0.25)), np.max(values[1], initial=0)
        level, text = 'normal', f'{late:.0%} right over the last quarter'
        if late > 0.98:
            level, text = 'wrong', f'{text}: always right, so r says nothing; slow it down, or r1'
        elif best < 0.53 and len(values[1]) >= FEWEST:
            level, text = 'watch', f'{text}, never more than {best:.0%}: it has learned nothing yet'
        yield Finding(level, key, text)


def _speed(log):
    if len(log.speed) < 2 * FEWEST:
        return
    quarter = len(log.speed) // 4
    before, now = np.median(log.speed[:quarter]), np.median(log.speed[-quarter:])
    text = f'{now:.0f} images a second, {before:.0f} at first'
    wrong = 'something else uses the machine, or the data is slow'
    yield _judged('speed', text, now < 0.5 * before and wrong)


def _ended(log):
    text = f'ends at step {log.done} of {log.steps}'
    if log.stopped:
        yield Finding('wrong', 'log', f'{text}, by its rule: {log.stopped}')
    elif log.done >= log.steps:
        yield Finding('normal', 'log', f'{text}: complete')
    elif log.age < RECENT:
        yield Finding('watch', 'log', f'{text}, {log.age:.0f} s ago: it may still go on')
    else:
        text += f', {log.age / 3600:.1f} h ago: stopped in the middle; the same command goes on'
        yield Finding('wrong', 'log', text)


CHECKS: tuple[Callable[[Log], Iterator[Finding]], ...] = (
    _ended,
    _finite,
    _skipped,
    _spikes,
    _rollbacks,
    _gradients,
    _gaps,
    _divergence,
    _weights,
    _clipped,
    _collapse,
    _discriminator,
    _speed,
)


def _bands(known, alike):
    """(metric, lowest, highest) over the last half of a reference, of what can be compared."""
    for key, values in _values(known[1:]).items():
        name = key.rpartition('/')[2]
        comparable = name in SCALE_FREE or alike and name not in (*MEANINGLESS, 'sample_mean')
        if comparable and name not in COUNTS:
            late = _late(values)
            yield key, float(late.min()), float(late.max())


def compared(log: Log, known: list[Any], alike: bool) -> Iterator[Finding]:
    """Which metrics lie outside the range of a reference over the last half of both; nothing of a
    run that has not come half its way.

    Args:
      log: of the run.
      known: lines of the reference; [] for none.
      alike: it is of the same data.
    """
    if 2 * log.done < log.steps:
        return
    outside = 0
    bands = [band for band in _bands(known, alike) if band[0] in log.values]
    for key, low, high in bands:
        now = float(np.median(_late(log.values[key])))
        share = key.rpartition('/')[2] in SHARES
        least = low - BESIDE if share else low / APART
        if not least <= now <= (high + BESIDE if share else high * APART):
            outside += 1
            yield Finding('watch', key, f'{now:.3g}; {low:.3g} to {high:.3g} in the reference')
    if bands and not outside:
        yield Finding('normal', 'reference', f'{len(bands)} metrics lie where its do')
