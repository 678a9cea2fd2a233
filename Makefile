# Each target makes what it needs in .venv, from nothing but python3, and is quick the second time.
#
#   make test ARGS="-k budgets"       ARGS goes to the command behind the target
#   make test WORKERS=8               test processes, each with one torch thread
#   make bench QUICK=1                small shapes, minutes for everything
#   make demo PYTHON=python3.12       the python that .venv is made with

PYTHON ?= python3
WORKERS ?= 2
QUICK ?=
ARGS ?=

VENV := .venv
RUN := $(VENV)/bin/python -m
# torch asks for one release of triton. The newest stands in a folder beside it, before it on the path where it is wanted.
NEWEST_TRITON := $(CURDIR)/$(VENV)/newest-triton
# What compiles for real, and thus differs from one triton to the next.
COMPILE_TESTS := tests/ptxsim tests/test_compiled_kernels.py
# An environment for development has all that the demo needs.
DEMO := $(if $(wildcard $(VENV)/.has-dev),dev,demo)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test test-all test-gpu test-matrix lint bench clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.has-$(DEMO) ## prune 28 real photographs, write trimtok-demo/report.html
	$(RUN) trimtok_fast demo $(ARGS)

test: $(VENV)/.has-dev ## run the test suite, but for what takes minutes
	OMP_NUM_THREADS=1 $(RUN) pytest -n $(WORKERS) --dist worksteal -m "not slow" $(ARGS)

test-all: $(VENV)/.has-dev $(VENV)/.has-newest-triton ## run every test, and compile with the newest triton too
	OMP_NUM_THREADS=1 $(RUN) pytest -n $(WORKERS) $(ARGS)
	OMP_NUM_THREADS=1 PYTHONPATH=$(NEWEST_TRITON) TRITON_INTERPRET=0 $(RUN) pytest -n $(WORKERS) $(COMPILE_TESTS) $(ARGS)

test-gpu: $(VENV)/.has-dev ## run the kernels on the GPU that there is, against the reference
	OMP_NUM_THREADS=1 TRITON_INTERPRET=0 $(RUN) pytest -n $(WORKERS) tests/test_gpu.py $(ARGS)

test-matrix: $(VENV)/.has-dev ## run the laws of the Hugging Face patch on old, middle and newest transformers
	$(RUN) tests.matrix $(ARGS)

lint: $(VENV)/.has-dev ## check style, format and types
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

bench: $(VENV)/.has-dev ## measure against the alternatives, half an hour; QUICK=1: small shapes, minutes
	$(RUN) benchmarks $(if $(QUICK),--quick) $(ARGS)

clean: ## remove what was built and written (the environment: rm -r .venv)
	rm -rf build dist *.egg-info trimtok-demo .benchmarks .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# .made says that the environment is whole. It is away while pip works, so an interrupted installation is noticed:
# the next run then starts from a cleared environment, and every .has-* stamp goes with the old one.
$(VENV)/.made:
	@test ! -e $(VENV)/.installing && $(RUN) pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.has-newest-triton: $(VENV)/.made
	$(RUN) pip --disable-pip-version-check install --no-input --upgrade --no-deps --target $(NEWEST_TRITON) triton
	@touch $@

$(VENV)/.has-%: $(VENV)/.made setup.py constraints.txt
	@echo "Installing trimtok_fast[$*] into $(VENV): minutes the first time"
	@mv $(VENV)/.made $(VENV)/.installing
	@trap 'exit 130' HUP INT TERM; \
	$(RUN) pip --disable-pip-version-check install --no-input -c constraints.txt -e ".[$*]"; \
	status=$$?; mv $(VENV)/.installing $(VENV)/.made; exit $$status
	@touch $@
