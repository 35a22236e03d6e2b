"""Losses of the codes of rectified flow, 2-RF++, SlimFlow, FastGen's KD and progressive
distillation for toy networks, and how they were recorded.

`python tests/reflow_goldens.py RECTIFIED RFPP SLIMFLOW FASTGEN GOOGLE` writes
data/reflow_goldens.npz. The folders are clones of github.com/gnobitab/RectifiedFlow (5a1fd4d),
sangyun884/rfpp (f7b10a5), yuanzhi-zhu/SlimFlow (96d8b25) and NVlabs/FastGen (34f30e8), and the
folder above the package diffusion_distillation of google-research/google-research (1d4d2f1 of
dpm.py).
Recorded with torch 2.13.0+cpu, scipy 1.17.1 and jax 0.10.2, in float64. Those codes draw what they
draw out of DRAWN; where they cut time at 1e-3, as their distillations do, it is cut at 1e-9 here.
"""

import ast
import pathlib
import sys
import types

import numpy as np

GOLDENS = pathlib.Path(__file__).parent / 'data' / 'reflow_goldens.npz'
SHAPE = (5, 3, 4, 4)
EPS = 1e-9
STEPS, WARMUP = 30, 100
WEIGHTS = ('constant', 'snr', 'snr_trunc', 'v_mse')


def networks(np):
    """(student, teacher), velocities of (x_t, t) with t = 1 at the data; of numpy, jax or torch."""
    return (
        lambda x, t: 0.7 * np.tanh(x) - 0.2 * x + 0.3 * t,
        lambda x, t: 0.5 * np.sin(x) + 0.4 * t * x,
    )


def denoisers(np):
    """(student, teacher), x0 of (z, log SNR) of progressive distillation."""
    return (
        lambda z, logsnr: 0.8 * np.tanh(z) + 0.1 * np.tanh(logsnr),
        lambda z, logsnr: 0.6 * np.sin(z) + 0.2 * np.tanh(logsnr / 2) * z,
    )


def features(np, x):
    """What the toy in the place of LPIPS sees."""
    return x**2, np.sin(2 * x)


def drawn():
    """{name: array} of what is random."""
    rng = np.random.default_rng(0)
    normal = {name: rng.standard_normal(SHAPE) for name in ('x', 'z', 'fresh')}
    return normal | {'t': rng.uniform(0.05, 0.95, SHAPE[0]), 'k': np.arange(5) % 4}


def _column(t):
    return t.view(-1, 1, 1, 1)


def _lpips(x, y):
    import torch

    pairs = zip(features(torch, x), features(torch, y))
    return sum(((a - b) ** 2).sum((1, 2, 3)) for a, b in pairs).view(-1, 1, 1, 1)


def _stub(**modules):
    for name, values in modules.items():
        made = types.ModuleType(name.replace('__', '.'))
        vars(made).update(values)
        sys.modules[name.replace('__', '.')] = made


def _module(path):
    made = types.ModuleType(pathlib.Path(path).stem)
    exec(compile(pathlib.Path(path).read_text(), str(path), 'exec'), vars(made))
    return made


def _rectified(folder, told, velocity):
    import torch

    _stub(
        models={},
        models__utils={'get_model_fn': lambda model, train: model},
        sde_lib={'RectifiedFlow': object},
    )
    sys.modules['models'].utils = sys.modules['models.utils']
    code = _module(f'{folder}/ImageGeneration/losses.py')
    model = lambda x, label: velocity(x, _column(label / 999))  # noqa: E731
    found = {}
    for name, schedule, loss, eps in (
        ('reflow', 'uniform', 'l2', 0),
        ('steps', 4, 'l2', 1e-3),
        ('distil_l2', 't0', 'l2', EPS),
        ('distil_lpips', 't0', 'lpips', EPS),
        ('distil_both', 't0', 'lpips+l2', EPS),
    ):
        sde = types.SimpleNamespace(
            T=1, reflow_flag=True, reflow_t_schedule=schedule, reflow_loss=loss, lpips_model=_lpips
        )
        torch.rand = lambda *a, **k: told['t']
        torch.randint = lambda *a, **k: told['k']
        of = code.get_rectified_flow_loss_fn(sde, True, eps=eps)
        found[name] = of(model, (told['z'], told['x']))
    return found


def _rfpp(folder, told, velocity):
    import torch

    text = pathlib.Path(f'{folder}/train.py').read_text()
    tree = ast.parse(text)

    def part(name):
        return next(
            ast.unparse(node)
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and node.name == name
        )

    lines = [line.strip() for line in text.splitlines()]
    first = lines.index('zt = (1-t).view(-1, 1, 1, 1) * x + t.view(-1, 1, 1, 1) * z')
    last = lines.index('pred_x = zt - pred * t.view(-1, 1, 1, 1)')
    start = lines.index('loss_huber = loss_func_huber(pred, target)')
    stop = start + lines[start:].index('loss = (1-(t).squeeze()) * loss_huber + loss_lp')
    body = text.splitlines()[start : stop + 1]
    indent = len(body[0]) - len(body[0].lstrip())
    made = {
        'torch': torch,
        'x': told['x'],
        'z': told['z'],
        't': 1 - told['t'],
        'c': None,
        # Noise is at t = 1 there, and velocities lead to it.
        'model': lambda x, t, c: -velocity(x, _column(1 - t)),
        'loss_func_lpips': lambda x, y: _lpips(x, y).view(-1),
    }
    exec(part('loss_func_huber'), made)
    exec('\n'.join(line for line in lines[first : last + 1] if not line.startswith('#')), made)
    # Images stay as they are: the toy in the place of LPIPS knows no size.
    made |= {'pred_x_up': made['pred_x'], 'x_up': made['x']}
    found = {}
    for name, divided in (('divided', True), ('plain', False)):
        made['arg'] = types.SimpleNamespace(lpips_divt=divided)
        exec('\n'.join(line[indent:] for line in body), made)
        found[name] = made['loss'].mean()
    code = _module(f'{folder}/t_dist.py')
    np.random.seed(0)
    times = code.sample_t(code.ExponentialPDF(a=0, b=1, name='ExponentialPDF'), 1000, 4)
    return found | {'times': np.sort(times.double())}


def _slimflow(folder, told, velocity, teacher):
    import torch

    _stub(models={}, models__ema={'ExponentialMovingAverage': object})
    losses = _module(f'{folder}/reflow/losses.py')
    _stub(reflow={}, reflow__losses=vars(losses))
    flow = _module(f'{folder}/reflow/reflow.py').RectifiedFlow.__new__
    kind = _module(f'{folder}/reflow/reflow.py').RectifiedFlow
    found = {}

    def of(network):
        return lambda x, label: network(x, _column(label / 999))

    def made(loss, randomness='fix_0', eps=EPS):
        self = flow(kind)
        training = types.SimpleNamespace(weight_schedule='uniform', x0_randomness=randomness)
        data = types.SimpleNamespace(reflow_data_root='pairs')
        settings = types.SimpleNamespace(use_cond=False, h_flip=False)
        self.cfg = types.SimpleNamespace(training=training, data=data, flow=settings)
        self.model, self.model_teacher = of(velocity), of(teacher)
        self.eps, self.warmup_iters, self._T = eps, WARMUP, 1.0
        self.flow_t_schedule = self.flow_alpha_t = 'uniform'
        self.loss_fn = self.loss_fn_teach = losses.get_rectified_flow_loss_fn(True, loss)
        self.lpips_forward_wrapper = lambda x, y: _lpips(x, y)
        self.data, self.noise = told['x'], told['z']
        return self

    torch.rand = lambda *a, **k: told['t']
    torch.randn_like = lambda x: told['fresh']
    for loss in ('l2', 'lpips', 'lpips+l2'):
        found[f'student_{loss}'] = made(loss).teacher_loss_new()
        found[f'teacher_{loss}'] = made(loss).teacher_loss()
    for kind_of in ('linear', 'exp', 'cos'):
        self = made('l2', f'{kind_of}_warmup_{WARMUP}', 0)
        self.randomness_schedule(STEPS)
        self.get_data_pair(torch.stack([told['x'], told['z']], dim=1))
        self.get_interpolations(self.data, self.noise)
        found[f'annealed_{kind_of}'] = self.loss_fn(self, *self.pred_batch_outputs())
        found[f'beta_{kind_of}'] = torch.tensor(self.x0_randomness)
    return found


def _fastgen(folder, told, velocity):
    import torch

    _stub(
        fastgen={},
        fastgen__methods={'FastGenModel': object, 'CausVidModel': object},
        fastgen__utils={'expand_like': None},
    )
    code = _module(f'{folder}/fastgen/methods/knowledge_distillation/KD.py')
    self = code.KDModel.__new__(code.KDModel)
    self.config = types.SimpleNamespace(student_sample_steps=1)
    scheduler = types.SimpleNamespace(max_t=80.0, t_precision=torch.float64)
    self.net, self.device = types.SimpleNamespace(noise_scheduler=scheduler), 'cpu'
    # A student that is given noise of level 80; D of the velocity is x0.
    self.gen_data_from_net = lambda x, t, condition: velocity(x / 80, 0.0)
    data = {'real': told['x'], 'noise': 80 * told['z'], 'condition': None}
    return {'kd': self.single_train_step(data, 0)[0]['total_loss']}


def _google(folder):
    import jax

    jax.config.update('jax_enable_x64', True)
    sys.path.insert(0, folder)
    from diffusion_distillation import dpm, schedules, utils

    schedule = schedules.get_logsnr_schedule('cosine', logsnr_min=-20.0, logsnr_max=20.0)
    student, teacher = (
        lambda z, logsnr, of=of: of(z, utils.broadcast_from_left(logsnr, z.shape))
        for of in denoisers(jax.numpy)
    )
    given = {'mean_type': 'x', 'logvar_type': 'fixed_large', 'logvar_coeff': 0.0}
    model = dpm.Model(student, target_model_fn=teacher, **given)
    key, x = jax.random.key(3), jax.numpy.asarray(drawn()['x'])
    rng = utils.RngGen(key)
    found = {
        'eps': jax.random.normal(next(rng), x.shape, x.dtype),
        'i': jax.random.randint(next(rng), x.shape[:1], 0, 4),
        'logsnr': schedule(jax.numpy.arange(1, 9) / 8),
    }
    for name in WEIGHTS:
        found[name] = model.training_losses(
            x=x, rng=key, logsnr_schedule_fn=schedule, num_steps=4, mean_loss_weight_type=name
        )['loss']
    return found


if __name__ == '__main__':
    import torch

    torch.set_default_dtype(torch.float64)
    rectified, rfpp, slimflow, fastgen, google = sys.argv[1:]
    told = {name: torch.tensor(value) for name, value in drawn().items()}
    velocity, teacher = networks(torch)
    arrays = {f'google/{name}': value for name, value in _google(google).items()}
    for name, found in {
        'rfpp': _rfpp(rfpp, told, velocity),
        'fastgen': _fastgen(fastgen, told, velocity),
        'rectified': _rectified(rectified, told, velocity),
        'slimflow': _slimflow(slimflow, told, velocity, teacher),
    }.items():
        arrays |= {f'{name}/{key}': np.asarray(value) for key, value in found.items()}
    np.savez_compressed(GOLDENS, **arrays)
