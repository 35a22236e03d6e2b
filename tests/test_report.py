"""Reports: the statistics against scipy and by simulation, what may be compared with what, and the
page as a browser gets it."""

import base64
import hashlib
import html.parser
import io
import itertools
import json
import pathlib
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from fdistill import cli, report, sweep
from fdistill.errors import UserError
from fdistill.report import collect, page, pictures, plots, statistics, summary

ROOT = pathlib.Path(__file__).parents[1]
PROTOCOL = {
    'kl': 'kl[pixels,10k,pair,float,as-train,seed0]',
    'pixel_fd': 'fd[pixels,10k,train,float,as-train,seed0]',
}


def make(
    folder,
    divergence='js',
    seed=0,
    status='done',
    protocol=None,
    mixture='pair',
    config=True,
    nfe=1,
    steps=100,
    **row,
):
    """A run folder as a sweep leaves it, without a checkpoint."""
    folder.mkdir(parents=True)
    overrides = {'method.divergence': divergence, 'seed': seed}
    if config:
        method = {'name': 'exact', 'divergence': divergence, 'nfe': nfe}
        data = {'name': 'mixture', 'mixture': mixture}
        written = {
            'data': data,
            'method': method,
            'seed': seed,
            'training': {'steps': steps},
            'mesh': {'data': -1},
        }
        (folder / 'config.json').write_text(json.dumps(written))
    outcome = {'overrides': overrides, 'fingerprint': f'f{seed}', 'status': status, 'seconds': 2.0}
    if status == 'done':
        row = {'kl': 0.1, 'pixel_fd': 1.0} | row
        outcome['row'] = {
            'step': steps,
            'nfe': nfe,
            **row,
            'seconds': 0.1,
            'protocol': protocol or PROTOCOL,
        }
    else:
        outcome['error'] = row.get('error', 'it diverged')
    (folder / 'result.json').write_text(json.dumps(outcome))
    return folder


def make_sweep(folder, values):
    """values: {divergence: [pixel_fd by seed]}."""
    for name, of in values.items():
        for seed, value in enumerate(of):
            make(
                folder / 'trials' / f'{len(list(folder.glob("trials/*")))}',
                name,
                seed,
                pixel_fd=value,
            )
    return folder


@pytest.mark.parametrize('n', [2, 3, 5, 30])
@pytest.mark.parametrize('level', [0.8, 0.95])
def test_interval_is_students(n, level):
    values = np.random.default_rng(n).normal(3, 2, n)
    found = statistics.interval(values, level)
    low, high = stats.t.interval(level, n - 1, loc=values.mean(), scale=stats.sem(values))
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx(
        (low, high), rel=1e-12
    )
    assert found.std == pytest.approx(np.std(values, ddof=1)) and found.n == n


def test_intervals_of_few_values():
    assert statistics.interval([]) == (None, None, None, 0)
    assert statistics.interval([2.0]) == (2.0, None, None, 1)
    # t_{.975, 2} = 4.302653, s = 1
    assert statistics.interval([1.0, 2.0, 3.0]).half == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    for bad in ({'values': [1.0, np.nan]}, {'values': [1.0], 'level': 1.0}):
        with pytest.raises(ValueError, match='must'):
            statistics.interval(**bad)


def test_interval_covers_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(size=(2000, 4))
    found = [statistics.interval(row) for row in draws]
    covered = np.mean([abs(one.mean) <= one.half for one in found])
    assert abs(covered - 0.95) < 3 * (0.95 * 0.05 / 2000) ** 0.5


@pytest.mark.parametrize('n', [2, 5, 12])
def test_paired_is_scipys(n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(size=(2, n))
    order = rng.permutation(n)
    found = statistics.paired({int(i): a[i] for i in order}, {i: b[i] for i in range(n)})
    known = stats.ttest_rel(a, b)
    assert (found.t, found.p) == pytest.approx((known.statistic, known.pvalue), rel=1e-9)
    assert found.t == pytest.approx(np.mean(a - b) * n**0.5 / np.std(a - b, ddof=1))
    low, high = known.confidence_interval(0.95)
    assert (found.difference - found.half, found.difference + found.half) == pytest.approx(
        (low, high), rel=1e-9
    )


def test_paired_uses_common_seeds_only():
    a, b = {0: 1.0, 1: 2.0, 2: 4.0, 7: 99.0}, {2: 3.5, 1: 1.0, 0: 0.75, 8: -99.0}
    found = statistics.paired(a, b)
    known = stats.ttest_rel([1.0, 2.0, 4.0], [0.75, 1.0, 3.5])
    assert found.n == 3 and found.p == pytest.approx(known.pvalue)


@pytest.mark.parametrize(
    ('a', 'b', 'n', 'note'),
    [
        ({0: 1.0}, {1: 1.0}, 0, 'no common seed'),
        ({0: 1.0, 1: 3.0}, {1: 1.0}, 1, 'n is too small'),
        ({0: 1.0, 1: 1.0}, {0: 2.0, 1: 2.0}, 2, 'all differences are equal'),
        ({0: 1.1, 1: 2.2, 2: 3.3}, {0: 1.0, 1: 2.1, 2: 3.2}, 3, 'all differences are equal'),
        ({0: 1.0, 1: 1.5}, {0: 1.0, 1: 1.5}, 2, 'all differences are equal'),
    ],
)
def test_without_a_test_nothing_is_separated(a, b, n, note):
    found = statistics.paired(a, b)
    assert found.n == n and found.p is None and note in found.note
    (pair,) = statistics.compare({'a': a, 'b': b})
    assert not pair.separated and pair.holm == 1


def test_holm_by_hand():
    # Sorted .005 x 4, .01 x 3, .03 x 2, .04 x 1, made monotone.
    np.testing.assert_allclose(
        statistics.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02], rtol=1e-12
    )
    np.testing.assert_allclose(statistics.holm([0.6, 0.5]), [1, 1])
    np.testing.assert_allclose(statistics.holm([0.02, 0.02]), [0.04, 0.04])
    assert len(statistics.holm([])) == 0
    with pytest.raises(ValueError, match='must lie in'):
        statistics.holm([1.5])


def test_holm_lies_between_none_and_bonferroni():
    p = np.random.default_rng(0).uniform(size=20) ** 3
    corrected = statistics.holm(p)
    assert np.all(corrected >= p) and np.all(corrected <= np.minimum(1, 20 * p) + 1e-15)
    assert np.all(np.diff(corrected[np.argsort(p)]) >= 0)


def test_nothing_is_separated_where_nothing_differs():
    """Family-wise: in at most 5 % of the simulated sweeps is any of the six pairs separated; the
    seeds' own effect is large."""
    rng, wrong, sweeps = np.random.default_rng(0), 0, 600
    for _ in range(sweeps):
        effect = rng.normal(0, 5, 5)
        scores = {name: dict(enumerate(effect + rng.normal(size=5))) for name in 'abcd'}
        wrong += any(pair.separated for pair in statistics.compare(scores))
    assert wrong / sweeps < 0.05 + 2.5 * (0.05 * 0.95 / sweeps) ** 0.5
    assert wrong > 0  # Else the test has no power at all.


def test_pairing_sees_through_what_seeds_share():
    rng = np.random.default_rng(1)
    effect = rng.normal(0, 10, 6)
    scores = {
        name: dict(enumerate(effect + shift + rng.normal(0, 0.1, 6)))
        for name, shift in (('a', 0), ('b', 1))
    }
    (pair,) = statistics.compare(scores)
    assert pair.separated and pair.test.difference == pytest.approx(-1, abs=0.2)
    assert stats.ttest_ind(list(scores['a'].values()), list(scores['b'].values())).pvalue > 0.5


@pytest.mark.parametrize(('n', 'm'), [(5, 1), (5, 55), (3, 10)])
def test_critical_is_where_the_corrected_p_is_a_twentieth(n, m):
    t = statistics.critical(n, m)
    assert m * 2 * stats.t.sf(t, n - 1) == pytest.approx(0.05, rel=1e-9)


def test_places_count_separated_groups_only():
    noise = np.array([0, 0.01, -0.01, 0.02, -0.02])
    scores = {
        'far': dict(enumerate(9 + noise)),
        'a': dict(enumerate(1 + noise[::-1])),
        'b': dict(enumerate(1.001 + noise**2)),
    }
    pairs = statistics.compare(scores)
    assert {(pair.a, pair.b): pair.separated for pair in pairs} == {
        ('far', 'a'): True,
        ('far', 'b'): True,
        ('a', 'b'): False,
    }
    less = statistics.places(scores, pairs, -1)
    assert list(less)[-1] == 'far'
    assert less == {'a': (1, 2, ['b']), 'b': (1, 2, ['a']), 'far': (3, 3, [])}
    more = statistics.places(scores, pairs, 1)
    assert list(more)[0] == 'far' and more['far'] == (1, 1, []) and more['a'][:2] == (2, 3)


def test_groups_are_equal_in_all_but_the_seed(tmp_path):
    make_sweep(tmp_path, {'js': [1.0, 2.0, 3.0], 'reverse_kl': [4.0, 5.0, 6.5]})
    found = summary.summarise(collect.runs([tmp_path]))
    (comparison,) = found['comparisons']
    assert comparison['measure'] == 'pixel_fd' and list(comparison['measures']) == [
        'pixel_fd',
        'kl',
    ]
    js, reverse = comparison['groups']
    assert (js['name'], reverse['name']) == ('js', 'reverse_kl') and js['seeds'] == [0, 1, 2]
    measured = js['measures']['pixel_fd']
    assert measured['values'] == {'0': 1.0, '1': 2.0, '2': 3.0}
    assert (measured['mean'], measured['n']) == (2.0, 3) and measured['half'] == pytest.approx(
        4.302653 / 3**0.5, rel=1e-6
    )
    assert found['differing'] == {'method.divergence': {'js': 'js', 'reverse_kl': 'reverse_kl'}}
    assert found['common']['data.mixture'] == 'pair' and 'seed' not in found['common']
    (test,) = comparison['rankings']['pixel_fd']['tests']
    assert test['p'] == pytest.approx(stats.ttest_rel([1.0, 2.0, 3.0], [4.0, 5.0, 6.5]).pvalue)


def test_the_words_never_separate_what_the_tests_do_not(tmp_path):
    make_sweep(tmp_path, {'js': [1.0, 2.0], 'reverse_kl': [1.1, 2.5], 'pearson': [90.0, 20.0]})
    (comparison,) = summary.summarise(collect.runs([tmp_path]))['comparisons']
    ranking = comparison['rankings']['pixel_fd']
    words = ' '.join(ranking['words'])
    assert (
        'separated: 0 of 3' in words
        and 'not separated: js, of the lowest mean, and reverse_kl, pearson.' in words
    )
    assert 'n is small' in words and all(
        (row['best'], row['worst']) == (1, 3) for row in ranking['rows']
    )
    assert 'in all seeds, so that t is undefined: 3;' in ' '.join(
        comparison['rankings']['kl']['words']
    )


def test_protocols_and_data_are_never_mixed(tmp_path):
    other = {key: name.replace('10k', '2k') for key, name in PROTOCOL.items()}
    folders = [
        make(tmp_path / 'a', 'js'),
        make(tmp_path / 'b', 'reverse_kl'),
        make(tmp_path / 'c', 'pearson', protocol=other),
        make(tmp_path / 'd', 'neyman', mixture='triangle'),
    ]
    found = summary.summarise(collect.runs(folders))
    members = [{group['divergence'] for group in one['groups']} for one in found['comparisons']]
    assert members == [{'js', 'reverse_kl'}, {'pearson'}, {'neyman'}]
    assert any('incomparable' in note for note in found['notes'])
    for one in found['comparisons']:
        names = {group['name'] for group in one['groups']}
        assert {
            name for test in one['rankings']['kl']['tests'] for name in (test['a'], test['b'])
        } <= names


def test_rows_of_before_a_number_was_measured_are_compared_with_later_ones(tmp_path):
    more = PROTOCOL | {'recall': 'recall-k3[digits-clf,2k,train,q16,balanced,seed0]'}
    folders = [
        make(tmp_path / 'before', 'js'),
        make(tmp_path / 'after', 'pearson', protocol=more, recall=0.5),
    ]
    (comparison,) = summary.summarise(collect.runs(folders))['comparisons']
    assert {group['divergence'] for group in comparison['groups']} == {'js', 'pearson'}
    (ranked,) = comparison['rankings']['recall']['rows']
    assert comparison['measures']['recall']['sign'] == 1 and ranked['group'] == 'pearson'


def test_a_run_counts_once(tmp_path):
    make_sweep(tmp_path / 's', {'js': [1.0, 2.0]})
    twin = make(tmp_path / 'twin', 'js', 1, pixel_fd=7.0)
    found = summary.summarise(
        collect.runs([tmp_path / 's', tmp_path / 's' / 'trials' / '0', tmp_path / 's', twin])
    )
    (group,) = found['comparisons'][0]['groups']
    assert group['measures']['pixel_fd']['values'] == {'0': 1.0, '1': 2.0}
    assert len(found['runs']) == 3 and any(
        'left out' in note and 'twin' in note for note in found['notes']
    )


def test_failed_and_missing_trials_are_shown(tmp_path):
    make_sweep(tmp_path, {'js': [1.0, 2.0]})
    make(tmp_path / 'trials' / 'late', 'js', 2, 'failed', error='loss is nan')
    make(
        tmp_path / 'trials' / 'early', 'pearson', 0, 'failed', config=False, error='no <such> thing'
    )
    (tmp_path / 'trials' / 'waiting').mkdir()
    found = summary.summarise(collect.runs([tmp_path]))
    groups = {group['name']: group for group in found['comparisons'][0]['groups']}
    assert [one['error'] for one in groups['js']['failed']] == ['loss is nan'] and groups['js'][
        'seeds'
    ] == [0, 1]
    assert groups['pearson']['seeds'] == [] and groups['pearson']['failed'][0]['name'] == 'early'
    assert any('waiting' in note for note in found['notes'])
    shown = page.html(found | {'paths': ['x']}, [[]])
    assert '2, 1 FAILED' in shown and 'loss is nan' in shown and 'no &lt;such&gt; thing' in shown


def test_failed_trials_are_of_the_group_of_their_own_method(tmp_path):
    for name in ('sim', 'sid'):
        for seed, status in enumerate(('done', 'failed')):
            folder = tmp_path / 'trials' / f'config={name},seed={seed}'
            make(folder, name, seed, status, config=status == 'done')
            outcome = json.loads((folder / 'result.json').read_text())
            outcome['overrides'] = {'config': name, 'seed': seed}
            (folder / 'result.json').write_text(json.dumps(outcome))
    found = summary.summarise(collect.runs([tmp_path]))
    groups = {group['name']: group for group in found['comparisons'][0]['groups']}
    assert groups.keys() == {'sim', 'sid'} and found['differing'].keys() == {'method.divergence'}
    for name, group in groups.items():
        assert [one['name'] for one in group['failed']] == [f'config={name},seed=1']


def test_values_that_are_not_finite_are_counted(tmp_path):
    make(tmp_path / 'a', 'js', 0, kl=1.0)
    make(tmp_path / 'b', 'js', 1, kl='nan')
    (comparison,) = summary.summarise(collect.runs([tmp_path / 'a', tmp_path / 'b']))['comparisons']
    found = comparison['groups'][0]['measures']['kl']
    assert found['mean'] == 1.0 and found['n'] == 1 and found['not_finite'] == 1
    assert '1 not finite' in page.markdown(
        {'paths': [], **summary.summarise(collect.runs([tmp_path / 'b']))}, [[]]
    )


def test_a_run_folder_has_its_latest_evaluation(tmp_path):
    folder = make(tmp_path / 'a')
    row = json.loads((folder / 'result.json').read_text())['row']
    (folder / 'result.json').unlink()
    with pytest.raises(UserError, match='no result yet'):
        collect.runs([folder])
    (folder / 'eval').mkdir()
    for step, value in ((50, 3.0), (100, 2.0)):
        (folder / 'eval' / f'step-{step:09d}.json').write_text(
            json.dumps(row | {'step': step, 'kl': value})
        )
    (run,) = collect.runs([folder])
    assert run.row['kl'] == 2.0 and len(run.fingerprint) == 16 and 'step' not in run.settings


def test_quality_on_the_way(tmp_path):
    """Evaluations of several steps are curves, unless the number changed its protocol; those of one
    step are one row."""
    for seed in (0, 1):
        folder = make(tmp_path / f'{seed}', seed=seed)
        (folder / 'result.json').unlink()
        (folder / 'eval').mkdir()
        for step in (50, 100):
            names = {'kl': 'kl[a]', 'modes': f'modes[{step}]'}
            row = {'step': step, 'nfe': 1, 'kl': step / 100 + seed, 'modes': 2, 'protocol': names}
            (folder / 'eval' / f'step-{step:09d}.json').write_text(
                json.dumps(row | {'details': {'versions': {'jax': '1'}}})
            )
        for rules, value in (('edm', 3.0), ('adm', 9.0)):
            row = {
                'step': 100,
                'fid5k': value,
                'protocol': {'fid5k': f'fid5k[{rules}]'},
                'details': {'rules': {'name': rules}},
            }
            (folder / 'eval' / f'step-000000100-{rules}-5k.json').write_text(json.dumps(row))
    found = collect.runs([tmp_path / '0', tmp_path / '1'])
    assert {'kl': 1.0, 'fid5k edm': 3.0, 'fid5k adm': 9.0}.items() <= found[0].row.items()
    assert found[0].row['details']['versions'] == {'jax': '1'}
    (comparison,) = summary.summarise(found)['comparisons']
    curves = {key: by['all runs'] for key, by in comparison['quality'].items()}
    assert (
        set(curves) == {'kl'}
        and curves['kl']['step'] == [50, 100]
        and curves['kl']['mean'] == [1.0, 1.5]
    )
    kind = summary.measure('fid5k edm')
    assert kind.title == 'Fréchet inception distance, of 5k samples, under edm' and kind.sign == -1
    assert any(figure.part == 'quality' for figure in report._figures(comparison, [], True))


def test_another_protocol_neither_splits_a_comparison_nor_is_lost(tmp_path):
    """A trial of a sweep, evaluated again under a published protocol, keeps its result and has one
    measure more."""
    for seed in (0, 1):
        make(tmp_path / 'sweep' / 'trials' / f'{seed}', seed=seed, kl=1.0 + seed)
    folder = tmp_path / 'sweep' / 'trials' / '0'
    (folder / 'eval').mkdir()
    measured = {'fid': 3.0, 'precision': 0.7, 'recall': 0.5}
    details = {
        'rules': {'name': 'edm'},
        'detector': {'sha256': 'ab' * 32},
        'statistics': {'sha256': 'cd' * 32},
    }
    row = {
        'step': 100,
        **measured,
        'protocol': {key: f'{key}[edm]' for key in measured},
        'details': details,
    }
    (folder / 'eval' / 'step-000000100-edm.json').write_text(json.dumps(row))
    # An own evaluation with other samples is another number than the sweep's, which stays.
    (folder / 'eval' / 'step-000000100.json').write_text(
        json.dumps({'step': 100, 'kl': 9.0, 'protocol': {'kl': 'kl[other]'}})
    )
    (comparison,) = summary.summarise(collect.runs([tmp_path / 'sweep']))['comparisons']
    (group,) = comparison['groups']
    assert group['measures']['kl']['values'] == {'0': 1.0, '1': 2.0} and group['measures'][
        'fid edm'
    ]['values'] == {'0': 3.0}
    assert comparison['protocol'] == PROTOCOL | {f'{key} edm': f'{key}[edm]' for key in measured}
    assert any(
        figure.name == 'precision edm against recall edm'
        for figure in report._figures(comparison, [], True)
    )
    text = page.markdown(
        {'paths': [], **summary.summarise(collect.runs([tmp_path / 'sweep']))}, [[]]
    )
    assert 'ab' * 8 in text and 'cd' * 8 in text


def test_what_was_trained_on_ranks_nobody_unless_asked(tmp_path):
    values = {'matched': [0.1, 0.2, 0.12], 'distilled': [1.0, 1.15, 1.04]}
    folder = make_sweep(tmp_path / 'sweep', values)
    for trial in ('0', '1', '2'):
        file = folder / 'trials' / trial / 'result.json'
        known = json.loads(file.read_text())
        known['row'] |= {'trained_on': ['pixel_fd'], 'kl': 0.3}
        file.write_text(json.dumps(known))
    # Evaluated again under a protocol whose detector it was trained on, too.
    row = {'step': 100, 'fid': 3.0, 'protocol': {'fid': 'fid[edm]'}, 'trained_on': ['fid']}
    (folder / 'trials' / '0' / 'eval').mkdir()
    (folder / 'trials' / '0' / 'eval' / 'step-000000100-edm.json').write_text(
        json.dumps(row | {'details': {'rules': {'name': 'edm'}}})
    )

    def comparison(wanted=None):
        return summary.summarise(collect.runs([folder]), wanted)['comparisons'][0]

    found = comparison()
    assert found['measure'] == 'kl' and found['groups'][0]['name'] == 'distilled'
    marks = {
        group['name']: [key for key, of in group['measures'].items() if of['trained_on']]
        for group in found['groups']
    }
    assert marks == {'distilled': [], 'matched': ['pixel_fd', 'fid edm']}
    assert not found['rankings']['kl']['trained_on']
    asked = comparison('pixel_fd')
    assert asked['measure'] == 'pixel_fd' and asked['groups'][0]['name'] == 'matched'
    ranking = asked['rankings']['pixel_fd']
    assert ranking['trained_on'] == ['matched']
    words = ' '.join(ranking['words'])
    assert 'trained on it: matched.' in words and 'no evidence' in words
    assert 'matched (trained on it), of the lowest mean, is separated' in words
    names = {figure.name: figure.caption for figure in report._figures(asked, [], True)}
    assert '†: trained on it' in names['pixel_fd'] and '†' not in names['kl']
    text = page.markdown({'paths': [], **summary.summarise(collect.runs([folder]))}, [[]])
    assert text.count('trained on it |') == 2 and 'matched (trained on it) |' in text


def test_wall_time_goes_on_through_a_resume(tmp_path):
    folder = make(tmp_path / 'a')
    lines = [{'step': step, 'student/loss': 1.0 / step} for step in (10, 20, 30, 40)]
    (folder / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, lines)) + '\n{"step": 5')
    timing = [
        {'step': 10, 'seconds': 5.0},
        {'step': 20, 'seconds': 9.0},
        {'step': 40, 'seconds': 4.0},
    ]
    (folder / 'timing.jsonl').write_text('\n'.join(map(json.dumps, timing)))
    steps, metrics, seconds = collect.logged(collect.runs([folder])[0])
    assert steps == [10, 20, 30, 40] and metrics['student/loss'][1] == 0.05
    assert seconds == pytest.approx([5.0, 9.0, 11.0, 13.0])


def test_logged_statistics_by_hand(tmp_path):
    for seed, norms in enumerate(([1.0, 3.0, 5.0], [2.0, 2.0, 8.0])):
        folder = make(tmp_path / f'{seed}', seed=seed)
        lines = [
            {'step': step, 'student/grad_norm': norm, 'student/skipped': 0.0}
            for step, norm in enumerate(norms)
        ]
        (folder / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    (comparison,) = summary.summarise(collect.runs([tmp_path / '0', tmp_path / '1']))['comparisons']
    logged = comparison['groups'][0]['logged']
    assert logged['grad_norm']['values'] == {'0': 3.0, '1': 4.0}
    assert logged['grad_norm_variance']['values'] == {'0': 4.0, '1': 12.0}
    assert logged['grad_norm_noise']['values'] == {'0': 2.0, '1': 9.0}
    curve = comparison['curves']['student/grad_norm']['all runs']
    assert (
        curve['mean'] == [1.5, 2.5, 6.5]
        and curve['n'] == [2, 2, 2]
        and curve['seconds'] == [None] * 3
    )
    assert 'student/skipped' not in comparison['curves']


def test_names_of_groups_are_short_and_differ(tmp_path):
    make(tmp_path / 'a', 'js', steps=100)
    make(tmp_path / 'b', 'js', steps=200)
    make(tmp_path / 'c', 'pearson', steps=200)
    found = summary.summarise(collect.runs([tmp_path / name for name in 'abc']))
    names = [group['name'] for group in found['comparisons'][0]['groups']]
    assert set(names) == {
        'divergence=js, steps=100',
        'divergence=js, steps=200',
        'divergence=pearson, steps=200',
    }


def test_names_of_groups_of_several_sweeps_over_methods(tmp_path):
    for steps in (100, 200):
        for name in ('sim', 'sid'):
            make(tmp_path / f'{steps}/trials/seed=0,config={name}', name, steps=steps)
    make(tmp_path / '200/trials/config=f_distill,divergence=js,seed=0', 'js', steps=200)
    found = summary.summarise(collect.runs([tmp_path / '100', tmp_path / '200']))
    names = {group['name'] for group in found['comparisons'][0]['groups']}
    assert names == {
        *(f'{name}, steps={steps}' for steps in (100, 200) for name in ('sim', 'sid')),
        'f_distill, js',
    }
    found = summary.summarise(collect.runs([tmp_path / '200']))
    names = {group['name'] for group in found['comparisons'][0]['groups']}
    assert names == {'sim', 'sid', 'f_distill, js'}


@pytest.mark.parametrize(
    ('mean', 'half', 'text'),
    [
        (1.2345, 0.123, '1.23 ± 0.12'),
        (1234.5, 23.0, '1234 ± 23'),
        (0.5, 0.0, '0.5 ± 0'),
        (3.14159, None, '3.142'),
        (None, None, '–'),
        (1e-7, 2e-8, '1.00e-07 ± 2.0e-08'),
    ],
)
def test_numbers_are_rounded_to_their_interval(mean, half, text):
    assert page.interval(mean, half) == text


class Parsed(html.parser.HTMLParser):
    """Every tag with its attributes, the scripts, and whether tags are closed in order."""

    VOID = {'meta', 'link', 'img', 'br'}

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.open, self.text = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.scripts if self.open[-1:] == ['script'] else self.text).append(data)


def check_page(text):
    """That a page needs nothing but itself; returns it parsed."""
    parsed = Parsed(text)
    outward = ('src', 'href', 'srcset', 'action', 'background', 'poster')
    addresses = [
        attributes[name] for _, attributes in parsed.tags for name in outward if name in attributes
    ]
    assert addresses and all(address.startswith('data:') for address in addresses)
    assert {tag for tag, _ in parsed.tags}.isdisjoint(
        {'iframe', 'object', 'embed', 'form', 'base', 'audio', 'video'}
    )
    assert not any(name.startswith('on') for _, attributes in parsed.tags for name in attributes)
    assert 'url(' not in text and '@import' not in text
    assert '//' not in re.sub(
        r'base64,[\w+/=]*', '', ''.join(re.findall(r'<[^>]*>', text)) + page.STYLE + page.SCRIPT
    )
    # One script, and the policy lets no other run.
    (script,) = parsed.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = (
        a['content']
        for tag, a in parsed.tags
        if tag == 'meta' and a.get('http-equiv') == 'Content-Security-Policy'
    )
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    assert all(attributes.get('alt') for tag, attributes in parsed.tags if tag == 'img')
    assert 'prefers-color-scheme:dark' in text and 'width=device-width' in text
    return parsed


EVIL = (
    '<script>alert(1)</script>"\'><img src=x onerror=alert(2)> | '
    '[x](http://evil.example) $\\frac{ `_*'
)


def test_nothing_from_a_config_becomes_markup(tmp_path):
    make(tmp_path / 'a', EVIL, 0)
    make(tmp_path / 'b', 'js', 0)
    make(tmp_path / 'c', 'js', 1, 'failed', error=EVIL)
    written = report.write([tmp_path / name for name in 'abc'], tmp_path / 'out', quiet=True)
    text = written['report.html'].read_text()
    parsed = check_page(text)
    assert '<script>alert' not in text and EVIL in ''.join(parsed.text)
    markdown = written['report.md'].read_text()
    assert not re.search(r'<\w|://|(?<!\\)\]\((?!1-)', markdown)
    for table in re.findall(r'(?:^\|.*\n)+', markdown, re.MULTILINE):
        assert len({len(re.findall(r'(?<!\\)\|', line)) for line in table.splitlines()}) == 1, table
    # No checkpoint, no picture, and that is said.
    notes = json.loads(written['report.json'].read_text())['notes']
    assert any('no picture' in note for note in notes) and any(
        'without a curve' in note for note in notes
    )


def test_tables_can_be_sorted_without_a_mouse(tmp_path):
    make(tmp_path / 'a')
    found = summary.summarise(collect.runs([tmp_path / 'a'])) | {'paths': ['x']}
    parsed = check_page(page.html(found, [[]]))
    heads = sum(attributes.get('scope') == 'col' for _, attributes in parsed.tags)
    assert heads == sum(tag == 'button' for tag, _ in parsed.tags) > 5
    assert 'aria-sort' in page.SCRIPT and 'data-v' in page.SCRIPT
    # A line that ends there returns nothing, and no column is ever sorted.
    assert 'return\n' not in page.SCRIPT
    values = [
        attributes['data-v']
        for tag, attributes in parsed.tags
        if tag == 'td' and 'data-v' in attributes
    ]
    assert values and all(value == '' or np.isfinite(float(value)) for value in values)


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['{0}/nowhere'], 'no run there'),
        (['{0}/a', '--measure=klx'], '--measure=klx: was not measured; did you mean kl?'),
        (['{0}/failed'], 'no result yet in {0}/failed; 1 failed, the first with: it diverged'),
        (['{0}/damaged'], 'damaged'),
        (['{0}/empty'], 'a sweep without trials'),
        (['{0}/a', '--out={0}/file'], 'is no folder'),
        (['{0}/a', '--config.seed=1'], 'report takes the configs kept in the folders'),
        ([], 'PATH'),
    ],
)
def test_bad_input_is_one_line(words, message, tmp_path, capsys):
    make(tmp_path / 'a')
    make(tmp_path / 'failed', status='failed')
    (make(tmp_path / 'damaged') / 'result.json').write_text('{')
    (tmp_path / 'empty' / 'trials').mkdir(parents=True)
    (tmp_path / 'file').write_text('')
    before = sorted(tmp_path.rglob('*'))
    assert cli.main(['report', *(word.format(tmp_path) for word in words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message.format(tmp_path) in line
    assert sorted(tmp_path.rglob('*')) == before


@pytest.fixture(scope='module')
def real(tmp_path_factory):
    """A sweep as it is run, and its report."""
    folder = tmp_path_factory.mktemp('real')
    (folder / 'sweep.py').write_text(
        'from fdistill.config import load\n'
        'def get_config():\n'
        f'    config = load({str(ROOT / "configs" / "pair_exact.py")!r}).unlock()\n'
        '    config.training.steps, config.training.batch_size = 20, 64\n'
        '    config.training.log_every = 5\n'
        '    config.evaluation.samples, config.evaluation.batch_size = 500, 500\n'
        '    config.data = dict(config.data, n=2000)\n'
        '    return config\n'
        'def get_sweep():\n'
        "    return {'method.divergence': ('reverse_kl', 'js'), 'seed': (0, 1)}\n"
    )
    results = sweep.run(str(folder / 'sweep.py'), folder / 'w', quiet=True)
    assert cli.main(['report', str(folder / 'w'), '--measure=kl', '--quiet']) == 0
    return folder / 'w', results


def test_report_of_a_sweep(real):
    workdir, results = real
    found = json.loads((workdir / 'report' / 'report.json').read_text())
    (comparison,) = found['comparisons']
    assert comparison['measure'] == 'kl' and {group['name'] for group in comparison['groups']} == {
        'reverse_kl',
        'js',
    }
    for trial, outcome in results:
        (group,) = (
            group
            for group in comparison['groups']
            if group['name'] == trial.config.method.divergence
        )
        for key, kept in group['measures'].items():
            assert kept['values'][str(trial.config.seed)] == outcome['row'][key]
        assert comparison['protocol'] == outcome['row']['protocol']
        (run,) = (run for run in found['runs'] if run['name'] == trial.name)
        assert run['fingerprint'] == outcome['fingerprint'] == sweep.fingerprint(trial.config)
    assert {'ratio', 'h', 'clipped', 'grad_norm', 'grad_norm_variance'} <= set(
        comparison['groups'][0]['logged']
    )
    assert 'student/grad_norm' in comparison['curves'] and found['versions']['fdistill']


def test_page_of_a_sweep(real):
    file = real[0] / 'report' / 'report.html'
    assert file.stat().st_size < 5e6
    parsed = check_page(file.read_text())
    pictures_shown = [attributes['src'] for tag, attributes in parsed.tags if tag == 'img']
    decoded = [
        base64.b64decode(source.removeprefix('data:image/png;base64,'), validate=True)
        for source in pictures_shown
    ]
    assert all(Image.open(io.BytesIO(data)).format == 'PNG' for data in decoded)
    captions = [attributes['alt'] for tag, attributes in parsed.tags if tag == 'img']
    known = (
        '4000 samples',
        'kl (nats)',
        'weight h(r)',
        'variance of the gradient norm',
        'Coverage of the modes',
    )
    for wanted in ('Distribution of log r', 'Distribution of log h', *known):
        assert any(wanted in caption for caption in captions), wanted
    text = ' '.join(parsed.text)
    for wanted in (
        'not separated',
        'Holm',
        'kl[pixels,500,pair,float,as-train,seed0]',
        'fingerprint',
        'Versions',
    ):
        assert wanted in text, wanted


def test_a_page_has_a_limit(tmp_path, monkeypatch):
    make(tmp_path / 'a')
    whole = report.write([tmp_path / 'a'], quiet=True)['report.html']
    size, count = whole.stat().st_size, whole.read_text().count('<img')
    monkeypatch.setattr(page, 'LIMIT', size - 2000)
    cut = report.write([tmp_path / 'a'], quiet=True)['report.html']
    text = cut.read_text()
    check_page(text)
    assert (
        cut.stat().st_size < size - 2000
        and 0 < text.count('<img') < count
        and 'figures are not in the page' in text
    )
    assert len(list(cut.parent.glob('*.png'))) == count


def test_markdown_has_its_pictures_beside_it(real):
    folder = real[0] / 'report'
    names = re.findall(r'!\[.*?\]\((.*?)\)', (folder / 'report.md').read_text())
    embedded = {
        a['src'] for tag, a in Parsed((folder / 'report.html').read_text()).tags if tag == 'img'
    }
    assert len(names) == len(set(names)) == len(embedded)
    assert {
        'data:image/png;base64,' + base64.b64encode((folder / name).read_bytes()).decode()
        for name in names
    } == embedded


def fake_run(shape, seen):
    """A run whose samples are its noise."""

    def start(key, n):
        return jax.random.normal(key, (n, *shape)), {'label': jnp.zeros(n, jnp.int32)}

    def sample(noise, condition):
        seen.append(np.asarray(noise))
        return jnp.tanh(noise)

    return types.SimpleNamespace(
        shape=shape, start=start, sample=sample, config={'data': {'name': 'any'}}
    )


@pytest.mark.parametrize(
    ('shape', 'groups', 'n'),
    [((8, 8, 1), 3, 25), ((32, 32, 3), 60, 4), ((2,), 3, 4000), ((1,), 3, 4000)],
)
def test_pictures_come_from_the_same_noise_and_fit(shape, groups, n, monkeypatch):
    seen = []
    monkeypatch.setattr(pictures.build, 'from_workdir', lambda folder: fake_run(shape, seen))
    real = types.SimpleNamespace(
        images=np.random.default_rng(0).normal(size=(100, *shape)).astype(np.float32),
        name='other',
        levels=0,
    )
    monkeypatch.setattr(pictures.build, 'load_data', lambda config, split: real)
    (png, shown), again = pictures.draw('a', groups), pictures.draw('b', groups)
    assert (
        again[0] == png
        and shown.startswith(f'{n} samples')
        and np.array_equal(*seen)
        and len(seen[0]) == n
    )
    assert Image.open(io.BytesIO(png)).size[0] > 8 and len(png) * groups < 4e6


def test_copies_are_seen_beside_the_images_they_copy(monkeypatch):
    monkeypatch.setattr(pictures.build, 'from_workdir', lambda folder: fake_run((8, 8, 1), []))
    noise, _ = fake_run((8, 8, 1), []).start(jax.random.key(pictures.SEED), 25)
    copied = np.round((np.tanh(noise) + 1) * 127.5).astype(np.uint8)
    others = np.random.default_rng(0).integers(0, 256, (70, 8, 8, 1), np.uint8)
    real = types.SimpleNamespace(images=np.concatenate([others, copied[::-1]]), levels=255)
    monkeypatch.setattr(pictures.build, 'load_data', lambda config, split: real)
    png, shown = pictures.draw('a', 1)
    picture = np.asarray(Image.open(io.BytesIO(png)), int)
    side = 5 * 10
    assert picture.shape == (side, 2 * side + 4, 3) and 'nearest to each (right)' in shown
    assert (picture[:, side : side + 4] == 255).all()
    assert np.abs(picture[:, :side] - picture[:, side + 4 :]).max() <= 1

    def away(config, split):
        raise UserError('config.data: no folder')

    monkeypatch.setattr(pictures.build, 'load_data', away)
    png, shown = pictures.draw('a', 1)
    assert Image.open(io.BytesIO(png)).size == (side, side) and shown.endswith('data: no folder')


def test_points_in_space_are_not_drawn(monkeypatch):
    monkeypatch.setattr(pictures.build, 'from_workdir', lambda folder: fake_run((5,), []))
    with pytest.raises(UserError, match='5 dimensions'):
        pictures.draw('a', 1)


def test_quality_against_evaluations_where_they_differ(tmp_path):
    for nfe, seed in itertools.product((1, 4), (0, 1)):
        make(tmp_path / f'{nfe}-{seed}', 'js', seed, nfe=nfe, pixel_fd=1 / nfe + seed)
    for folder in (tmp_path / '1-0', tmp_path / '4-0'):
        comparison = summary.summarise(collect.runs([folder]))['comparisons'][0]
        assert not any(
            'evaluations' in figure.name for figure in report._figures(comparison, [], True)
        )
    (comparison,) = summary.summarise(collect.runs(list(tmp_path.iterdir())))['comparisons']
    assert any(
        figure.name == 'pixel_fd against evaluations'
        for figure in report._figures(comparison, [], True)
    )


def test_weights_leave_out_what_has_no_curve():
    r = np.array([0.5, 1.0, 2.0])
    schedules = ['anneal(js, reverse_kl, 10)', 'by_sigma(forward_kl, reverse_kl, 0.5)']
    curves, left_out = summary.weights(['reverse_kl', 'alpha(2)', *schedules, 'none such'], r)
    assert left_out == ['none such']
    wanted = {'reverse_kl': r**0, 'alpha(2)': r**2}
    js, anneal, by_sigma = 2 * r / (r + 1), *schedules
    wanted |= {
        f'{anneal}, first update': js,
        f'{anneal}, half way': (1 + js) / 2,
        f'{anneal}, from update 10 on': r**0,
    }
    wanted |= {f'{by_sigma}, sigma below 0.5': r, f'{by_sigma}, sigma from 0.5 on': r**0}
    assert curves.keys() == wanted.keys()
    for label, (name, h) in curves.items():
        assert label.startswith(name)
        np.testing.assert_allclose(h, wanted[label], rtol=1e-5)


def test_distributions_by_hand(tmp_path):
    for seed in (0, 1):
        folder = make(tmp_path / f'{seed}', seed=seed)
        lines = [
            {
                'step': step,
                'edges': [-1, 0, 1],
                'student/log_h': [[step, step], [3 * (seed + 1), 3 * (1 - seed)]],
            }
            for step in (25, 50, 75, 100)
        ]
        (folder / 'histograms.jsonl').write_text(
            '\n'.join(map(json.dumps, lines)) + '\n{"step": 12'
        )
    (comparison,) = summary.summarise(collect.runs([tmp_path / '0', tmp_path / '1']))['comparisons']
    found = comparison['groups'][0]['distributions']['student/log_h']
    # Of the second half: 75 and 100. Shares of the second level: (1/2, 1/2) and (1, 0).
    assert (
        found['edges'] == [-1, 0, 1]
        and found['n'] == 2
        and found['mean'] == [[0.5, 0.5], [0.75, 0.25]]
    )
    assert found['half'][0] == [0.0, 0.0] and found['half'][1][0] == pytest.approx(
        stats.t.ppf(0.975, 1) * 0.25
    )
    names = [figure.name for figure in report._figures(comparison, [], True)]
    assert 'distribution student/log_h' in names and 'distribution student/log_ratio' not in names


def test_a_report_takes_the_figures_of_the_one_before_with_it(tmp_path):
    for seed in (0, 1):
        make(tmp_path / 'a', seed=0) if not seed else make(tmp_path / 'b', 'pearson', within=0.9)
        written = report.write(
            [tmp_path / name for name in 'ab'[: seed + 1]], tmp_path / 'out', quiet=True
        )
        if not seed:
            (tmp_path / 'out' / 'mine.png').write_bytes(b'mine')
            (tmp_path / 'out' / '1-99-mine.png').write_bytes(b'mine')
    kept = {path.name for path in (tmp_path / 'out').glob('*.png')}
    assert kept == {
        *json.loads(written['report.json'].read_text())['figures'],
        'mine.png',
        '1-99-mine.png',
    }


def test_a_limit_on_the_groups_of_a_figure_is_said(tmp_path):
    for index in range(3):
        make(tmp_path / f'{index}', f'alpha({index})')
    (comparison,) = summary.summarise(collect.runs(list(tmp_path.iterdir())))['comparisons']
    notes = []
    report._figures(comparison, notes, True)
    assert not any('first' in note for note in notes)
    comparison['groups'] *= 20
    report._figures(comparison, notes, True)
    assert 'figures show the first 40 of 60 groups; the tables and report.json have all.' in notes


def test_plots_take_many_groups_with_odd_names():
    names = [f'_${index}^{{' + 'x' * index for index in range(50)]
    found = {'mean': 1.0, 'half': None, 'values': {'0': 1.0}}
    rows = [(name, index, found) for index, name in enumerate(names)]
    for png in (
        plots.by_group(rows, 'a', 'b'),
        plots.plane([(*row, found) for row in rows], 'a', 'b'),
    ):
        assert Image.open(io.BytesIO(png)).format == 'PNG' and len(png) < 300_000
