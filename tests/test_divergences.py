"""h derived from f against its closed form, and what `get` refuses."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdistill import divergences
from fdistill.divergences import DIVERGENCES, FAMILIES, PROBE, get, is_constant, weight

# h(r) = r^2 f''(r) by hand. Every registered divergence needs its row here.
CLOSED_FORMS = {
    'reverse_kl': np.ones_like,
    'softened_reverse_kl': lambda r: 1 / (r + 1),
    'js': lambda r: r / (r + 1),
    'squared_hellinger': lambda r: np.sqrt(r) / 4,
    'forward_kl': lambda r: r,
    'jeffreys': lambda r: r + 1,
    'neyman': lambda r: 2 / r,
    'pearson': lambda r: 2 * r**2,
    'softened_forward_kl': lambda r: r**2 / (r + 1),
    'le_cam': lambda r: 8 * r**2 / (r + 1) ** 3,
    'smooth_tv': lambda r: r**2 * 0.125 / ((r - 1) ** 2 + 0.25) ** 1.5,
}

# The same for families: name -> parameter -> h, and members to try.
FAMILY_FORMS = {
    'alpha': lambda a: lambda r: r**a,
    'skew_js': lambda pi: lambda r: pi * (1 - pi) * r / (pi * r + 1 - pi),
    'smooth_tv': lambda e: lambda r: r**2 * 0.5 * e**2 / ((r - 1) ** 2 + e**2) ** 1.5,
}
MEMBERS = {
    'alpha': (-1.5, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0),
    'skew_js': (0.05, 0.25, 0.5, 0.75, 0.95),
    'smooth_tv': (0.1, 0.5, 1.0, 3.0),
}

# Symmetric in p and q; the others are not.
SYMMETRIC = {'js', 'squared_hellinger', 'jeffreys', 'le_cam'}

AT = (0.1, 0.5, 1, 2, 10)
# h at those r, to the digits of the specification.
TABLE = {
    'reverse_kl': (1, 1, 1, 1, 1),
    'softened_reverse_kl': (0.909091, 0.666667, 0.5, 0.333333, 0.0909091),
    'js': (0.0909091, 0.333333, 0.5, 0.666667, 0.909091),
    'squared_hellinger': (0.0790569, 0.176777, 0.25, 0.353553, 0.790569),
    'forward_kl': (0.1, 0.5, 1, 2, 10),
    'jeffreys': (1.1, 1.5, 2, 3, 11),
    'neyman': (20, 4, 2, 1, 0.2),
    'pearson': (0.02, 0.5, 2, 8, 200),
    'alpha(0.5)': (0.316228, 0.707107, 1, 1.41421, 3.16228),
    'alpha(1.5)': (0.0316228, 0.353553, 1, 2.82843, 31.6228),
    'alpha(-0.5)': (3.16228, 1.41421, 1, 0.707107, 0.316228),
    'alpha(2)': (0.01, 0.25, 1, 4, 100),
    'softened_forward_kl': (0.00909091, 0.166667, 0.5, 1.33333, 9.09091),
    'le_cam': (0.0601052, 0.592593, 1, 1.18519, 0.601052),
    'smooth_tv(1)': (0.00205330, 0.0894427, 0.5, 0.707107, 0.0673360),
    'smooth_tv(0.1)': (6.7336e-5, 0.0094287, 5, 0.019704, 6.8574e-4),
    'skew_js(0.25)': (0.024194, 0.107143, 0.1875, 0.3, 0.576923),
    'skew_js(0.75)': (0.057692, 0.15, 0.1875, 0.214286, 0.241935),
}

# f at r = 3 from the specification's formulas: f itself, not only its second derivative, has to be
# right.
F_AT_3 = {
    'reverse_kl': -math.log(3),
    'softened_reverse_kl': 4 * math.log(2 / 3),
    'js': 3 * math.log(3) - 4 * math.log(2),
    'squared_hellinger': 1 - math.sqrt(3),
    'forward_kl': 3 * math.log(3),
    'jeffreys': 2 * math.log(3),
    'neyman': 4 / 3,
    'pearson': 4,
    'softened_forward_kl': 4 * math.log(2),
    'le_cam': 1,
    'smooth_tv': (math.sqrt(4.25) - 0.5) / 2,
    'alpha(0.5)': 4 * (2 - math.sqrt(3)),
    'alpha(2)': 2,
    'skew_js(0.25)': 0.75 * math.log(3) - 1.5 * math.log(1.5),
}

ALL = [(name, CLOSED_FORMS.get(name)) for name in DIVERGENCES] + [
    (f'{family}({parameter})', FAMILY_FORMS[family](parameter))
    for family, parameters in MEMBERS.items()
    for parameter in parameters
]


@pytest.mark.parametrize(('name', 'closed_form'), ALL, ids=[name for name, _ in ALL])
def test_weight_is_the_closed_form(name, closed_form):
    assert closed_form is not None, f'add the h of {name!r} to CLOSED_FORMS'
    h = weight(get(name))
    for low, high, tolerance in ((1e-3, 1e3, 1e-3), (0.1, 20, 1e-4)):
        r = np.geomspace(low, high, 1201).astype(np.float32)
        derived = h(jnp.asarray(r))
        assert derived.dtype == jnp.float32
        np.testing.assert_allclose(derived, closed_form(r.astype(np.float64)), rtol=tolerance)


@pytest.mark.parametrize(('name', 'closed_form'), ALL, ids=[name for name, _ in ALL])
def test_weight_in_float64(name, closed_form, x64):
    # 1e-12 but for what cancellation at r = 1e3 costs.
    np.testing.assert_allclose(weight(get(name))(PROBE), closed_form(PROBE), rtol=1e-9)


def test_every_family_has_closed_forms():
    assert FAMILIES.keys() == FAMILY_FORMS.keys() == MEMBERS.keys()


@pytest.mark.parametrize('name', TABLE)
def test_weight_at_fixed_ratios(name, x64):
    np.testing.assert_allclose(weight(get(name))(jnp.asarray(AT)), TABLE[name], rtol=3e-5)


def test_table_covers_every_registered_divergence():
    assert DIVERGENCES.keys() - {'smooth_tv'} <= TABLE.keys()
    assert DIVERGENCES.keys() <= F_AT_3.keys()


@pytest.mark.parametrize('name', F_AT_3)
def test_generator_itself(name, x64):
    assert float(get(name)(3.0)) == pytest.approx(F_AT_3[name], rel=1e-12)


@pytest.mark.parametrize(('name', 'closed_form'), ALL, ids=[name for name, _ in ALL])
def test_zero_at_one_and_convex(name, closed_form, x64):
    f, at = get(name), jnp.asarray(PROBE)
    assert float(f(1.0)) == pytest.approx(0, abs=1e-15)
    assert np.all(np.asarray(weight(f)(at)) > 0)
    # Convex as a function, whatever its derivatives claim: below every chord.
    chord = (f(at[:-2]) * (at[2:] - at[1:-1]) + f(at[2:]) * (at[1:-1] - at[:-2])) / (
        at[2:] - at[:-2]
    )
    assert np.all(np.asarray(chord - f(at[1:-1])) > 0)


@pytest.mark.parametrize('name', CLOSED_FORMS)
def test_symmetric_exactly_where_it_should_be(name, x64):
    """D_f(q||p) has the weight r h(1/r)."""
    h = weight(get(name))
    swapped = PROBE * h(1 / PROBE)
    assert bool(np.allclose(h(PROBE), swapped, rtol=1e-9)) == (name in SYMMETRIC)


@pytest.mark.parametrize(
    ('name', 'swapped'),
    [
        ('reverse_kl', 'forward_kl'),
        ('neyman', 'pearson'),
        ('softened_reverse_kl', 'softened_forward_kl'),
        ('alpha(1.5)', 'alpha(-0.5)'),
        ('skew_js(0.3)', 'skew_js(0.7)'),
    ],
)
def test_swapped_arguments(name, swapped, x64):
    np.testing.assert_allclose(
        weight(get(swapped))(PROBE), PROBE * weight(get(name))(1 / PROBE), rtol=1e-9
    )


def test_sums_of_divergences(x64):
    h = {name: np.asarray(weight(f)(PROBE)) for name, f in DIVERGENCES.items()}
    np.testing.assert_allclose(h['js'] + h['softened_reverse_kl'], h['reverse_kl'], rtol=1e-9)
    np.testing.assert_allclose(h['reverse_kl'] + h['forward_kl'], h['jeffreys'], rtol=1e-9)
    np.testing.assert_allclose(h['forward_kl'] - h['js'], h['softened_forward_kl'], rtol=1e-9)


@pytest.mark.parametrize('name', ['js', 'skew_js(0.25)', 'smooth_tv'])
def test_weight_is_elementwise_under_jit_and_vmap(name):
    h, r = weight(get(name)), jnp.geomspace(0.1, 10, 6).reshape(2, 3)
    np.testing.assert_allclose(jax.jit(h)(r), h(r), rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(h)(r), h(r), rtol=1e-5)
    assert h(2.0).shape == ()


def test_own_generator():
    f = get(lambda r: (r - 1) ** 4 / 12 + 0.5 * (r - 1) ** 2)
    np.testing.assert_allclose(
        weight(f)(jnp.asarray([0.5, 1.0, 3.0])), [0.3125, 1.0, 45.0], rtol=1e-5
    )


def test_float32_constant_in_own_generator_is_forgiven():
    assert get(lambda r: r * jnp.log(r) + jnp.float32(3e-8)) is not None


def test_names_may_have_spaces():
    np.testing.assert_allclose(weight(get(' alpha( 2 ) '))(3.0), 9.0, rtol=1e-6)


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ('revrese_kl', "did you mean 'reverse_kl'"),
        ('forwardkl', "did you mean 'forward_kl'"),
        ('alhpa(0.5)', "did you mean 'alpha"),
        ('zzzzzz', 'Known: reverse_kl'),
        ('alpha(half)', "'half' is not a number"),
        ('alpha()', "'' is not a number"),
        ('alpha(nan)', 'must be a finite number'),
        ('alpha(inf)', 'must be a finite number'),
        ('skew_js(0)', 'strictly between 0 and 1'),
        ('skew_js(1.5)', 'strictly between 0 and 1'),
        ('skew_js(nan)', 'strictly between 0 and 1'),
        ('smooth_tv(0)', 'must be positive'),
        ('smooth_tv(-1)', 'must be positive'),
        ('smooth_tv(nan)', 'must be positive'),
        (3, 'unknown divergence'),
        (lambda r: r**2, r'f\(1\) = 1'),
        (lambda r: jnp.log(r), 'not convex'),
        (lambda r: 1 - r**2, 'not convex'),
        (lambda r: (r - 1) ** 3, 'not convex'),
        (lambda r: 3 * (r - 1), 'no gradient'),
        (lambda r: jnp.abs(r - 1), 'no gradient'),
        (lambda r: jnp.sqrt(r - 0.5) * 0 + (r - 1) ** 2, 'not finite at r = 0.001'),
        (lambda r: math.log(r), 'one jax array'),
        (lambda p, q: p - q, 'one jax array'),
    ],
)
def test_refused(given, message):
    with pytest.raises(ValueError, match=message):
        get(given)


def test_constant_weight_needs_no_ratio():
    assert {name for name, f in DIVERGENCES.items() if is_constant(f)} == {'reverse_kl'}
    assert is_constant(get('alpha(0)'))
    assert is_constant(lambda r: -3 * jnp.log(r) + r - 1)
    assert not is_constant(get('alpha(0.01)'))


# Combinations.


def test_mix_is_the_sum_on_one_scale(x64):
    r = jnp.asarray([0.1, 1.0, 7.0])
    h = divergences.weight(divergences.get('mix(squared_hellinger, pearson, 0.25)'))
    np.testing.assert_allclose(h(r), 0.75 * jnp.sqrt(r) + 0.25 * r**2, rtol=1e-9)
    assert float(h(jnp.asarray(1.0))) == pytest.approx(1)
    assert divergences.weighting('mix(reverse_kl, reverse_kl, 0.5)').constant
    assert not divergences.weighting('mix(reverse_kl, js, 0.5)').constant


def test_anneal_goes_from_the_one_to_the_other(x64):
    r, sigma = jnp.asarray([0.1, 1.0, 7.0]), jnp.ones(3)
    h = divergences.weighting('anneal(js, alpha(2.0), 100)')
    assert h.stepwise and not h.constant
    for step, share in ((0, 0), (25, 0.25), (100, 1), (1000, 1)):
        expected = (1 - share) * 2 * r / (r + 1) + share * r**2
        np.testing.assert_allclose(h.h(r, sigma, jnp.asarray(step)), expected, rtol=1e-9)


def test_by_sigma_is_one_below_and_the_other_above(x64):
    r, sigma = jnp.full(4, 3.0), jnp.asarray([0.1, 0.99, 1.0, 5.0])
    h = divergences.weighting('by_sigma(reverse_kl, forward_kl, 1.0)')
    assert not h.stepwise and not h.constant
    np.testing.assert_allclose(h.h(r, sigma, 0), [1, 1, 3, 3], rtol=1e-9)


@pytest.mark.parametrize('name', divergences.DIVERGENCES)
def test_weighting_of_a_divergence_is_its_weight(name):
    r, h = jnp.geomspace(0.01, 100, 9), divergences.weighting(name)
    np.testing.assert_array_equal(h.h(r, None, None), divergences.weight(divergences.get(name))(r))
    assert h.constant == (name == 'reverse_kl') and not h.stepwise


@pytest.mark.parametrize(
    ('spec', 'message'),
    [
        ('mix(js, reverse_kl)', 'give two divergences and a number, as mix'),
        ('mix(js, reverse_kl, half)', 'give two divergences and a number'),
        ('mix(js, reverse_kl, 1.5)', r'share must lie in \[0, 1\]'),
        ('anneal(js, reverse_kl, 0)', 'at least one step'),
        ('by_sigma(js, reverse_kl, -1)', 'sigma must be > 0'),
        ('anneal(jss, reverse_kl, 10)', "unknown divergence 'jss'"),
        ('aneal(js, reverse_kl, 10)', 'Known: .*anneal'),
    ],
)
def test_bad_combinations(spec, message):
    with pytest.raises(ValueError, match=message):
        divergences.weighting(spec)


def test_a_schedule_is_no_divergence():
    with pytest.raises(ValueError, match='is a schedule of weights and has no generator'):
        divergences.get('anneal(js, reverse_kl, 10)')
