# make demo | make test | make lint: each installs what it needs into .venv first.

SHELL := /bin/bash
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
# The thread pool's size is part of a CPU run's bits.
export NPROC ?= 2
export JAX_PLATFORMS ?= cpu

# Apache Beam pins older versions of what others share.
BEAM_VENV := .venv-beam
# torch is large, and nothing but the comparison with transformers wants it.
REFERENCE_VENV := .venv-torch

# The TPU compiler is large too, and runs on any machine.
TPU_VENV := .venv-tpu

.PHONY: help demo continue-demo infill-demo sweep-demo test test-multiprocess test-aot test-machines golden drill beam reference lint format install clean-demo

help:
	@echo "make demo    pretrain a small PaLM on real text, kill it, resume it, continue it, sample from it"
	@echo "make continue-demo   take the demo's model on in six ways, and compare: UL2R, deeper, expanded, …"
	@echo "make infill-demo     what UL2R is for: a model learns to use what stands behind a hole; half an hour of two cores"
	@echo "make test    every test that needs nothing more than this"
	@echo "make test-multiprocess   runs of one, two and four processes against each other, and with some of them lost"
	@echo "make test-aot   programs for TPU slices that are not here, by their own compiler"
	@echo "make test-machines   whole steps for pods of up to 6,144 chips, by the same compiler (an hour)"
	@echo "make golden  write anew what tests/golden and tests/aot hold shardings and collectives to"
	@echo "make sweep-demo   fifty small runs, laws fitted to them, and a plan tried; 50 minutes of two cores"
	@echo "make drill   do everything to real runs that a run must survive: kills, damage, bad batches, full disks, …"
	@echo "make beam    build a token store with Apache Beam, in an environment of its own"
	@echo "make reference   imported models against transformers and torch, in an environment of its own"
	@echo "make lint    ruff and the import contracts"
	@echo "make format  ruff format and the fixes it is sure of"

demo: $(VENV)/.installed
	$(BIN)/python tools/demo.py

continue-demo: $(VENV)/.installed
	$(BIN)/python tools/continue_demo.py

infill-demo: $(VENV)/.installed
	$(BIN)/python tools/infill_demo.py

sweep-demo: $(VENV)/.installed
	$(BIN)/python tools/sweep_demo.py --jobs=2

clean-demo:
	rm -rf runs/demo

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --ignore=tests/reference --ignore=tests/aot --ignore=tests/multiprocess --ignore=tests/drills tests

test-multiprocess: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q tests/multiprocess

# One compilation at a time: each takes gigabytes.
test-aot: $(TPU_VENV)/.installed
	$(TPU_VENV)/bin/python -m pytest -q --ignore=tests/aot/machines tests/aot

test-machines: $(TPU_VENV)/.installed
	$(TPU_VENV)/bin/python -m pytest -q tests/aot/machines

golden: $(VENV)/.installed-test $(TPU_VENV)/.installed
	REWRITE_GOLDEN=1 $(BIN)/python -m pytest -q tests/golden
	REWRITE_GOLDEN=1 $(TPU_VENV)/bin/python -m pytest -q tests/aot/machines/test_golden_collectives.py

drill: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q tests/drills

beam: $(BEAM_VENV)/.installed
	$(BEAM_VENV)/bin/python -m pytest -q tests/beam

reference: $(REFERENCE_VENV)/.installed
	$(REFERENCE_VENV)/bin/python -m pytest -q -n 2 --dist loadfile tests/reference

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(VENV)/.installed

$(VENV)/bin/python:
	@if [ -z "$(PYTHON)" ]; then \
		echo "t5x_scale needs Python 3.11 or newer with venv. On Debian and Ubuntu (Cloud TPU VMs):"; \
		echo "  sudo apt-get update && sudo apt-get install -y python3.11 python3.11-venv"; \
		exit 1; fi
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python setup.py
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -e '.[test]'
	touch $@

$(BEAM_VENV)/.installed: setup.py
	@if [ -z "$(PYTHON)" ]; then $(MAKE) $(VENV)/bin/python; fi
	$(PYTHON) -m venv $(BEAM_VENV)
	$(BEAM_VENV)/bin/python -m pip install --quiet -e '.[beam]' 'pytest>=8.4,<10'
	touch $@

$(REFERENCE_VENV)/.installed: setup.py
	@if [ -z "$(PYTHON)" ]; then $(MAKE) $(VENV)/bin/python; fi
	$(PYTHON) -m venv $(REFERENCE_VENV)
	$(REFERENCE_VENV)/bin/python -m pip install --quiet -e '.[test,reference]'
	touch $@

$(TPU_VENV)/.installed: setup.py
	@if [ -z "$(PYTHON)" ]; then $(MAKE) $(VENV)/bin/python; fi
	$(PYTHON) -m venv $(TPU_VENV)
	$(TPU_VENV)/bin/python -m pip install --quiet -e '.[tpu,test]'
	touch $@
