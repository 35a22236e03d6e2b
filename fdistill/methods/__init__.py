"""Methods: pure losses over the roles student and critic, all trained by the same trainer."""

from fdistill.methods.adversarial import add, adversarial_flow, ladd
from fdistill.methods.average import (
    alpha_flow,
    flow_map_distill,
    improved_mean_flow,
    mean_flow,
    mean_flow_distill,
    shortcut,
)
from fdistill.methods.backtracking import degrade, disback
from fdistill.methods.consistency import consistency, consistency_training, ect, ict, tcm
from fdistill.methods.continuous import dscd, rcm, scd, scm
from fdistill.methods.distribution import (
    di_plus_plus,
    diff_instruct,
    distribution_matching,
    dmd2,
    f_distill,
)
from fdistill.methods.exact import exact
from fdistill.methods.features import drifting, fd_loss, mmd
from fdistill.methods.method import Context, Method
from fdistill.methods.on_policy import any_flow
from fdistill.methods.preference import f_dpo, mapo
from fdistill.methods.pretrain import pretrain
from fdistill.methods.progressive import progressive
from fdistill.methods.real_data import data_forcing, diff_ratio, real_uid
from fdistill.methods.reflow import flow_guided, kd, reflow
from fdistill.methods.score import di_star, sid, sida, sim, uni_instruct
from fdistill.methods.segments import tscd

# name -> function of networks, laws and settings that makes a `Method`; a row is all it takes.
METHODS = {
    'pretrain': pretrain,
    'exact': exact,
    'diff_instruct': diff_instruct,
    'dmd2': dmd2,
    'f_distill': f_distill,
    'di_plus_plus': di_plus_plus,
    'sim': sim,
    'sid': sid,
    'di_star': di_star,
    'sida': sida,
    'uni_instruct': uni_instruct,
    'real_uid': real_uid,
    'data_forcing': data_forcing,
    'diff_ratio': diff_ratio,
    'consistency': consistency,
    'consistency_training': consistency_training,
    'ict': ict,
    'ect': ect,
    'tcm': tcm,
    'tscd': tscd,
    'mean_flow': mean_flow,
    'mean_flow_distill': mean_flow_distill,
    'improved_mean_flow': improved_mean_flow,
    'alpha_flow': alpha_flow,
    'shortcut': shortcut,
    'flow_map_distill': flow_map_distill,
    'any_flow': any_flow,
    'scm': scm,
    'scd': scd,
    'dscd': dscd,
    'rcm': rcm,
    'mapo': mapo,
    'f_dpo': f_dpo,
    'degrade': degrade,
    'disback': disback,
    'ladd': ladd,
    'add': add,
    'adversarial_flow': adversarial_flow,
    'fd_loss': fd_loss,
    'mmd': mmd,
    'drifting': drifting,
    'reflow': reflow,
    'kd': kd,
    'flow_guided': flow_guided,
    'progressive': progressive,
}

__all__ = [
    'METHODS',
    'Context',
    'Method',
    'add',
    'adversarial_flow',
    'alpha_flow',
    'any_flow',
    'consistency',
    'consistency_training',
    'data_forcing',
    'degrade',
    'di_plus_plus',
    'di_star',
    'diff_instruct',
    'diff_ratio',
    'disback',
    'distribution_matching',
    'dmd2',
    'drifting',
    'dscd',
    'ect',
    'exact',
    'f_distill',
    'f_dpo',
    'fd_loss',
    'flow_guided',
    'flow_map_distill',
    'ict',
    'improved_mean_flow',
    'kd',
    'ladd',
    'mapo',
    'mean_flow',
    'mean_flow_distill',
    'mmd',
    'pretrain',
    'progressive',
    'rcm',
    'real_uid',
    'reflow',
    'scd',
    'scm',
    'shortcut',
    'sid',
    'sida',
    'sim',
    'tcm',
    'tscd',
    'uni_instruct',
]
