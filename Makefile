# make demo: every table and figure at demo scale; make test: lint and tests; make lint: lint alone.
PYTHON ?= python3
CORES ?= 2
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test lint

demo: .venv/installed
	snakemake --cores $(CORES)
	@echo "Open results/demo/report.html; tables and figures are beside it."

test: lint
	python -m pytest --numprocesses $(CORES) --dist loadfile --no-loadscope-reorder

lint: .venv/installed
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile workflow
	snakemake --lint

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	touch $@
