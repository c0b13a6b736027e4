# make demo       sets everything up and runs the whole job offline, on a CPU, in a few minutes
# make test       sets up and passes the fast tests;  make test-slow: the long ones;  make test-chaos: twenty random kills
# make study      the paper's tables and figures, small: four hours on two cores, in any number of goes; writes docs/study.md
# make lint       ruff, mypy and the import contracts
#
# Needs Python 3.11 and nothing else. Everything is installed into .venv, from constraints/cpu.txt.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
RUN    ?= runs/demo
BIN    := $(VENV)/bin

.PHONY: setup demo study test test-slow test-chaos lint clean
.DELETE_ON_ERROR:

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints/cpu.txt tools/setup.sh tools/repair_torchvision.py
	PYTHON="$(PYTHON)" VENV="$(VENV)" bash tools/setup.sh
	touch $@

demo: setup
	$(BIN)/lotlip-data demo "$(RUN)"

study: setup
	$(BIN)/lotlip-data study runs/study --out docs

test: setup
	$(BIN)/python -m pytest

test-slow: setup
	bash tools/browser.sh
	$(BIN)/python -m pytest -m slow

test-chaos: setup
	$(BIN)/python -m pytest -s -m chaos

# mypy and import-linter read the packages under their import names, through links, as setuptools maps the top folders.
PACKAGES := captioners manifests pipeline synthetic training
TYPES    := build/types
lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p $(TYPES)/lotlip_data
	for package in $(PACKAGES); do ln -sfn ../../../$$package $(TYPES)/lotlip_data/$$package; done
	$(BIN)/mypy -p lotlip_data
	PYTHONPATH=$(TYPES) $(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist *.egg-info
