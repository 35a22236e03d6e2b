"""Every loss as a pure function of denoisers' outputs, one value per sample: a method takes the
mean over its batch.

Notation: x = G(z) is a student sample, x_t = x + sigma eps, d_teacher = D_T(x_t, sigma) and
d_fake = D_F(x_t, sigma). Tweedie gives s_p - s_q = (D_T - D_F)/sigma^2. A mean over the n elements
of a sample stands where the papers sum: the two differ by the factor n, which matters only against
gradient clipping, Adam's epsilon and other loss terms.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from fdistill import divergences
from fdistill.diffusion.denoiser import column

EPSILON = 1e-6  # FastGen's guard of every normalisation
LEVELS = 5  # of noise, told apart in a histogram


def _elements(x):
    return tuple(range(1, x.ndim))


def denoising(denoised: jax.Array, clean: jax.Array, weight: jax.Array) -> jax.Array:
    """Denoising score matching, weight(sigma) mean |D(x_t) - x|^2 (EDM, equation 2), [B].

    Its minimiser is E[x | x_t] for every positive weight.

    Args:
      denoised, clean: [B,...].
      weight: [B].
    """
    return weight * jnp.mean((denoised - clean) ** 2, axis=_elements(clean))


def dmd_weight(x: jax.Array, d_teacher: jax.Array) -> jax.Array:
    """1 / mean |x - D_T| per sample (DMD2, equation 4 of arXiv 2405.14867), no gradient, [B]."""
    return stop_gradient(1 / (jnp.mean(jnp.abs(x - d_teacher), axis=_elements(x)) + EPSILON))


# Weights of the denoiser gap D_F - D_T in the student's gradient: (x, d_teacher, sigma) -> [B].
WEIGHTS = {
    'dmd': lambda x, d_teacher, sigma: dmd_weight(x, d_teacher),  # DMD2, f-distill, SiD
    # Diff-Instruct's code: sigma^2 times the score gap.
    'unit': lambda x, d_teacher, sigma: jnp.ones_like(sigma),
    'eps': lambda x, d_teacher, sigma: 1 / sigma,  # the gap between noise predictions
    # The gap between scores: the exact gradient of D_f at sigma.
    'score': lambda x, d_teacher, sigma: sigma**-2,
    # The square of the gap between velocities of a flow, t = sigma/(1+sigma) (RealUID).
    'flow': lambda x, d_teacher, sigma: (1 + 1 / sigma) ** 2,
}


def score_gap(
    x: jax.Array, d_teacher: jax.Array, d_fake: jax.Array, weight: jax.Array
) -> jax.Array:
    """Family A (VSD, Diff-Instruct, DMD2, f-distill): a loss whose gradient in x is
    weight (D_F - D_T)/n, [B].

    With weight = h(r)/sigma^2 and the mean over the batch times n this is the gradient of D_f(p||q)
    (f-distill, Theorem 1). Everything but x is a constant. The value, mean((weight (D_F -
    D_T))^2)/2, is that of the usual pseudo-target loss |x - sg(x - g)|^2/2; here the gradient does
    not lose g's digits by subtracting it from x.

    Args:
      x: student samples [B,...].
      d_teacher, d_fake: [B,...].
      weight: [B].
    """
    g = stop_gradient(column(weight, x) * (d_fake - d_teacher))
    return jnp.mean(0.5 * g**2 + g * (x - stop_gradient(x)), axis=_elements(x))


def squared_l2(y: jax.Array) -> jax.Array:
    """d(y) = |y|^2, [B] for y[B,...]."""
    return jnp.sum(y**2, axis=_elements(y))


def l2(y: jax.Array) -> jax.Array:
    """d(y) = |y|, the norm over all elements of a sample, [B] for y[B,...]; its gradient is 0 at
    y = 0."""
    square = squared_l2(y)
    there = square > 0
    return jnp.where(there, jnp.sqrt(jnp.where(there, square, 1)), 0)


def pseudo_huber(c: float) -> Callable[[jax.Array], jax.Array]:
    """d(y) = sqrt(|y|^2 + c^2) - c with the norm over all elements of a sample (SIM, arXiv
    2410.16794)."""
    if not c > 0:
        raise ValueError(
            f'pseudo_huber(c={c}): c must be > 0, e.g. 0.1; on the scale on which y is given'
        )
    return lambda y: jnp.sqrt(jnp.sum(y**2, axis=_elements(y)) + c**2) - c


def perceptual(made: tuple[jax.Array, ...], wanted: tuple[jax.Array, ...]) -> jax.Array:
    """sum_l |phi_l(x) - phi_l(y)|^2, a distance of two images in a frozen network's layers, [B].

    With the features of `networks.lpips` it is LPIPS (arXiv 1801.03924, equation 1), whose means
    over positions and weights of channels are within phi. Gradient goes through both; a method
    stops it on a target that depends on what it trains.

    Args:
      made, wanted: features of x and of y, of a `networks.Encoder`; each [B, d_l].
    """
    return sum(squared_l2(x - y) for x, y in zip(made, wanted, strict=True))


def implicit(
    x: jax.Array,
    d_teacher: jax.Array,
    d_fake: jax.Array,
    scale: jax.Array,
    distance: Callable[[jax.Array], jax.Array],
    total_gradient: bool = False,
) -> jax.Array:
    """Score implicit matching (SIM, arXiv 2410.16794, Theorem 3.1), [B].

        L = -d'(y)^T (D_F - x) scale,    y = scale (D_F - D_T)

    With scale = 1/sigma^2, y = s_F - s_p, and the gradient of E[L] is that of
    E_{sg(q_t)} d(s_q - s_p) at the optimal fake score. Another scale(sigma) means
    d(sigma^2 scale(sigma) y) instead.

    Family B: x, D_T and D_F must all carry gradient (the parameters of the two networks are frozen
    by not being differentiated). A stop_gradient on any of them is an error; on the teacher alone
    it even reverses the direction. The value has mean zero at the optimal fake score, whatever the
    student's quality: do not monitor it.

    Args:
      x, d_teacher, d_fake: [B,...].
      scale: [B], a function of sigma only.
      distance: d, from [B,...] to [B].
      total_gradient: add d(y), which makes the gradient that of E_{q_t} d(s_q - s_p), sampling
        included.
    """
    scale = column(scale, x)
    y = scale * (d_fake - d_teacher)
    d_prime = jax.vjp(distance, y)[1](jnp.ones(x.shape[0], x.dtype))[0]
    loss = -jnp.sum(d_prime * scale * (d_fake - x), axis=_elements(x))
    return loss + distance(y) if total_gradient else loss


def sid(
    x: jax.Array, d_teacher: jax.Array, d_fake: jax.Array, weight: jax.Array, alpha: float
) -> jax.Array:
    """Score identity distillation (SiD, arXiv 2404.04057, equation 23), [B].

        L = weight mean(delta (D_F - x) + (1 - alpha) delta^2),    delta = D_T - D_F

    which equals delta ((D_T - x) - alpha delta). alpha = 1/2 is half the exact gradient of the
    Fisher divergence (for weight = n/sigma^4), alpha = 1 half of SIM with squared l2, and 1.2 the
    paper's choice on CIFAR-10. The value may be negative. x, D_T and D_F carry gradient, the weight
    does not.

    Args:
      x, d_teacher, d_fake: [B,...].
      weight: [B].
      alpha: any number.
    """
    delta = d_teacher - d_fake
    return weight * jnp.mean(delta * (d_fake - x) + (1 - alpha) * delta**2, axis=_elements(x))


def rewarded(
    reward: Callable[[jax.Array], jax.Array], x: jax.Array, normalised: bool = False
) -> tuple[jax.Array, jax.Array]:
    """(A loss whose gradient in x is -g with g = dr/dx, or where it is normalised

        -g / (n rms(g)),    rms(g) = sqrt(mean g^2),

    so that each element of a sample moves by 1 in the root mean square, over n as in `score_gap`;
    the rewards r), both [B].

    Args:
      reward: x[B,...] -> r[B], of each sample by itself.
      x: student samples.
      normalised: how hard a sample is pulled does not depend on how steep the reward is there.
    """
    if not normalised:
        r = reward(x)
        return -r, r
    r, pull = jax.vjp(reward, stop_gradient(x))
    (g,) = pull(jnp.ones_like(r))
    size = jnp.sqrt(jnp.mean(g**2, axis=_elements(x), keepdims=True))
    # Where the reward is flat there is no direction.
    g = stop_gradient(jnp.where(size > 0, g / jnp.where(size > 0, size, 1), 0))
    return -jnp.mean(g * x, axis=_elements(x)), stop_gradient(r)


def mapo(
    winner: jax.Array, loser: jax.Array, beta: float, scale: float, temperature: float
) -> jax.Array:
    """Margin-aware preference optimisation, MaPO (arXiv 2406.06424 and code), [B].

        L = l_w - beta log sigmoid(temperature (phi(l_w) - phi(l_l))),
        phi(l) = scale l / (exp(scale l) - 1)

    phi falls from 1, so that the margin grows as the winner's error falls below the loser's. It is
    saturated at a difference of some 20/temperature; the rest is fine-tuning on winners.

    Args:
      winner, loser: mean squared errors of the noise prediction, [B], at the same level and noise.
      beta, scale, temperature: 0.1, 0.5 and 1000 in the code; the last two depend on the scale of
        the errors.
    """

    def phi(error):
        # 1 - scale error/2 + ..., whose quotient is 0/0 at 0.
        u = jnp.minimum(scale * error, 80)  # phi is 0 there, and exp is still a number.
        small = u < 1e-4
        return jnp.where(small, 1 - u / 2, u / jnp.expm1(jnp.where(small, 1, u)))

    margin = phi(winner) - phi(loser)
    return winner - beta * jax.nn.log_sigmoid(temperature * margin)


def f_dpo(
    rho: Callable[[jax.Array], jax.Array], winner: jax.Array, loser: jax.Array, beta: float
) -> jax.Array:
    """Direct preference optimisation under an f-divergence (arXiv 2309.16240), [B].

        L = -log sigmoid(beta (rho(r_l) - rho(r_w))),    r = reference/model

    rho(r) = r f'(r) - f(r) (`divergences.reward`): -beta rho is the reward whose best model, at the
    price beta of D_f(reference || model), is this one. For reverse KL rho = log r, and this is DPO.

    Args:
      rho: r[B] -> [B], rising.
      winner, loser: r of either, > 0, [B].
      beta: > 0.
    """
    return -jax.nn.log_sigmoid(beta * (rho(loser) - rho(winner)))


def along(
    ratio: jax.Array,
    x: jax.Array,
    d_teacher: jax.Array,
    d_fake: jax.Array,
    sigma: jax.Array,
) -> jax.Array:
    """r = p/q with the gradient that the scores give it, r (s_p - s_q) dx, in place of that of the
    discriminator which r was read from, [B].

    At the optimal critic the two are the same. No derivative of the discriminator is needed.

    Args:
      ratio: [B], as of `ratio_from_logits`.
      x: student samples [B,...], which carry gradient.
      d_teacher, d_fake: [B,...].
      sigma: [B].
    """
    gap = stop_gradient((d_teacher - d_fake) / column(sigma, x) ** 2)
    moved = jnp.sum(gap * (x - stop_gradient(x)), axis=_elements(x))
    return stop_gradient(ratio) * (1 + moved)


def uni_instruct(
    x: jax.Array,
    d_teacher: jax.Array,
    d_fake: jax.Array,
    weight: jax.Array,
    ratio: jax.Array,
    h: Callable[[jax.Array], jax.Array],
    alpha: float = 0.5,
) -> jax.Array:
    """Uni-Instruct (arXiv 2505.20755): score matching weighted by any f-divergence, [B].

        L = weight mean(h(r) delta (D_F - x) + (1 - alpha) (h(r) - r h'(r)) delta^2),
        delta = D_T - D_F

    With weight = n/sigma^4 and alpha = 1/2 its gradient is that of E_q[h(r) |s_p - s_q|^2]/2, which
    is -d D_f(p||q)/d sigma^2: the integral over sigma^2, all noise levels, is D_f of the clean
    distributions (Theorem 3.1 there; the de Bruijn identity). As r moves with x too (`along`), that
    is SIM's gradient, weighted by h, and along the score gap Diff-Instruct's, weighted by
    -r^2 h'' |s_p - s_q|^2/2. Reverse KL, h = 1, is `sid`; as there, alpha = 1 leaves out the
    gradient of sampling.

    Args:
      x, d_teacher, d_fake: [B,...], which carry gradient, as in `sid`.
      weight: [B], without gradient.
      ratio: r = p/q, [B], of `along`.
      h: weight of the divergence, elementwise in r.
      alpha: any number.
    """
    delta = d_teacher - d_fake
    at_r, slope = jax.jvp(h, (ratio,), (jnp.ones_like(ratio),))
    of_sampling = (1 - alpha) * column(at_r - ratio * slope, x) * delta**2
    return weight * jnp.mean(
        column(at_r, x) * delta * (d_fake - x) + of_sampling, axis=_elements(x)
    )


def still(x_t: jax.Array, sigma: jax.Array) -> jax.Array:
    """x_t/(1 + sigma), which a flow leaves where it is: the D at which its velocity is 0."""
    return x_t / column(1 + sigma, x_t)


def scaled(x: jax.Array, origin: jax.Array, scale: float) -> jax.Array:
    """origin + scale (x - origin)."""
    return origin + scale * (x - origin)


def real_uid(
    x: jax.Array,
    x_t: jax.Array,
    sigma: jax.Array,
    d_teacher: jax.Array,
    d_fake: jax.Array,
    weight: jax.Array,
    alpha: float,
    beta: float,
) -> jax.Array:
    """Universal inverse distillation with real data (RealUID, arXiv 2509.22459 and its code), [B].

        L = alpha weight mean(|D_T - y|^2 - |D_F - y|^2),    y = o + (beta/alpha) (x - o)

    o = `still(x_t)`: in the paper the velocities v = (x_t - D)/sigma - D of a flow are compared
    with beta/alpha times x - eps, and a velocity is 0 at o. For weight = (1 + 1/sigma)^2 ('flow')
    L is the paper's of t = sigma/(1 + sigma), but for its sum. It equals 2 alpha times `sid` with
    y for x and SiD's alpha at 1/2, so that alpha = beta = 1 is the exact Fisher gradient.

    At the optimal fake score (`critic.Real` with weights (alpha, 1 - alpha), scales beta/alpha and
    (1 - beta)/(1 - alpha)) its gradient is that of E_m weight mean|D_F - D_T|^2, m = alpha q + (1 -
    alpha) p, where m (D_F - D_T) = beta q (D_q - D_T) + (1 - beta) p (D_p - D_T) + (beta - alpha)
    (q - p) (D_T - o): 0 at q = p, if the teacher is exact.

    Args:
      x, x_t, d_teacher, d_fake: [B,...]; all carry gradient.
      sigma, weight: [B].
      alpha, beta: > 0.
    """
    y = scaled(x, still(x_t, sigma), beta / alpha)
    return 2 * alpha * sid(y, d_teacher, d_fake, weight, 0.5)


def gan_discriminator(fake_logits: jax.Array, real_logits: jax.Array) -> jax.Array:
    """mean softplus(logit_fake) + mean softplus(-logit_real), [B] from [B, heads].

    Its optimum is logit = log(p_real/q_fake).
    """
    return jnp.mean(jax.nn.softplus(fake_logits) + jax.nn.softplus(-real_logits), axis=-1)


def gan_generator(fake_logits: jax.Array) -> jax.Array:
    """Non-saturating, mean softplus(-logit_fake), [B]. At the optimal discriminator its gradient is
    that of the softened reverse KL, h = 1/(1+r)."""
    return jnp.mean(jax.nn.softplus(-fake_logits), axis=-1)


class GanLoss(NamedTuple):
    """Both sides of an adversarial game, (fake_logits, real_logits) -> [B] from [B, heads]; a
    sample of the one and a sample of the other with the same index are a pair."""

    discriminator: Callable[[jax.Array, jax.Array], jax.Array]
    generator: Callable[[jax.Array, jax.Array], jax.Array]


# What each is at its optimal discriminator:
#   softplus      l = log r; the generator's gradient is that of the softened reverse KL.
#   hinge         relu(1 + l_fake) + relu(1 - l_real) and -l_fake (ADD, arXiv 2311.17042): l =
#                 sign(p - q), and the gradient of -E_q l is that of twice the total variation.
#   relativistic  softplus of the difference of a pair (arXiv 1807.00734): l = log r up to a
#                 constant, and h(r) = E_{y ~ p} r(y)/(r(y) + r).
GANS = {
    'softplus': GanLoss(gan_discriminator, lambda fake, real: gan_generator(fake)),
    'hinge': GanLoss(
        lambda fake, real: jnp.mean(jax.nn.relu(1 + fake) + jax.nn.relu(1 - real), axis=-1),
        lambda fake, real: -jnp.mean(fake, axis=-1),
    ),
    'relativistic': GanLoss(
        lambda fake, real: jnp.mean(jax.nn.softplus(fake - real), axis=-1),
        lambda fake, real: jnp.mean(jax.nn.softplus(real - fake), axis=-1),
    ),
}


def in_proportion(x: jax.Array, gradient: jax.Array, square: jax.Array) -> jax.Array:
    """A loss whose gradient in x is `gradient` over its usual size, so that it weighs against
    others as one whose derivatives in the N elements of a batch are about 1/N; its value is 0
    (gradient normalisation of adversarial flow models, arXiv 2511.22475 and code).

        sum(sg(gradient/sqrt(square)) (x - sg(x)))

    Args:
      x, gradient: [B,...].
      square: running mean of N |gradient|^2, > 0.
    """
    scaled = stop_gradient(gradient / (jnp.sqrt(square) + 1e-8))
    return jnp.sum(scaled * (x - stop_gradient(x)))


def ratio_from_logits(
    logits: jax.Array, *, logit_clip: float = 10.0, low: float = 0.1, high: float = 20.0
) -> jax.Array:
    """r = p/q = exp(mean over heads of the logit), logit clamped, then r clipped (f-distill's
    code); no gradient, [B]."""
    logit = jnp.clip(jnp.mean(logits, axis=-1), -logit_clip, logit_clip)
    return stop_gradient(jnp.clip(jnp.exp(logit), low, high))


def mean_in_bins(
    values: jax.Array, position: jax.Array, bins: jax.Array, decay: float
) -> tuple[jax.Array, jax.Array]:
    """Running means of a statistic by noise level: (that of each sample's bin [B], bins), no
    gradient.

        bins <- decay bins + (1 - decay) mean of the values in the bin, where the batch has any

    The means are over the global batch: under jit with a sharded batch XLA reduces across devices.

    Args:
      values: [B].
      position: [B] in [0, 1], the noise law's cdf(sigma). Bins are even in it, so in log sigma or
        the Karras index, and not in sigma, where 64 % of EDM's samples would share the first of
        ten.
      bins: [bins], running means, initially 1.
      decay: in [0, 1).
    """
    count = bins.shape[0]
    index = jnp.clip((position * count).astype(jnp.int32), 0, count - 1)
    member = jax.nn.one_hot(index, count, dtype=values.dtype)
    number = jnp.sum(member, axis=0)
    mean = member.T @ values / jnp.maximum(number, 1)
    bins = stop_gradient(jnp.where(number > 0, decay * bins + (1 - decay) * mean, bins))
    return member @ bins, bins


def normalise_ratio(
    ratio: jax.Array, position: jax.Array, bins: jax.Array, decay: float
) -> tuple[jax.Array, jax.Array]:
    """First stage of f-distill: divide r by its mean in a bin of noise levels, since E_q[r] = 1 at
    each sigma.

    Args:
      ratio: [B].
      position, bins, decay: see `mean_in_bins`. A bin that holds one sample would normalise it to
        exactly 1 at decay 0; use >= .9 on small batches.

    Returns:
      (ratio, bins), no gradient.
    """
    mean, bins = mean_in_bins(ratio, position, bins, decay)
    return stop_gradient(ratio / (mean + EPSILON)), bins


def normalise_weight(
    h: Callable[[jax.Array], jax.Array], ratio: jax.Array
) -> Callable[[jax.Array], jax.Array]:
    """Second stage of f-distill: h / mean(h) over the global batch, which undoes the saturation of
    a divergence, that is an h that is small for all samples.

    Args:
      h: elementwise in r.
      ratio: r of the batch, [B], without gradient.

    Returns:
      The function of r.
    """
    mean = jnp.mean(h(ratio)) + EPSILON
    return lambda r: h(r) / mean


def histogram(values: jax.Array, position: jax.Array) -> jax.Array:
    """How often values fall into the cells of `divergences.EDGES`, by noise level: counts float32
    [LEVELS, cells], no gradient.

    Args:
      values: log r or log h, [B]; -inf counts as the lowest cell.
      position: [B] in [0, 1], the noise law's cdf(sigma): the levels are equally frequent.
    """
    edges = jnp.asarray(divergences.EDGES, values.dtype)
    cells = len(edges) - 1
    cell = jnp.clip(jnp.searchsorted(edges, values, side='right') - 1, 0, cells - 1)
    level = jnp.clip((position * LEVELS).astype(jnp.int32), 0, LEVELS - 1)
    counts = jnp.zeros((LEVELS, cells), jnp.float32)
    return counts.at[level, cell].add(1.0)
