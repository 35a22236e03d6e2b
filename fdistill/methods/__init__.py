"""Methods: pure losses over the roles student and critic, all trained by the same trainer."""

from fdistill.methods.distribution import diff_instruct, distribution_matching, dmd2, f_distill
from fdistill.methods.exact import exact
from fdistill.methods.method import Method
from fdistill.methods.pretrain import pretrain
from fdistill.methods.score import sid, sim

# Those with a teacher; `pretrain` makes one.
DISTILLATIONS = {
    'diff_instruct': diff_instruct,
    'dmd2': dmd2,
    'f_distill': f_distill,
    'sim': sim,
    'sid': sid,
}

__all__ = [
    'DISTILLATIONS',
    'Method',
    'diff_instruct',
    'distribution_matching',
    'dmd2',
    'exact',
    'f_distill',
    'pretrain',
    'sid',
    'sim',
]
