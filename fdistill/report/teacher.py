"""What the numbers of a teacher say, in words and pictures: `fdistill check-teacher`.

It is measured by `build.check_teacher`; here is what is made of that, a row of `CHECKS` each.
"""

import math
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from fdistill.files import disk, pictures
from fdistill.files.text import table
from fdistill.report import plots
from fdistill.report.doctor import Finding

# A difference counts if it is more than so many standard errors, ...
SIGNIFICANT = 3.0
# ... and more than this share of what it is a difference to: a network of few parameters misses its
# optimum by as much.
MARGIN = 0.05
# The best multiple of the noise that a denoiser finds is 1 for E[x | x + sigma eps]. Teachers of a
# tenth of their training have 1.1 (digits).
GAIN = 0.15
# Standard deviation of the samples, of the data's; twice it or half of it is another convention.
STD, WRONG_STD = 1.25, 2.0
# Share of values that lie more than a fortieth of the range beyond it.
OUTSIDE = 0.1
# A Frechet distance so many times that of real data drawn again: training or steps are missing.
FAR = 5.0
# Of the distance of a Gaussian, from which it is no better: a thousand samples are some per cent
# from their limit, and so are 18 steps.
GAUSSIAN = 0.8


def judge(result: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of `build.check_teacher` with 'findings', the worst first, 'usable' and
    'verdict', one line."""
    found = [finding for check in CHECKS for finding in check(result)]
    order = ('wrong', 'watch', 'normal')
    found = sorted(found, key=lambda finding: order.index(finding.level))
    usable = found[0].level != 'wrong'
    return {
        **result,
        'findings': [finding._asdict() for finding in found],
        'usable': usable,
        'verdict': 'usable' if usable else f'not usable because {found[0].text}',
    }


def _greater(difference, than):
    """Whether a `teacher.difference` is above 0, and no trifle beside a number."""
    return difference['mean'] > max(SIGNIFICANT * difference['error'], MARGIN * abs(than))


def _finite(result):
    bad = [row['sigma'] for row in result['denoising']['levels'] if not _is(row['teacher'])]
    if bad:
        text = f'its answers are not finite, as at sigma {bad[0]:.3g}; its weights are damaged'
        yield Finding('wrong', 'finite', text)
    elif not result['samples']:
        yield Finding('wrong', 'finite', 'its samples are not finite; look at its answers by level')
    else:
        yield Finding('normal', 'finite', 'all answers and samples are finite')


def _is(row):
    return math.isfinite(row['mean'])


def _reading(result):
    """By the least squared error: no other reading of the best denoiser is better than it."""
    if not result['denoising']['finite']:
        return
    tried = result['denoising']['readings']
    better = {
        name: one
        for name, one in tried.items()
        # It has to be right, too, not only less wrong.
        if _greater(one['better'], one['as_given'])
        and one['teacher'] <= (1 + MARGIN) * one['linear']
        and abs(one['gain'] - 1) <= GAIN
    }
    if better:
        name = min(better, key=lambda name: better[name]['teacher'])
        one = better[name]
        text = f'{one["text"]} (error {one["as_given"]:.3g} as given, {one["teacher"]:.3g} so)'
        yield Finding('wrong', f'reading: {name}', text)
    else:
        text = f'none of {len(tried)} other conventions of input or output denoises better'
        yield Finding('normal', 'reading', text)


def _linear(result):
    """By the least squared error: the best denoiser is no worse than the best linear one."""
    if not result['denoising']['finite']:
        return
    middle = result['denoising']['middle']
    ours, theirs = middle['teacher'], middle['linear']
    text = f'error {ours:.3g}, that of the best linear denoiser is {theirs:.3g}'
    if _greater(middle['worse'], theirs):
        why = 'it is untrained, or of other data, or of another sigma_data or normalisation'
        yield Finding(
            'wrong', 'denoising', f'it denoises worse than mean and covariance do: {why} ({text})'
        )
    elif ours > (1 - MARGIN) * theirs:
        why = 'it has learned no more than mean and covariance, unless the data is Gaussian'
        yield Finding('watch', 'denoising', f'{why}: {text}')
    else:
        yield Finding('normal', 'denoising', text)


def _levels(result):
    """By the least squared error: the best denoiser is no worse than x itself or the mean."""
    rows = [row for row in result['denoising']['levels'] if _is(row['teacher'])]
    worse = [
        row
        for row in rows
        if _greater(row['worse'], min(row['mean']['mean'], row['identity']['mean']))
    ]
    good = [row['sigma'] for row in rows if row not in worse]
    if any(row['middle'] for row in worse):
        text = f'at {len(worse)} of {len(rows)} levels it is worse than x itself or the mean'
        yield Finding(
            'wrong', 'levels', f'{text} of the data, as at sigma {worse[-1]["sigma"]:.3g}'
        )
    elif worse:
        # What a sampler passes through at its ends can be left out.
        text = 'beyond these levels it is worse than x itself or the mean of the data'
        yield Finding('watch', 'levels', f'{min(good):.3g} to {max(good):.3g}: {text}; use these')
    elif rows:
        first, last = rows[0], rows[-1]
        text = (
            f'at sigma {first["sigma"]:.3g} it moves x by {first["moved"]:.2g} sigma, at '
            f'{last["sigma"]:.3g} it is {last["kept"]:.2g} standard deviations from the mean'
        )
        yield Finding('normal', 'levels', text)


def _gain(result):
    """E (x - D)(sigma eps) = E (x - D)^2 for the best D: it is the projection of x0."""
    gains = [row['gain'] for row in result['denoising']['levels'] if row['middle']]
    if not np.isfinite(gains).all():
        return
    low, high = min(gains), max(gains)
    text = f'the noise that it finds fits best times {low:.3g} to {high:.3g}'
    if low < 1 - GAIN or high > 1 + GAIN:
        yield Finding(
            'watch', 'gain', f'{text}, and should times 1: it finds too much or too little'
        )
    else:
        yield Finding('normal', 'gain', text)


def _condition(result):
    """Knowing more never hurts the best denoiser: E Var[x | y, c] <= E Var[x | y]."""
    told = result['denoising'].get('condition')
    if not told:
        return
    right, wrong, none = told['right'], told['wrong'], told['none']
    text = (
        f'error {right:.3g} with the right condition, {wrong:.3g} with another, {none:.3g} without'
    )
    better = -told['right_minus_wrong']['mean']
    if _greater(told['right_minus_wrong'], right):
        yield Finding('wrong', 'condition', f'others denoise better than the right ones: {text}')
    elif _greater(told['right_minus_none'], right):
        yield Finding(
            'wrong',
            'condition',
            f'it is better without the condition: its labels are others ({text})',
        )
    elif better <= SIGNIFICANT * told['right_minus_wrong']['error']:
        yield Finding('watch', 'condition', f'it does not heed the condition: {text}')
    else:
        yield Finding('normal', 'condition', text)
        linear = result['denoising']['middle']['linear']
        if right > linear:
            return
        if _greater(told['none_minus_linear'], linear):
            text = f'{none:.3g}, above the {linear:.3g} of the best linear denoiser'
            text = f'without a condition its error is {text}: it was not trained so, and guidance'
            yield Finding('watch', 'guidance', f'{text} would lead astray')
        else:
            yield Finding('normal', 'guidance', 'its branch without condition is fit for guidance')


def _samples(result):
    """A generator that knows mean and covariance alone is N(m, C): a teacher should know more."""
    if not result['samples']:
        return
    ours, gaussian, real = (result['samples'][name] for name in ('teacher', 'gaussian', 'real'))
    key = 'fd_held_out' if 'fd_held_out' in ours else 'pixel_fd'
    text = f'{ours["protocol"][key]} {ours[key]:.3g}, real data drawn again {real[key]:.3g}'
    if key == 'fd_held_out':
        text += f', a Gaussian of its covariance {gaussian[key]:.3g}'
        if ours[key] > GAUSSIAN * gaussian[key]:
            yield Finding('wrong', 'samples', f'its samples are no better than Gaussians: {text}')
            return
    if ours[key] > FAR * real[key]:
        yield Finding('watch', 'samples', f'its samples are far from the data: {text}')
    else:
        yield Finding('normal', 'samples', text)


def _range(result):
    if not result['samples']:
        return
    mean, std, outside = (result['samples'][name] for name in ('mean', 'std', 'outside'))
    data = result['data']
    text = f'samples {mean:.3g} ± {std:.3g}, data {data["mean"]:.3g} ± {data["std"]:.3g}'
    ratio = std / data['std']
    if not 1 / WRONG_STD < ratio < WRONG_STD:
        wrong = f'its samples have {ratio:.3g} times the standard deviation of the data'
        yield Finding('wrong', 'range', f'{wrong}: {text}')
    elif not 1 / STD < ratio < STD:
        yield Finding('watch', 'range', f'its samples are not as wide as the data: {text}')
    elif outside is not None and outside > OUTSIDE:
        yield Finding('watch', 'range', f'{outside:.1%} of its values lie beyond ±1.05: {text}')
    else:
        yield Finding('normal', 'range', text)


def _straightness(result):
    """How many Euler steps its ODE needs: one, where its paths are straight."""
    S = result['teacher']['straightness']
    if math.isfinite(S['mean']):
        text = f'S {S["mean"]:.3g} ± {S["error"]:.1g}, 0 where one Euler step is exact'
        yield Finding('normal', 'straightness', text)


CHECKS: tuple[Callable[[Mapping[str, Any]], Iterator[Finding]], ...] = (
    _finite,
    _reading,
    _condition,
    _linear,
    _levels,
    _gain,
    _samples,
    _range,
    _straightness,
)


def page(result: Mapping[str, Any]) -> str:
    """What was found, as lines for people."""
    about, data, cost = result['teacher'], result['data'], result['cost']
    low, high = about['sigma_range']
    network = about['network']['name']
    lines = [
        f'{result["name"]}: {network} of {about["parameters"]:,} parameters, '
        f'{", ".join(about["dtypes"]) or "none"}, sigma {low:.3g} to {high:.3g}',
        f'data: {data["name"]}, {"x".join(map(str, data["shape"]))}, {data["count"]} samples, '
        f'{data["num_classes"] or "no"} classes',
        '',
        'error of denoising, 1 = s^2/(s^2 + sigma^2) (x + sigma eps) on data of mean 0',
        *table(
            [['sigma', 'teacher', '±', 'linear', 'x itself', 'mean', 'gain']]
            + [
                [
                    f'{row["sigma"]:.3g}',
                    f'{row["teacher"]["mean"]:.4f}',
                    f'{row["teacher"]["error"]:.4f}',
                    *(f'{row[n]["mean"]:.4g}' for n in ('linear', 'identity', 'mean')),
                    f'{row["gain"]:.3f}',
                ]
                for row in result['denoising']['levels']
            ],
            str.rjust,
        ),
        '',
        f'an evaluation {_quantity(cost["seconds"], "s")}, {_quantity(cost["flops"], "FLOP")} a '
        f'sample; a sample of 18 steps {cost["evaluations"]} of them; on {cost["device"]}',
        '',
        *table([one['level'], one['what'], one['text']] for one in result['findings']),
        '',
        result['verdict'],
    ]
    return '\n'.join(lines) + '\n'


def _quantity(value, unit):
    if value is None:
        return f'? {unit}'
    prefixes = ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k'), (1, ''), (1e-3, 'm'))
    size, prefix = next((row for row in prefixes if value >= row[0]), (1e-6, 'u'))
    return f'{value / size:.3g} {prefix}{unit}'


def write(
    out: disk.Path, result: Mapping[str, Any], drawn: Mapping[str, np.ndarray]
) -> list[pathlib.Path]:
    """Writes check_teacher.png, check_teacher.txt and check_teacher.json.

    Args:
      out: folder, made when missing.
      result: of `judge`.
      drawn: {title: samples}, real ones last, of `build.check_teacher`.
    """
    out = pathlib.Path(out)
    limit = 1.1 * float(np.abs(list(drawn.values())[-1]).max(initial=1e-3))
    shown = {name: _picture(samples, limit) for name, samples in drawn.items()}
    shown = {name: picture for name, picture in shown.items() if picture is not None}
    disk.write_bytes(
        out / 'check_teacher.png',
        plots.denoising(result['denoising']['levels'], shown, result['verdict']),
    )
    disk.write_bytes(out / 'check_teacher.txt', page(result).encode())
    disk.write_json(out / 'check_teacher.json', disk.plain(result))
    return [out / f'check_teacher.{kind}' for kind in ('png', 'txt', 'json')]


def _picture(samples, limit):
    """Samples as a picture; None of what is none, as points out of the plane."""
    if samples.ndim == 4 and samples.shape[-1] in (1, 3):
        return pictures.image_grid(samples, tile=1)
    if samples.ndim == 2 and samples.shape[1] == 2:
        return pictures.scatter(samples, limit=limit)
    return None
