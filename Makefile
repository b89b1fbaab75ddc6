# Every target does its own set-up on a machine with Python 3.10 or newer; a second call finds it done.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check
LISTS := pyproject.toml requirements.txt tests/constraints.txt
# torch comes first and alone, so that nothing that follows chooses another one.
TORCH := $(shell sed -n 's/^\(torch==.*\)$$/\1/p' tests/constraints.txt)

.PHONY: quickstart test lint format bench pico nodes clean

quickstart: $(VENV)/.quickstart
	$(BIN)/lora-atelier quickstart $(ARGS)

test: $(VENV)/.test
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 $(ARGS)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tests/typecheck.py

format: $(VENV)/.lint
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

# Small versions, a minute each; all at full size (8 GB of memory, an hour): make bench ARGS=--check
bench: $(VENV)/.test
	for script in bench/[!_]*.py; do $(BIN)/python "$$script" $(or $(ARGS),--quick) || exit 1; done

pico: $(VENV)/.test
	$(BIN)/python -m lora_atelier.pico.make $(ARGS)

nodes: $(VENV)/.test
	$(BIN)/python tests/golden/update.py

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache

$(VENV)/.torch:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'Python 3.10 or newer is needed: make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) $(TORCH)
	touch $@

$(VENV)/.quickstart: $(VENV)/.torch $(LISTS)
	$(INSTALL) -c tests/constraints.txt -e ".[headless,tagger]"
	touch $@

$(VENV)/.test: $(VENV)/.quickstart
	$(INSTALL) -c tests/constraints.txt -e ".[headless,tagger,test]"
	touch $@

$(VENV)/.lint: $(VENV)/.test
	$(INSTALL) -c tests/constraints.txt -e ".[dev]"
	touch $@
