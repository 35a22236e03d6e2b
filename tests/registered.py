"""Registered methods as parameters of tests."""

import pytest

from fdistill.config import parameters
from fdistill.methods import METHODS

# Of the methods of a file, which share most of what is tested of all, one stands for them in each
# run, and the others follow in the slow tests; so do those whose files have tests of their own for
# all that they add.
QUICK = (
    'pretrain',
    'exact',
    'f_distill',
    'sim',
    'consistency',
    'mean_flow',
    'fd_loss',
    'reflow',
)


def taught(name):
    """Whether a method has a teacher, of its own or for its pairs."""
    return not {'teacher', 'pairs'}.isdisjoint(parameters(METHODS[name]))


def every(names=METHODS, quick=QUICK):
    """Parameters of a test of each of these methods, or of whatever; what is not quick is slow."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]
