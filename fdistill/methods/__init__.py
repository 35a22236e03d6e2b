"""Methods: pure losses over the roles student and critic, all trained by the same trainer."""

from fdistill.methods.average import (
    alpha_flow,
    flow_map_distill,
    improved_mean_flow,
    mean_flow,
    mean_flow_distill,
    shortcut,
)
from fdistill.methods.consistency import consistency, consistency_training, ect, ict, tcm
from fdistill.methods.continuous import dscd, rcm, scd, scm
from fdistill.methods.distribution import diff_instruct, distribution_matching, dmd2, f_distill
from fdistill.methods.exact import exact
from fdistill.methods.features import drifting, fd_loss, mmd
from fdistill.methods.method import Context, Method
from fdistill.methods.on_policy import any_flow
from fdistill.methods.pretrain import pretrain
from fdistill.methods.score import sid, sim
from fdistill.methods.segments import tscd

# name -> function of networks, laws and settings that makes a `Method`; a row is all it takes.
METHODS = {
    'pretrain': pretrain,
    'exact': exact,
    'diff_instruct': diff_instruct,
    'dmd2': dmd2,
    'f_distill': f_distill,
    'sim': sim,
    'sid': sid,
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
    'fd_loss': fd_loss,
    'mmd': mmd,
    'drifting': drifting,
}

__all__ = [
    'METHODS',
    'Context',
    'Method',
    'alpha_flow',
    'any_flow',
    'consistency',
    'consistency_training',
    'diff_instruct',
    'distribution_matching',
    'dmd2',
    'drifting',
    'dscd',
    'ect',
    'exact',
    'f_distill',
    'fd_loss',
    'flow_map_distill',
    'ict',
    'improved_mean_flow',
    'mean_flow',
    'mean_flow_distill',
    'mmd',
    'pretrain',
    'rcm',
    'scd',
    'scm',
    'shortcut',
    'sid',
    'sim',
    'tcm',
    'tscd',
]
