# Everything starts from a fresh clone with python3 (3.11 or later) and make.

PYTHON ?= python3
# A plain index may give the CUDA build of torch; tests need only the CPU build. To name another, TORCH takes
# any arguments of pip install: make test TORCH="torch==2.13.0 --index-url URL"
TORCH ?= torch==2.13.0

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --quiet --disable-pip-version-check
STAMP := $(VENV)/stamp

.PHONY: help run test test-web lint bench bench-web validate validate-measured reliability docs clean

help:
	@echo "make run                plan GPT-3 175B on 128 DGX A100 nodes (creates .venv on first use)"
	@echo "make test               every test that needs no browser; installs what tests need, with the CPU build of torch"
	@echo "make test-web           the explorer and the report in headless Chromium (Debian's package chromium)"
	@echo "make lint               ruff and mypy --strict"
	@echo "make bench              benchmarks, as ratios on this machine"
	@echo "make bench-web          the explorer's first paint and updates in headless Chromium"
	@echo "make validate           predictions beside published runs and kernel measurements"
	@echo "make validate-measured  real torch training on this machine beside its prediction"
	@echo "make reliability        every figure of reliability into validation/RELIABILITY.md (about an hour)"
	@echo "make docs               the formula pages and the outputs stored in the lessons, anew"
	@echo "make clean              remove everything that the targets above made"

$(STAMP)-venv:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(STAMP)-run: $(STAMP)-venv pyproject.toml
	$(PIP) install --editable .
	@touch $@

$(STAMP)-torch: $(STAMP)-venv
	$(PIP) install $(TORCH)
	@touch $@

$(STAMP)-test: $(STAMP)-torch $(STAMP)-run
	$(PIP) install --editable '.[test]'
	@touch $@

$(STAMP)-lint: $(STAMP)-run
	$(PIP) install --editable '.[lint]'
	@touch $@

run: $(STAMP)-run
	$(BIN)/shardwise plan gpt3-175b dgx-a100 --nodes 128 --global-batch 1536

test: $(STAMP)-test
	$(BIN)/python -m pytest -m "not browser"

test-web: $(STAMP)-test
	$(BIN)/python -m pytest -m browser tests/web

lint: $(STAMP)-lint
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(STAMP)-run
	$(BIN)/python benchmarks/run.py

bench-web: $(STAMP)-test
	$(BIN)/python benchmarks/explorer.py

validate: $(STAMP)-run
	$(BIN)/shardwise validate validation/runs/*.csv --out validation

validate-measured: $(STAMP)-test
	$(BIN)/shardwise measure full --out validation/measured/here.csv

reliability: $(STAMP)-test
	$(PIP) install mutmut pip-audit
	$(BIN)/python tools/reliability.py $(if $(BASE),--base $(BASE))

docs: $(STAMP)-test
	$(BIN)/python tools/make_formula_pages.py
	$(BIN)/python tools/run_notebooks.py

clean:
	rm -rf $(VENV) build dist mutants .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
