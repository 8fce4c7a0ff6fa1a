# `make demo` and `make test` are all that a newcomer needs: Linux, Python 3.11+, make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS := 2
# Of `make history`: photos in shards, in the folders train and val, and for how long; what else is changed in all its
# runs (OVERRIDES="seed=1"), and where they lie then (RUNS=runs/seed1).
DATA := shards/demo
EXPERIMENT := demo
OVERRIDES :=
RUNS :=
# Of `make bench-quality`, beside DATA, EXPERIMENT and RUNS: what is compared, and for which seeds.
VARIANTS := --variant paper=recipe=paper --variant modern
SEEDS := 0 1 2
# Without instructions for bf16 it is many times slower than fp32.
PRECISION := $(shell grep -qE 'amx_bf16|avx512_bf16' /proc/cpuinfo && echo bf16 || echo fp32)
# There steps are so long that a small one is enough to save behind.
SAVING := $(if $(filter fp32,$(PRECISION)),--batch 2 --steps 1 engine.precision=fp32 data.order.lanes=2)

.PHONY: help demo test lint format wheel chaos history slurm-up slurm-down test-slurm chaos-slurm bench-loader bench-step bench-checkpoint bench-quality clean

help:
	@echo "make demo          rendered faces, all three phases on $(WORKERS) workers, evaluation, a picture"
	@echo "make test          linter, formatter, types, tests"
	@echo "make lint          linter, formatter, types"
	@echo "make chaos         50 kills of one run, and whether its end is bitwise that of an undisturbed one"
	@echo "make history FAILURE=sigmoid  a run with one mistake in it beside a sound one (docs/history.md)"
	@echo "make slurm-up      a real SLURM cluster of four nodes on this machine (needs root; installs its packages)"
	@echo "make slurm-down    take it down"
	@echo "make test-slurm    what a cluster does to a run, on that cluster"
	@echo "make chaos-slurm   rare ones (hangs, lost links), then 20 drawn at random in one run"
	@echo "make bench-loader  photos/s of a loader worker against bare decoding and stock webdataset"
	@echo "make bench-step    update and training speed against a hand-written loop"
	@echo "make bench-checkpoint  time that a save costs the training, time to the first step after a restart"
	@echo "make bench-quality VARIANTS='--variant NAME[@COMMIT][=OVERRIDES] ...'  whole runs in turn, times and metrics"
	@echo "make wheel         the package, in dist/"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "glci-dist needs Python 3.11 to 3.13: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/glci demo-corpus shards/demo
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc-per-node $(WORKERS) -m glci_dist train experiment=demo engine.precision=$(PRECISION)
	$(BIN)/glci evaluate runs/demo --data shards/demo/val
	@echo
	@echo "the run's folder:   runs/demo"
	@echo "the picture:        runs/demo/evaluation/evaluation.png"
	@echo "while it trained:   runs/demo/pictures/"
	@echo "the curves:         $(BIN)/tensorboard --logdir runs/demo/tensorboard"

# Three at a time on two cores, since most of a world's test is waiting: for imports, collectives, processes that are to
# end. Waiting threads spin for a core that the others need, unless they are told not to; and where a shell keeps Python
# from writing compiled modules, each process that a test starts would compile the package anew.
test: lint
	OMP_WAIT_POLICY=passive PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses 3 --dist worksteal --durations 10

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(READY)
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

chaos: $(READY)
	$(BIN)/python -m tests.chaos --kills 50

history: $(READY)
	$(BIN)/python -m benchmarks.history $(FAILURE) $(OVERRIDES) $(if $(RUNS),--runs $(RUNS)) --data $(DATA) --experiment $(EXPERIMENT) --precision $(PRECISION) --workers $(WORKERS)

slurm-up:
	$(PYTHON) slurm/cluster/cluster.py up

slurm-down:
	$(PYTHON) slurm/cluster/cluster.py down

test-slurm: $(READY)
	$(BIN)/python -m pytest -m "slurm and not chaos" tests/slurm

chaos-slurm: $(READY)
	$(BIN)/python -m pytest -s -m "slurm and chaos" tests/slurm
	$(BIN)/python -m tests.slurm.chaos --events 20

bench-checkpoint: $(READY)
	$(BIN)/python -m benchmarks.bench_checkpoint $(SAVING)
	$(BIN)/python -m benchmarks.bench_checkpoint --spare-core $(SAVING)

bench-loader: $(READY)
	$(BIN)/python -m benchmarks.bench_loader

bench-step: $(READY)
	$(BIN)/python -m benchmarks.bench_step

bench-quality: $(READY)
	$(BIN)/python -m benchmarks.bench_quality $(VARIANTS) --seeds $(SEEDS) $(if $(RUNS),--runs $(RUNS)) --data $(DATA) --experiment $(EXPERIMENT) --precision $(PRECISION) --workers $(WORKERS)

clean:
	rm -rf $(VENV) dist build runs/demo shards/demo
