# `make demo` and `make test` are each all that a fresh machine needs: they make .venv on first use.

VENV := .venv
PYTHON := $(shell for p in python3.11 python3.12 python3.13 python3; do \
    $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
STAMP := $(VENV)/.installed
RUN := $(VENV)/bin/python

# Compiled programs are kept between runs: the second `make demo` or `make test` compiles next to nothing.
export JAX_COMPILATION_CACHE_DIR := $(CURDIR)/.cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS := 0
export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES := 0

.PHONY: help venv demo demo-short demo-mnist test test-slow test-faults test-slurm bench lint clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

venv: $(STAMP)  ## installs into .venv, again when requirements.lock or setup.cfg changed

demo: $(STAMP)  ## trains teachers and one-step students, and prints what came of it
	$(RUN) experiments/demo.py

demo-short: $(STAMP)  ## the same, as short as it makes sense
	$(RUN) experiments/demo.py --short

demo-mnist: $(STAMP)  ## on MNIST, 25 to 35 minutes of two cores: DATA=DIR, a TFDS folder
	$(RUN) experiments/demo.py mnist $(DATA:%=--config.data.data_dir=%)

test: $(STAMP)  ## all tests but the slow ones, a file at a time on each core
	$(RUN) -m pytest -n auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

test-slow: $(STAMP)  ## the slow tests
	$(RUN) -m pytest -m slow

test-faults: $(STAMP)  ## kills, damage, hangs and the like on purpose
	$(RUN) -m pytest -m faults

test-slurm: $(STAMP)  ## the Slurm launcher on a Slurm of this machine: root, munge slurmctld slurmd slurm-client
	$(RUN) -m pytest -m slurm -rs

bench: $(STAMP)  ## speed
	$(RUN) experiments/bench.py

lint: $(STAMP)  ## ruff: rules and format
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

clean:  ## removes what make and python made, but no runs
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

# The lock is for one Python on one platform; elsewhere setup.cfg's ranges decide.
LOCKED := import sys, platform as p; sys.exit((*sys.version_info[:2], sys.platform, p.machine()) != (3, 11, 'linux', 'x86_64'))

$(STAMP): requirements.lock setup.cfg
	@test -n '$(PYTHON)' || { echo 'fdistill needs Python 3.11 or newer, and there is none on PATH' >&2; exit 1; }
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV) || \
	    { echo '$(PYTHON) cannot make a venv: install its venv module (Debian: python3-venv)' >&2; exit 1; }
	@echo 'installing into $(VENV), some minutes on first use ...'
	@if $(RUN) -c "$(LOCKED)"; then \
	    $(RUN) -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock && \
	    $(RUN) -m pip install -q --disable-pip-version-check --no-deps -e .; \
	else \
	    $(RUN) -m pip install -q --disable-pip-version-check -e '.[test,lint]'; \
	fi
	@touch $@
