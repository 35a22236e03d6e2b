"""What a run says of its divergence and of the lag of its critic, beside the exact numbers.

    python experiments/critic_lag.py [--steps=600] [--json FILE]

The student is one Gaussian and the teacher two, so that the student's own score is known; its fake
score is a network. By how often the student is trained and how fast its critic learns. About a
CPU-minute.
"""

import argparse
import sys

import jax
import jax.numpy as jnp

from fdistill.build.teachers import mixture_of
from fdistill.diffusion import denoiser as denoisers
from fdistill.diffusion import noise
from fdistill.files import disk, process
from fdistill.methods.critic import divergence, nats, perturb
from fdistill.methods.distribution import diff_instruct
from fdistill.methods.exact import critic_lag, law_of
from fdistill.methods.method import Tracking
from fdistill.networks.gaussian import gaussian
from fdistill.networks.mlp import mlp
from fdistill.training import optim
from fdistill.training.loop import read_metrics
from fdistill.training.state import empty_metrics, init_state, with_metrics
from fdistill.training.step import ema_decay, make_step

BATCH, EXACT, LAW = 256, 100_000, noise.loguniform(0.1, 2.0)
# Name: a student's update in how many of the critic's, learning rate of the critic.
TRIALS = {'as usual': (1, 2e-3), 'five to one': (5, 2e-3), 'slow': (1, 1e-4), 'fast': (1, 2e-2)}


def trial(student_every, rate, steps, every):
    """Rows {step, kl, noise, seen, exact, lag} of a run."""
    mixture = mixture_of('pair')
    student = denoisers.precondition(gaussian(scale=1.0, offset=0.5), sigma_data=1.0)
    fake = denoisers.precondition(mlp(width=64, blocks=2, embedding=32), sigma_data=1.0)
    tracking = Tracking(from_teacher=False, student_every=student_every)
    laws = {'student_law': LAW, 'critic_law': LAW}
    method = diff_instruct(student, mixture.denoiser(), fake, **laws, tracking=tracking)
    optimizers = {
        'student': optim.adam(steps=steps, learning_rate=2e-2, b1=0.5, b2=0.99),
        'critic': optim.adam(steps=steps, learning_rate=rate, b1=0.5, b2=0.99),
    }
    update = make_step(method, optimizers, ema_decay(1e3, BATCH))
    key, batch = jax.random.key(0), {'x': jnp.zeros((BATCH, 1)), 'condition': {}}
    state = init_state(method, optimizers, key, batch, {})
    state = with_metrics(state, update, {}, batch, key)
    step = jax.jit(
        lambda state, roles: update(state, {}, batch, key, roles), static_argnames='roles'
    )

    @jax.jit
    def exactly(params, key):
        """The divergence by the exact score of the student, and its critic's lag."""
        key_z, key_t = jax.random.split(key)
        many = batch | {'x': jnp.zeros((EXACT, 1))}
        x = method.generator.draw(key_z, params['student'], many)
        x_t, sigma = perturb(key_t, x, LAW)
        own = law_of(method.generator, params['student'], x)
        run = denoisers.bind(fake, params['critic']['fake_score'], {})
        found = divergence(x, mixture.denoise(x_t, sigma), own.denoise(x_t, sigma), sigma, LAW)
        return found['kl_seen'], critic_lag(run, own, x_t, sigma, nats(sigma, LAW))

    rows, between = [], []
    for done in range(1, steps + 1):
        state = step(state, method.cycle(done - 1))
        if done % (every // 10) == 0:
            between.append(jax.device_get(exactly(state.params, jax.random.fold_in(key, done))))
        if done % every == 0:
            logged = read_metrics(state)
            exact, lag = (sum(of) / len(between) for of in zip(*between))
            rows.append(
                {
                    'step': done,
                    'kl': logged['student/kl'],
                    'noise': logged['student/kl_noise'],
                    'seen': logged['student/kl_seen'],
                    'exact': float(exact),
                    'lag': float(lag),
                }
            )
            state, between = state._replace(metrics=empty_metrics(state.metrics)), []
    return rows


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--steps', type=int, default=600, help='default: %(default)s')
    parser.add_argument('--json', metavar='FILE', help='also write the numbers there')
    options = parser.parse_args(words)
    every = max(options.steps // 6 // 10 * 10, 10)
    found = {name: trial(*given, options.steps, every) for name, given in TRIALS.items()}
    head = ('step', 'KL exact', 'kl', '+-', 'KL - lag', 'seen', 'bound', 'lag')
    for name, rows in found.items():
        print(f'{name}: student every {TRIALS[name][0]}, critic {TRIALS[name][1]:g}')
        print(''.join(f'{word:>10}' for word in head))
        for row in rows:
            bound = max(row['kl'] + row['seen'], 0) ** 2 / (4 * row['seen'])
            shown = row['exact'], row['kl'], row['noise'], row['exact'] - row['lag']
            shown = *shown, row['seen'], bound, row['lag']
            print(f'{row["step"]:10}' + ''.join(f'{value:10.4f}' for value in shown))
    if options.json:
        disk.write_json(options.json, found)
    return 0


if __name__ == '__main__':
    process.prepare()
    sys.exit(main())
