"""What the configs of diffusers' models and schedulers say, as settings of ours, and back.

A config is read by closed tables: a key that is missing has the default of diffusers 0.42, one that
is unknown is an error, and so is a value that changes the computation and that we do not have.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fdistill.diffusion import noise
from fdistill.errors import suggest
from fdistill.weights.found import Refused

VERSION = '0.42.1'  # of diffusers, whose defaults these are
INTERNAL = ('_class_name', '_diffusers_version', '_name_or_path')


class Model(NamedTuple):
    """How a class of diffusers' models is a function of ours.

    ours: name of the function, in its table.
    keys: {key of diffusers: argument of ours}.
    only: {key: values that are supported}, where others would compute something else.
    free: keys that change nothing in what is computed.
    fixed: {argument of ours: key of diffusers}, written on the way back beside those of `keys`.
    """

    ours: str
    keys: Mapping[str, str]
    only: Mapping[str, tuple[Any, ...]]
    free: tuple[str, ...]
    fixed: Mapping[str, str]


# Keys of diffusers that have the same name here.
_UNET2D = (
    'block_out_channels layers_per_block attention_head_dim center_input_sample dropout '
    'down_block_types up_block_types mid_block_type add_attention downsample_type '
    'upsample_type downsample_padding norm_num_groups norm_eps attn_norm_num_groups '
    'resnet_time_scale_shift flip_sin_to_cos freq_shift time_embedding_dim'
).split()
_KL = (
    'latent_channels block_out_channels layers_per_block norm_num_groups scaling_factor '
    'shift_factor latents_mean latents_std use_quant_conv use_post_quant_conv '
    'mid_block_add_attention'
).split()

MODELS = {
    'UNet2DModel': Model(
        'unet2d',
        {
            'sample_size': 'resolution',
            'in_channels': 'channels',
            'num_class_embeds': 'num_classes',
        }
        | dict(zip(_UNET2D, _UNET2D)),
        {
            'time_embedding_type': ('positional',),
            'act_fn': ('silu', 'swish'),
            'class_embed_type': (None,),
            'mid_block_scale_factor': (1,),
        },
        ('num_train_timesteps',),
        {'channels': 'out_channels'},
    ),
    'AutoencoderKL': Model(
        'autoencoder_kl',
        {'in_channels': 'channels'} | dict(zip(_KL, _KL)),
        {'act_fn': ('silu', 'swish')},
        # It is float32 here, as `force_upcast` asks for.
        ('sample_size', 'force_upcast'),
        {'channels': 'out_channels'},
    ),
}
# Of a model that has as many blocks as widths, all of one type: what its config calls them.
BLOCK_TYPES = {
    'AutoencoderKL': {
        'down_block_types': 'DownEncoderBlock2D',
        'up_block_types': 'UpDecoderBlock2D',
    }
}
# Keys whose null stands for our 0.
ZERO = ('num_class_embeds',)


def _of(table, name, where):
    """A name that is one of a table's."""
    if not isinstance(name, str) or name not in table:
        raise Refused(f'{where}={name!r:.80} is not supported{suggest(name, table)}')
    return name


def settings(config: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """(name, arguments) of our network that a model's config describes.

    Args:
      config: what config.json holds.
      where: the file, for messages.

    Raises:
      Refused: the class is none of `MODELS`, a key is unknown, or a value is not supported.
    """
    kind = _of(MODELS, config.get('_class_name'), f'{where}: _class_name')
    model, blocks = MODELS[kind], BLOCK_TYPES.get(kind, {})
    known = {*model.keys, *model.only, *model.free, *model.fixed.values(), *blocks}
    made = {}
    for key, value in config.items():
        value = tuple(value) if isinstance(value, list) else value
        if key in INTERNAL or key in model.free:
            continue
        if key not in known:
            raise Refused(
                f'{where}: {key!r:.80} is no setting of {kind} in diffusers {VERSION}'
                f'{suggest(key, known)}; take the folder as it was published'
            )
        if key in model.only and value not in model.only[key]:
            raise Refused(
                f'{where}: {key}={value!r:.80} is not supported, only '
                f'{" or ".join(map(repr, model.only[key]))}; take another model'
            )
        if key in model.keys:
            made[model.keys[key]] = 0 if value is None and key in ZERO else value
    for ours, key in model.fixed.items():
        default = 3  # of both
        source = next(name for name, to in model.keys.items() if to == ours)
        if config.get(key, default) != config.get(source, default):
            raise Refused(
                f'{where}: {key}={config.get(key, default)!r:.20} and '
                f'{source}={config.get(source, default)!r:.20}: a model whose output is no image '
                'like its input is not supported; take another model'
            )
    for key, block in blocks.items():
        widths, found = made.get('block_out_channels', (64,)), config.get(key, [block])
        count = len(widths) if isinstance(widths, tuple) else 1
        if found != [block] * count and found != (block,) * count:
            raise Refused(
                f'{where}: {key}={found!r:.200}: supported is {block!r} for each of the {count} '
                'block_out_channels; take another model'
            )
    size = made.get('resolution')
    if isinstance(size, tuple) and len(set(size)) == 1:
        made['resolution'] = size[0]
    return model.ours, made


def config_of(kind: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a class of `MODELS` with arguments of our function; the way back of
    `settings`."""
    model = MODELS[kind]
    made = {'_class_name': kind, '_diffusers_version': VERSION}
    for key, ours in model.keys.items():
        if ours in arguments:
            value = arguments[ours]
            made[key] = None if key in ZERO and not value else value
    for ours, key in model.fixed.items():
        if ours in arguments:
            made[key] = arguments[ours]
    count = len(arguments.get('block_out_channels', (64,)))
    return made | {key: [block] * count for key, block in BLOCK_TYPES.get(kind, {}).items()}


PREDICTIONS = {'epsilon': 'eps', 'v_prediction': 'v', 'sample': 'x0', 'flow_prediction': 'flow'}
_TABLE = {
    'num_train_timesteps': 1000,
    'beta_start': 1e-4,
    'beta_end': 0.02,
    'beta_schedule': 'linear',
    'trained_betas': None,
    'prediction_type': 'epsilon',
    'rescale_betas_zero_snr': False,
    'use_flow_sigmas': False,
}
_STABLE = _TABLE | {'beta_start': 0.00085, 'beta_end': 0.012}
_SCALED = _STABLE | {'beta_schedule': 'scaled_linear'}
_FLOW = {'num_train_timesteps': 1000, 'prediction_type': 'flow_prediction'}
_EDM = {'sigma_data': 0.5, 'prediction_type': 'epsilon'}


def _betas(said, where):
    """DDPM's table, which most schedulers sample from in their own ways."""
    if said['use_flow_sigmas']:
        return _flow(said, where)
    prediction = PREDICTIONS[_of(PREDICTIONS, said['prediction_type'], f'{where}: prediction_type')]
    if prediction == 'flow':
        raise Refused(
            f"{where}: prediction_type='flow_prediction' without use_flow_sigmas: a table of betas "
            'is no flow; take the scheduler that the model was published with'
        )
    schedule = {'name': 'betas'} | {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in said.items()
        if name.startswith('beta_') or name in ('num_train_timesteps', 'trained_betas')
    }
    if said['rescale_betas_zero_snr']:
        if prediction == 'eps':
            raise Refused(
                f"{where}: rescale_betas_zero_snr with prediction_type='epsilon': at the last time "
                'there is no image in the input, and none in the noise; take the scheduler that '
                'the model was published with'
            )
        schedule['zero_terminal_snr'] = 'drop'
    return {'name': 'prediction', 'prediction': prediction, 'schedule': schedule}


def _flow(said, where):
    if said['prediction_type'] != 'flow_prediction':
        raise Refused(
            f'{where}: prediction_type={said["prediction_type"]!r:.80} under a flow is not '
            "supported, only 'flow_prediction'; take the scheduler that the model was published "
            'with'
        )
    scale = said['num_train_timesteps']
    if type(scale) is not int or scale < 1:
        raise Refused(
            f'{where}: num_train_timesteps={scale!r:.80}: must be a whole number >= 1; take the '
            'folder as it was published'
        )
    # The network is told the fraction of noise, shifted or not: a shift is of the sampler's levels.
    return {
        'name': 'prediction',
        'prediction': 'flow',
        'schedule': 'flow',
        'time_scale': float(scale),
    }


def _edm(said, where):
    if said['prediction_type'] != 'epsilon':
        raise Refused(
            f'{where}: prediction_type={said["prediction_type"]!r:.80} under EDM is not supported, '
            "only 'epsilon'; take another model"
        )
    return {'name': 'edm', 'sigma_data': said['sigma_data']}


class Scheduler(NamedTuple):
    """A kind of diffusers' schedulers: their defaults of what a network is trained under, and
    section(said, where) -> our section `denoiser`."""

    defaults: Mapping[str, Any]
    section: Callable[[Mapping[str, Any], Any], dict[str, Any]]


SCHEDULERS = {
    **dict.fromkeys(
        'DDPM DDPMParallel DDIM DDIMParallel DDIMInverse PNDM DPMSolverMultistep '
        'DPMSolverSinglestep DEISMultistep UniPCMultistep SASolver EulerDiscrete '
        'EulerAncestralDiscrete LMSDiscrete'.split(),
        Scheduler(_TABLE, _betas),
    ),
    **dict.fromkeys(
        'HeunDiscrete KDPM2Discrete KDPM2AncestralDiscrete'.split(), Scheduler(_STABLE, _betas)
    ),
    **dict.fromkeys('LCM TCD'.split(), Scheduler(_SCALED, _betas)),
    **dict.fromkeys(
        'FlowMatchEulerDiscrete FlowMatchHeunDiscrete FlowMatchLCM'.split(),
        Scheduler(_FLOW, _flow),
    ),
    **dict.fromkeys('EDMEuler EDMDPMSolverMultistep'.split(), Scheduler(_EDM, _edm)),
}
SCHEDULERS = {f'{name}Scheduler': row for name, row in SCHEDULERS.items()}
# How a scheduler samples, which is for our samplers and grids to say.
SAMPLING = frozenset(
    'variance_type clip_sample clip_sample_range thresholding dynamic_thresholding_ratio '
    'sample_max_value timestep_spacing steps_offset set_alpha_to_one skip_prk_steps solver_order '
    'algorithm_type solver_type lower_order_final euler_at_final use_karras_sigmas '
    'use_exponential_sigmas use_beta_sigmas use_lu_lambdas flow_shift final_sigmas_type '
    'lambda_min_clipped use_dynamic_shifting time_shift_type predict_x0 disable_corrector solver_p '
    'predictor_order corrector_order tau_func interpolation_type sigma_min sigma_max timestep_type '
    'original_inference_steps timestep_scaling shift base_shift max_shift base_image_seq_len '
    'max_image_seq_len invert_sigmas shift_terminal stochastic_sampling scale_factors upscale_mode '
    'sigma_schedule rho num_train_timesteps rescale_betas_zero_snr use_flow_sigmas '
    # Of old versions.
    'tensor_format timestep_values'.split()
)


def denoiser_of(scheduler: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The section `denoiser` of a network that was trained under a scheduler.

    Args:
      scheduler: what scheduler_config.json holds.
      where: the file, for messages.

    Raises:
      Refused: the class is none of `SCHEDULERS`, a key is unknown, or a value is not supported.
    """
    kind = _of(SCHEDULERS, scheduler.get('_class_name'), f'{where}: _class_name')
    row = SCHEDULERS[kind]
    for key in scheduler:
        if key not in row.defaults and key not in SAMPLING and key not in INTERNAL:
            raise Refused(
                f'{where}: {key!r:.80} is no setting of {kind} in diffusers {VERSION}'
                f'{suggest(key, row.defaults)}; take the folder as it was published'
            )
    said = {key: scheduler.get(key, default) for key, default in row.defaults.items()}
    section = row.section(said, where)
    if isinstance(section.get('schedule'), dict):
        options = {key: value for key, value in section['schedule'].items() if key != 'name'}
        try:
            noise.SCHEDULES[section['schedule']['name']](**options)
        except (ValueError, TypeError) as error:
            raise Refused(
                f'{where}: {error!s:.400}; take the folder as it was published'
            ) from error
    return section


# Of EDM's preconditioning, what diffusers has no setting for, and what it computes by instead.
_EDM_ONLY = {'boundary': 0, 'noise_input': 'log'}


def scheduler_of(section: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler_config.json for a network of a section `denoiser`; the way back of `denoiser_of`.

    Raises:
      Refused: diffusers has no scheduler for it.
    """
    if section.get('name', 'edm') == 'edm':
        for key, known in _EDM_ONLY.items():
            if section.get(key, known) != known:
                raise Refused(
                    f'denoiser.{key}={section[key]!r:.80}: diffusers has no setting for it, and '
                    f'computes as by {known!r}; take another form'
                )
        return _scheduler('EDMEuler', sigma_data=section.get('sigma_data', 0.5))
    known = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    prediction, scale = section.get('prediction'), section.get('time_scale', 1.0)
    schedule = section.get('schedule', '')
    schedule = {'name': schedule} if isinstance(schedule, str) else dict(schedule)
    of = schedule.pop('name')
    if section.get('time_offset', 0.0) != 0 or prediction not in known:
        of = None  # Its networks are told a time of no offset, and predict what is in the table.
    if of == 'flow' and prediction == 'flow' and schedule.get('shift', 1.0) == 1.0:
        return _scheduler('FlowMatchEulerDiscrete', num_train_timesteps=int(scale), shift=1.0)
    if of in ('betas', 'discrete') and prediction != 'flow' and scale == 1:
        zero = schedule.pop('zero_terminal_snr', None) is not None
        if table := schedule.pop('alphas_cumprod', None):
            betas = [1 - after / before for before, after in zip((1.0, *table), table)]
            schedule |= {'trained_betas': betas, 'num_train_timesteps': len(betas)}
        own = {'prediction_type': known[prediction], 'rescale_betas_zero_snr': zero}
        # Which is how it samples pixels by default, and does latents harm.
        return _scheduler('DDPM', **schedule, **own, clip_sample=False)
    raise Refused(
        f'denoiser={dict(section)!r:.300}: diffusers has no scheduler for it; it has those of '
        'betas, of flow and of EDM'
    )


def _scheduler(kind, **said):
    return {'_class_name': f'{kind}Scheduler', '_diffusers_version': VERSION, **said}
