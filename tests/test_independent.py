"""Scores relative to real data: by hand, and what they see that one classifier does not."""

import numpy as np
import pytest

from fdistill.data.sources import Source, load, quantise, to_float
from fdistill.evaluation import features, independent
from fdistill.evaluation.evaluate import evaluate, reference, reference_rows
from fdistill.evaluation.frechet import Moments, frechet_distance
from fdistill.evaluation.sliced import sliced_wasserstein

# Classifiers take 1500 steps.
pytestmark = pytest.mark.optimised


def moments_of(x):
    return Moments.empty(x.shape[1]).update(x)


@pytest.mark.parametrize('n, count', [(355, 2000), (10, 10), (7, 50), (20, 59), (1, 3)])
def test_parts_are_disjoint_and_have_the_classes_of_the_whole(n, count):
    labels = np.sort(np.random.default_rng(0).integers(0, 4, count))
    made = independent.parts(labels, n)
    assert len(made) == count // n and all(len(part) == n for part in made)
    assert len(np.unique(np.concatenate(made))) == n * (count // n)
    whole = np.bincount(labels, minlength=4) / count
    for part in made:
        assert np.abs(np.bincount(labels[part], minlength=4) - n * whole).max() <= 2


def encoder(train, held_out, labels):
    return independent.encoder(
        features.Features('by hand', lambda x: x, None), moments_of(train), train, held_out, labels
    )


def test_a_ratio_by_hand():
    rng = np.random.default_rng(0)
    scale = np.array([1.0, 10, 0])
    train, held_out, samples = (rng.normal(size=(n, 3)) * scale for n in (300, 40, 120))
    made = encoder(train, held_out, np.zeros(40, int))
    np.testing.assert_allclose(made.scale, [*np.std(train, axis=0, ddof=1)[:2], 1])

    def distances(x):
        a, b = moments_of(x), moments_of(train)
        return np.array(
            [
                frechet_distance(a.mean, a.covariance, b.mean, b.covariance),
                sliced_wasserstein(x / made.scale, train / made.scale),
            ]
        )

    found = independent.relative(made, samples, np.zeros(120, int))
    known = np.mean([distances(samples[i::3]) for i in range(3)], axis=0) / distances(held_out)
    assert list(found.values()) == pytest.approx(known, rel=1e-12)
    assert list(found) == ['fd_ratio', 'sliced_wasserstein'] == list(independent.MEASURES)
    # Fewer samples than held-out images: those are taken in parts.
    few = independent.relative(made, samples[:20], np.zeros(20, int))
    known = distances(samples[:20]) / np.mean([distances(held_out[i::2]) for i in (0, 1)], axis=0)
    assert list(few.values()) == pytest.approx(known, rel=1e-12)
    assert independent.relative(made, held_out, np.zeros(40, int)) == pytest.approx(
        {'fd_ratio': 1, 'sliced_wasserstein': 1}
    )
    # Held-out images that are those of training leave nothing to divide by.
    assert (
        independent.relative(encoder(train, train, np.zeros(300, int)), samples, np.zeros(120))[
            'sliced_wasserstein'
        ]
        > 1
    )


def test_as_good_as_real_is_one_whatever_the_numbers():
    rng = np.random.default_rng(0)
    train, labels = rng.normal(size=(5000, 6)), np.arange(2000) % 5
    ratios = {count: [] for count in (60, 120, 600)}
    for _ in range(30):
        made = encoder(train, rng.normal(size=(120, 6)), labels[:120])
        for count, of in ratios.items():
            found = independent.relative(made, rng.normal(size=(count, 6)), labels[:count])
            of.append([*found.values()])
    for of in ratios.values():
        sem = np.std(of, axis=0) / 30**0.5
        # The mean of a quotient is a little above 1.
        assert (np.abs(np.mean(of, axis=0) - 1) < 4 * sem + 0.05).all()


@pytest.fixture(scope='module')
def digits():
    return reference(load('digits'), load('digits', 'held_out'), progress=False)


def row(digits, images):
    index = iter(range(0, len(images), 500))

    def generate(noise, condition):
        start = next(index)
        return images[start : start + 500]

    return evaluate(
        generate,
        digits.train,
        digits.held_out,
        nfe=1,
        samples=len(images),
        against=digits,
        progress=False,
    )


NAMES = ('digits-clf-s2', 'digits-turns-clf', 'digits-random')


def test_real_digits(digits):
    rows = reference_rows(digits.train, digits.held_out, against=digits)
    assert rows['held-out']['fd_ratio'] == pytest.approx(1, rel=1e-6)
    assert rows['held-out']['sliced_wasserstein'] == pytest.approx(1, rel=1e-6)
    assert 0.5 < rows['train']['fd_ratio'] < 1 and 0.6 < rows['train']['sliced_wasserstein'] < 1
    told = rows['train']['details']['encoders']
    assert tuple(told) == NAMES
    for key in ('fd_ratio', 'sliced_wasserstein'):
        assert rows['train'][key] == pytest.approx(np.mean([of[key] for of in told.values()]))
    name = ','.join(['+'.join(NAMES), '2k', 'train', 'q16', 'balanced', 'seed0'])
    assert rows['train']['protocol']['fd_ratio'] == f'fd_ratio[{name}]'
    assert rows['train']['protocol']['sliced_wasserstein'] == f'sliced_wasserstein2-128[{name}]'


def test_faults_that_samples_may_have_are_seen(digits):
    rng = np.random.default_rng(0)
    members = [np.flatnonzero(digits.train.labels == label) for label in range(10)]
    real = to_float(digits.train.images[[rng.choice(members[i % 10]) for i in range(1000)]], 16)
    blurred = sum(np.roll(real, by, axis) for by in (-1, 1) for axis in (1, 2)) / 8 + real / 2
    missing = np.where((np.arange(1000) % 10 == 3)[:, None, None, None], np.roll(real, 5, 0), real)
    good = row(digits, real)
    for images in (blurred, missing):
        bad = row(digits, images)
        for key in ('fd_ratio', 'sliced_wasserstein'):
            assert bad[key] > 1.3 * good[key], key


def test_texture_that_a_classifier_overlooks(digits):
    # A faint checkerboard, as of a bad upsampling: to a classifier a digit like any other.
    rng = np.random.default_rng(0)
    members = [np.flatnonzero(digits.train.labels == label) for label in range(10)]
    real = to_float(digits.train.images[[rng.choice(members[i % 10]) for i in range(1000)]], 16)
    board = np.indices((8, 8)).sum(axis=0)[..., None] % 2 - 0.5
    rough = quantise(real + 0.125 * board, 16)
    good, bad = (row(digits, images)['details']['encoders'] for images in (real, rough))
    seen, overlooked = (
        bad[name]['sliced_wasserstein'] / good[name]['sliced_wasserstein']
        for name in ('digits-random', 'digits-clf-s2')
    )
    assert seen > 2 and overlooked < 1.5


@pytest.mark.parametrize('name, marked', [('digits-random', True), ('digits-clf', False)])
def test_one_encoder_that_was_trained_on_marks_the_mean(digits, name, marked):
    found = evaluate(
        lambda noise, condition: noise,
        digits.train,
        digits.held_out,
        nfe=1,
        samples=50,
        batch_size=50,
        against=digits,
        progress=False,
        trained_on=(name,),
    )
    keys = {'fd_ratio', 'sliced_wasserstein'}
    assert set(found['trained_on']) == (
        keys
        if marked
        else {
            'fd_held_out',
            'fd_train',
            'precision',
            'recall',
            'density',
            'coverage',
            'accuracy',
        }
    )


def test_images_are_turned_each_in_one_way():
    rng = np.random.default_rng(0)
    for shape, kinds in (((6, 6), 3), ((6, 8), 2)):
        images = rng.integers(0, 256, (30, *shape, 1), np.uint8)
        made = features._turned(Source(images, np.zeros(30, np.int32), 1, 255, 'own'))
        assert (
            made.num_classes == kinds and np.bincount(made.labels).tolist() == [30 // kinds] * kinds
        )
        assert made.name == 'own-turns' and not made.given
        for label, turned, image in zip(made.labels, made.images, images):
            np.testing.assert_array_equal(turned, np.rot90(image, label * (4 - kinds)))


def test_names_are_told_without_making_them():
    source = load('digits')
    for name, seed in (('turns', 0), ('turns', 1), ('random', 0), ('random', 4), ('pixels', 0)):
        options = {'seed': seed} if name != 'pixels' else {}
        options |= {'steps': 1} if name == 'turns' else {}
        made = features.get(name, source, progress=False, **options)
        assert made.name == features.NAMES[name](source, seed)
    assert features.NAMES['turns'](source) == 'digits-turns-clf'
    assert features.NAMES['random'](source, 4) == 'digits-random-s4'
