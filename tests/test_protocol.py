import jax.numpy as jnp
import numpy as np
import pytest

from fdistill.data.sources import to_float, to_levels
from fdistill.errors import UserError
from fdistill.evaluation import protocol
from fdistill.evaluation.protocol import (
    HEADLINES,
    LABELS,
    PROTOCOLS,
    QUANTISATIONS,
    SCALINGS,
    Rules,
    headline,
    labels,
    number,
    prepare,
    quantise_to_uint8,
)
from fdistill.evaluation.resize import RESIZERS
from fdistill.weights.detectors import DETECTORS

EDM, OWN = PROTOCOLS['edm'], PROTOCOLS['own-features']
CITABLE = [rules for rules in PROTOCOLS.values() if rules.detector != 'own']


def float32_near(edges, steps=3):
    """The floats next to each edge, `steps` below and above it."""
    down = up = np.asarray(edges, np.float32)
    near = [up]
    for _ in range(steps):
        down, up = np.nextafter(down, np.float32(-2)), np.nextafter(up, np.float32(2))
        near += [down, up]
    return np.stack(near)


def test_every_protocol_is_made_of_known_parts():
    assert set(PROTOCOLS) >= {
        'edm',
        'edm2',
        'adm',
        'clean-fid',
        'clean-fid-legacy-tf',
        'pytorch-fid',
        'own-features',
    }
    for name, rules in PROTOCOLS.items():
        assert rules.name == name and protocol.get(name) is rules
        assert (
            rules.detector in {*DETECTORS, 'own'}
            and rules.resize in RESIZERS
            and rules.scaling in SCALINGS
        )
        assert (
            rules.quantisation in QUANTISATIONS
            and rules.labels in LABELS
            and rules.headline in HEADLINES
        )
        assert all(last - first + 1 == rules.samples for first, last in rules.seeds)


@pytest.mark.parametrize(
    'name, facts',
    [
        ('edm', ('inception', 'tf1', 'half_up', 'tf1', 50000, 'random', 'min', 3)),
        ('edm2', ('inception', 'tf1', 'half_up', 'tf1', 50000, 'random', 'min', 3)),
        (
            'edm2-dinov2',
            ('dinov2', 'torch_bicubic_antialias', 'half_up', 'imagenet', 50000, 'random', 'min', 3),
        ),
        ('adm', ('inception', 'tf1', 'truncate', 'tf1', 50000, 'random', 'mean', 1)),
        ('clean-fid', ('inception', 'pil_bicubic', 'half_up', 'tf1', 50000, 'balanced', 'mean', 1)),
        (
            'clean-fid-legacy-tf',
            ('inception', 'tf1', 'half_up', 'tf1', 50000, 'balanced', 'mean', 1),
        ),
        ('pytorch-fid', ('inception', 'torch', 'half_up', 'signed', 50000, 'balanced', 'mean', 1)),
    ],
)
def test_the_published_facts(name, facts):
    rules = PROTOCOLS[name]
    assert facts == (
        rules.detector,
        rules.resize,
        rules.quantisation,
        rules.scaling,
        rules.samples,
        rules.labels,
        rules.headline,
        len(rules.seeds),
    )
    assert rules.size == {'inception': 299, 'dinov2': 224}[rules.detector]


def test_unknown_names_are_told_what_they_may_have_been():
    with pytest.raises(UserError, match='did you mean edm'):
        protocol.get('edm3')
    with pytest.raises(UserError, match='did you mean half_up'):
        quantise_to_uint8(np.zeros(1), 'half-up')


def test_half_up_is_exact_at_every_edge():
    # As EDM computes it, in float64; both sides of the 255 edges, and what lies outside.
    edges = (np.arange(257) - 128) / 127.5
    x = float32_near(edges)
    expected = np.clip(np.floor(x.astype(np.float64) * 127.5 + 128), 0, 255)
    found = quantise_to_uint8(x, 'half_up')
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found, to_levels(x, 255))
    for k in [*range(1, 128), *range(129, 256)]:
        below, above = x[:, k][x[:, k] < edges[k]], x[:, k][x[:, k] >= edges[k]]
        assert len(below) and len(above)
        assert set(quantise_to_uint8(below, 'half_up')) == {k - 1} and set(
            quantise_to_uint8(above, 'half_up')
        ) == {k}
    # The edge at zero, where floats lie so close that 1 or 128 swallows them, in float64 too.
    assert list(quantise_to_uint8(np.float32([-1e-14, 0, 1e-14]), 'half_up')) == [127, 128, 128]


def test_half_up_differs_from_float32_by_its_rounding_only():
    # EDM2 computes it in float32. That is the one way in which ours is not its: some floats just
    # below an edge go up.
    x = float32_near((np.arange(1, 256) - 128) / 127.5)
    single = np.floor(x * np.float32(127.5) + np.float32(128)).astype(int)
    differ = single != quantise_to_uint8(x, 'half_up')
    exact = x.astype(np.float64) * 127.5 + 128
    assert differ.any() and (single[differ] == np.ceil(exact[differ])).all()
    assert (single - exact)[differ].max() < np.spacing(np.float32(128))


def test_truncation_is_that_of_float32_at_every_edge():
    edges = np.arange(256) / 127.5 - 1
    x = float32_near(edges)
    expected = ((x + np.float32(1)) * np.float32(127.5)).clip(0, 255).astype(np.uint8)
    found = quantise_to_uint8(x, 'truncate')
    np.testing.assert_array_equal(found, expected)
    # Beyond what rounding decides the mathematics does.
    ulps = 2.0**-22
    np.testing.assert_array_equal(quantise_to_uint8(edges + ulps, 'truncate'), np.arange(256))
    np.testing.assert_array_equal(quantise_to_uint8(edges[1:] - ulps, 'truncate'), np.arange(255))


def test_truncation_darkens_by_half_a_level_and_rounding_does_not():
    x = np.random.default_rng(0).uniform(-1, 1, 400_000).astype(np.float32)
    grey = (x.astype(np.float64) + 1) * 127.5
    assert (quantise_to_uint8(x, 'half_up') - grey).mean() == pytest.approx(0, abs=2e-3)
    assert (quantise_to_uint8(x, 'truncate') - grey).mean() == pytest.approx(-0.5, abs=2e-3)


def test_half_up_brings_grey_levels_back_and_truncation_loses_some():
    grey = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(quantise_to_uint8(to_float(grey, 255), 'half_up'), grey)
    lost = grey.astype(int) - quantise_to_uint8(to_float(grey, 255), 'truncate')
    assert set(lost) == {0, 1} and lost.sum() == 63


@pytest.mark.parametrize('rule', QUANTISATIONS)
def test_quantisation_clips_and_keeps_what_is_stored(rule):
    assert list(quantise_to_uint8(np.float32([-9, -1, 1, 9]), rule)) == [0, 0, 255, 255]
    stored = np.arange(6, dtype=np.uint8)
    np.testing.assert_array_equal(quantise_to_uint8(stored, rule), stored)


def test_none_does_not_round():
    x = np.float32([-0.5, 0.001])
    found = quantise_to_uint8(x, 'none')
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, (x + 1) * 127.5, rtol=1e-6)


@pytest.mark.parametrize('rules', CITABLE, ids=lambda rules: rules.name)
@pytest.mark.parametrize('channels', [1, 3])
def test_prepare_gives_what_the_detector_takes(rules, channels):
    grey = np.random.RandomState(0).randint(0, 256, (2, 8, 8, channels)).astype(np.uint8)
    found = np.asarray(prepare(rules, grey))
    assert found.shape == (2, rules.size, rules.size, 3) and found.dtype == np.float32
    black, white = (
        np.asarray(prepare(rules, np.full((1, 8, 8, 1), level, np.uint8)))[0, 0, 0]
        for level in (0, 255)
    )
    expected = {
        'tf1': (-1, 127 / 128),
        'signed': (-1, 1),
        'imagenet': (
            (-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225),
            (0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225),
        ),
    }[rules.scaling]
    np.testing.assert_allclose(black, np.broadcast_to(expected[0], 3), rtol=1e-5)
    np.testing.assert_allclose(white, np.broadcast_to(expected[1], 3), rtol=1e-5)


def test_prepare_leaves_own_images_alone():
    grey = np.arange(32, dtype=np.uint8).reshape(1, 4, 8, 1)
    np.testing.assert_array_equal(prepare(OWN, grey), grey)


def test_random_labels_are_splitmix64():
    # The first outputs of SplitMix64 with seed 0, as in the tests of its other implementations.
    outputs = [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
        0xF88BB8A8724C81EC,
        0x1B39896A51A8749B,
    ]
    expected = [(output >> 32) * 1000 >> 32 for output in outputs]
    assert list(labels(EDM, np.arange(5), 1000)) == expected


@pytest.mark.parametrize('rules', PROTOCOLS.values(), ids=lambda rules: rules.name)
def test_labels_depend_on_the_index_alone(rules):
    whole = labels(rules, np.arange(1000), 10)
    assert whole.dtype == np.int32 and set(whole) == set(range(10))
    batches = [
        labels(rules, np.arange(start, min(start + 37, 1000)), 10) for start in range(0, 1000, 37)
    ]
    np.testing.assert_array_equal(np.concatenate(batches), whole)
    order = np.random.RandomState(0).permutation(1000)
    np.testing.assert_array_equal(labels(rules, order, 10), whole[order])
    np.testing.assert_array_equal(labels(rules, jnp.arange(1000), 10), whole)
    assert not labels(rules, np.arange(5), 1).any()


def test_random_labels_are_uniform_and_unlike_in_each_range():
    drawn = [labels(EDM, np.arange(first, last + 1), 10) for first, last in EDM.seeds]
    for classes in drawn:
        counts = np.bincount(classes, minlength=10)
        # Chi squared with 9 degrees of freedom: 30 is passed by chance once in 2000.
        assert 1 < (np.square(counts - 5000) / 5000).sum() < 30
    for one in range(3):
        assert np.mean(drawn[one] == drawn[one - 1]) == pytest.approx(0.1, abs=0.01)
    assert np.corrcoef(drawn[0][1:], drawn[0][:-1])[0, 1] == pytest.approx(0, abs=0.02)


def test_balanced_labels_go_round():
    np.testing.assert_array_equal(
        labels(PROTOCOLS['clean-fid'], np.arange(7), 3), [0, 1, 2, 0, 1, 2, 0]
    )


def test_names_tell_the_count():
    assert number(EDM, 'fid', 0, 50000, 'cifar10') == 'fid[edm,50k,cifar10,seed0-49999]'
    assert number(EDM, 'fid', 100000, 50000) == 'fid[edm,50k,seed100000-149999]'
    assert number(EDM, 'fid', 0, 5000, 'cifar10') == 'fid5k[edm,5k,cifar10,seed0-4999]'
    assert number(EDM, 'fid', 0, 49999) == 'fid49999[edm,49999,seed0-49998]'
    assert number(OWN, 'fd', 0, 2000, 'held-out') == 'fd[own-features,2k,held-out,seed0-1999]'
    names = {
        number(rules, 'fid', first, count, reference)
        for rules in PROTOCOLS.values()
        for first in (0, 7)
        for count in (1000, 50000)
        for reference in (None, 'a', 'b')
    }
    assert len(names) == len(PROTOCOLS) * 12


@pytest.mark.parametrize('first, count', [(-1, 5), (0, 0)])
def test_names_need_samples(first, count):
    with pytest.raises(ValueError, match='at least one'):
        number(EDM, 'fid', first, count)


@pytest.mark.parametrize('rules', CITABLE, ids=lambda rules: rules.name)
def test_no_other_count_takes_the_name_of_the_protocols(rules):
    assert number(rules, 'fid', 0, 50000).startswith('fid[')
    for count in (5000, 49999, 50001):
        assert not number(rules, 'fid', 0, count).startswith('fid[')


def test_headlines():
    values = dict(zip(EDM.seeds, (2.0, 1.5, 2.5)))
    assert headline(EDM, 'fid', values, 'cifar10') == ('fid[edm,3x50k,cifar10,min]', 1.5)
    name, value = headline(EDM._replace(headline='mean'), 'fid', values)
    assert name == 'fid[edm,3x50k,mean]' and value == 2
    assert headline(PROTOCOLS['adm'], 'fid', {(0, 49999): 3.0}, 'in64') == (
        'fid[adm,50k,in64,seed0-49999]',
        3.0,
    )


@pytest.mark.parametrize(
    'rules, seeds',
    [
        (EDM, EDM.seeds[:2]),
        (EDM, ()),
        (EDM, ((0, 4999), *EDM.seeds[1:])),
        (EDM, (*EDM.seeds, (150000, 199999))),
        (OWN, ((0, 1999),)),
    ],
    ids=str,
)
def test_no_headline_of_some_seeds(rules, seeds):
    with pytest.raises(UserError) as caught:
        headline(rules, 'fid', dict.fromkeys(seeds, 1.0))
    assert '\n' not in str(caught.value) and rules.name in str(caught.value)


def test_rules_are_data():
    assert isinstance(hash(EDM), int) and Rules(*EDM) == EDM
