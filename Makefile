# The newcomer's two commands: `make demo` and `make test`. Both do all their set-up.
.PHONY: setup demo test check fmt sim bench torture engine mutants gen clean unit integration

PY := .venv/bin/python
# The docker client that `setup` may have put there, behind one that the machine has.
export PATH := $(PATH):$(CURDIR)/.venv/bin
NAME ?= start
SEEDS ?= 20
MINUTES ?= 10
MUTANTS ?= 0

setup:
	@tools/setup

demo: setup
	@$(PY) -m manager.lab.demo

# Everything that a change must pass.
test: check
	$(PY) -m pytest

unit: setup
	$(PY) -m pytest tests/unit tests/property tests/golden tests/tidy

integration: setup
	$(PY) -m pytest tests/netns tests/integration tests/conformance

check: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

fmt: setup
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

# Seeded runs of a whole node with pretended containers, crashes and restarts; of several managers.
sim: setup
	PYTHONHASHSEED=0 SWARM_SIM_SEEDS=$(SEEDS) $(PY) -m pytest tests/sim

# Small mistakes in raft/core that no test notices; MUTANTS=100 tries a sample. It goes on where it was.
mutants: setup
	PYTHONHASHSEED=0 $(PY) tests/mutation/run.py --sample $(MUTANTS)

# One JSON line of figures; NAME is a file of tests/bench.
bench: setup
	@$(PY) tests/bench/$(NAME).py

# Real members of the replicated log under faults; PySyncObj is the control that must lose writes.
torture: setup
	$(PY) tests/torture/raft/run.py --system ours --minutes $(MINUTES) --verbose
	$(PY) tests/torture/raft/run.py --system pysyncobj --minutes 5 --until-lost; test $$? -eq 1

# The demo inside one privileged container of a Docker engine, which the test starts itself.
engine: setup
	SWARM_DOCKER_TESTS=1 $(PY) -m pytest -rs tests/integration/lab/test_docker_engine.py

# Renews generated code and golden files; look at the difference before you commit it.
gen: setup
	tools/gen
	SWARM_REWRITE=1 $(PY) -m pytest tests/golden tests/unit

clean:
	rm -rf .venv dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
