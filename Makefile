# Two commands do everything on a fresh machine with Python 3.11:
#   make demo   installs what it needs and runs a real distillation, end to end
#   make test   installs what it needs and passes the checks and the tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST_FLAGS ?=
COMMA := ,

# Dozens of processes start below: where the environment forbids bytecode, each would compile every module again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help install test-tools demo test api-server soak check lint types imports docs bench bench-gpu clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

# pip compiles on one core. torch carries its own tests, one of them in the grammar of a newer Python; should another
# package do so, the error is shown and does no harm.
define INSTALL
$(PYTHON) -m venv $(VENV)
$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[$(1)]'
-$(BIN)/python -m compileall -q -j 0 -x /torch/testing/ $(VENV)/lib
endef

$(VENV)/.runtime: pyproject.toml constraints.txt  # what Tide itself needs
	$(call INSTALL,all)
	touch $@

$(VENV)/.installed: pyproject.toml constraints.txt
	$(call INSTALL,all$(COMMA)dev)
	touch $(VENV)/.runtime $@

install: $(VENV)/.installed  ## create the virtual environment

demo: $(VENV)/.runtime  ## distil two students on this machine and compare them with their controls
	$(BIN)/tide demo

test-tools: install  ## install Chromium, Prometheus and npm (as root, with apt); fetch Helm and real tokenizers
	$(BIN)/python -m tests.support.fetching

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

imports: install
	$(BIN)/lint-imports

docs: install  ## write the documents that are generated from the code
	$(BIN)/python -m tools

check: lint types imports  ## style, types and import contracts

# Those alone are collected in the second run: reading all the others takes a quarter of a minute.
RAY_TESTS = $(shell grep -rl 'mark\.ray' tests --include='test_*.py' | sort)

test: install  ## everything that CI runs
	$(MAKE) --no-print-directory --jobs 2 lint types imports test-tools  # mypy runs while the tools are fetched
	$(BIN)/pytest -m "not ray and not soak" -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_FLAGS)
	$(BIN)/pytest -m "ray and not soak" $(RAY_TESTS) $(PYTEST_FLAGS)

KUBE ?= .tide/kubernetes

api-server:  ## build a Kubernetes control plane from Debian's source, for the tests in soak (KUBE= for the folder)
	deploy/kubernetes/build.sh $(KUBE)
	@echo "now: TIDE_KUBE_BIN=$(abspath $(KUBE))/bin make soak"

soak: install  ## the long tests: two nodes, a node that vanishes, images built, pools that scale and wake
	$(BIN)/pytest -m soak $(PYTEST_FLAGS)

BENCH_FLAGS ?= --quick

bench: install  ## measure everything on the CPU, in under ten minutes (BENCH_FLAGS= for all of it)
	$(BIN)/python -m benchmarks $(BENCH_FLAGS)

bench-gpu: install  ## measure the true sizes on a CUDA device
	$(BIN)/python -m benchmarks --gpu

clean:  ## remove the virtual environment and everything that runs left
	rm -rf $(VENV) .tide .mypy_cache .ruff_cache .pytest_cache .hypothesis
