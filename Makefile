# make demo       sets everything up and runs the whole job offline, on a CPU, in a few minutes
# make test       sets up and passes the fast tests;  make test-slow: the long ones;  make test-chaos: twenty random kills
# make test-gpu   proves the installation on one GPU in a quarter of an hour, and writes build/gpu-results.json
# make study      the paper's main claims, small: about three hours on two cores, in any number of goes; writes docs/study/index.md
# make check      lint and the unit tests, in less than a minute
# make lint       ruff, mypy and the import contracts
# make reference  writes docs/reference/cli.md and manifest.md from the code
# make docs       builds the documentation site into build/site, and fails on any warning;  make docs-serve: shows it
#
# Needs Python 3.11, 3.12 or 3.13 and nothing else. Everything is installed into .venv, from constraints/cpu.txt.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV   ?= .venv
RUN    ?= runs/demo
BIN    := $(VENV)/bin
# The Python of an environment with lotlip-data[gpu,dev], for `make test-gpu`.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,python3)

.PHONY: setup demo study test test-slow test-chaos test-gpu check unit types lint reference docs docs-serve clean
.DELETE_ON_ERROR:

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints/cpu.txt tools/setup.sh tools/repair_torchvision.py
	PYTHON="$(PYTHON)" VENV="$(VENV)" bash tools/setup.sh
	touch $@

demo: setup
	$(BIN)/lotlip-data demo "$(RUN)"

study: setup
	$(BIN)/lotlip-data study runs/study --out docs

# One process per core. A module's tests stay in one process, so that they share its fixtures and one Ray cluster.
test: setup
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

test-slow: setup
	bash tools/browser.sh
	VENV="$(VENV)" bash tools/sentence_encoder.sh build/vendor/sentence-encoder
	$(BIN)/python -m pytest -m slow --numprocesses auto --maxprocesses 4 --dist loadfile --durations 40

test-chaos: setup
	$(BIN)/python -m pytest -s -m chaos

# Where a GPU is, the environment is the user's, with the extra `gpu`; `make setup` installs the CPU build of vLLM.
test-gpu:
	$(GPU_PYTHON) -m pytest tests/gpu -m gpu -v --timeout 900

# Lint and unit tests side by side: each takes about one core.
check: setup
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target lint unit

unit: setup
	$(BIN)/python -m pytest --quiet --unit

# mypy, import-linter and mkdocstrings read the packages under their import names, through links, as setuptools maps the
# top folders.
PACKAGES := captioners manifests pipeline synthetic training
TYPES    := build/types
types:
	mkdir -p $(TYPES)/lotlip_data
	for package in $(PACKAGES); do ln -sfn ../../../$$package $(TYPES)/lotlip_data/$$package; done

lint: setup types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p lotlip_data
	PYTHONPATH=$(TYPES) $(BIN)/lint-imports

reference: setup
	$(BIN)/python tools/docs_hooks.py

docs docs-serve: export NO_MKDOCS_2_WARNING := 1
docs: setup types
	bash tools/fetch_mermaid.sh build/vendor/mermaid.min.js
	$(BIN)/mkdocs build --strict

docs-serve: setup types
	bash tools/fetch_mermaid.sh build/vendor/mermaid.min.js
	$(BIN)/mkdocs serve

clean:
	rm -rf $(VENV) build dist *.egg-info
