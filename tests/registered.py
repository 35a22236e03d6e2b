"""Registered methods as parameters of tests."""

import inspect

import pytest

from fdistill.config import parameters
from fdistill.methods import METHODS


def _file(name):
    return inspect.getmodule(getattr(METHODS[name], 'func', METHODS[name])).__name__


# Methods of one file share most of what is tested of all: the first stands for them in each run,
# the others follow in the slow tests. f-distill has statistics of its own; AnyFlow is two of them,
# and what the others left out here are is tested in files of their own.
QUICK = {'f_distill'} | {
    next(name for name in METHODS if _file(name) == file) for file in map(_file, METHODS)
} - {'any_flow', 'degrade', 'mapo', 'ladd', 'progressive', 'real_uid', 'scm', 'tscd'}


def taught(name):
    """Whether a method has a teacher, of its own or for its pairs."""
    return not {'teacher', 'pairs'}.isdisjoint(parameters(METHODS[name]))


def every(names=METHODS):
    """Parameters of a test of each of these methods."""
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]
