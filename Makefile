# make run: everything from nothing to a trained model.  make test: what CI runs.
# On Slurm three at a time also on two cores: most of it is waiting. One thread each, for there are ranks enough to keep
# all cores busy.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup run test lint clean

setup: $(VENV)/.ready

# torch first and pinned: an unpinned one may bring gigabytes of CUDA.
$(VENV)/.ready: pyproject.toml constraints/cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "hpc needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version). Type: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints/cpu.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints/cpu.txt -e '.[train,dev]'
	@touch $@

run: setup
	$(BIN)/hpc submit job=prepare --wait
	$(BIN)/hpc submit --watch

test: setup
	@tests/install_slurm
	@tests/install_chromium
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slurm" -n 2 --dist worksteal
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slurm -n 3 --dist loadfile --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache
