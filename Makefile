# openMosix in userspace.  Each target brings the machine into shape first (`env`), which takes a moment when nothing is missing.

PYTHON := .venv/bin/python
PART   :=
ARGS   :=

.DEFAULT_GOAL := help
.PHONY: help env demo test soak bench economy lint

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: ## packages, virtual environment, compiled helpers, a CRIU that suits this kernel
	@sh tools/omtools/setup/bootstrap.sh

demo: env ## watch real programs move from a busy node to idle ones, and finish as if they had stayed (2 minutes)
	@$(PYTHON) -m omtools.demo

test: env ## all tests; PART=unit|kernel|cluster|faults for one part, ARGS= for pytest
	@sh tools/omtools/setup/bootstrap.sh test
	@$(if $(PART)$(ARGS),$(PYTHON) -m pytest $(if $(PART),tests/$(PART)) $(ARGS),tests/all.sh $(PYTHON))

soak: env ## the tests that take minutes: many moves, large simulations, hostile input; PART= and ARGS= as above
	@sh tools/omtools/setup/bootstrap.sh test soak
	@$(PYTHON) -m pytest -m long $(if $(PART),tests/$(PART)) $(ARGS)

bench: env ## measure pauses, moves and start-up, beside runc and plain CRIU
	@sh tools/omtools/setup/bootstrap.sh bench
	@$(PYTHON) -m omtools.bench

economy: env ## simulate the economy on 32 seeds and write docs/economy.md (half an hour; goes on where it was)
	@$(PYTHON) -m omtools.sim

lint: env ## ruff and mypy
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m mypy
