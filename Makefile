# Two commands for a fresh machine: `make demo` and `make test`. Both make their own environment
# first (once; `make clean` removes it) and need Python 3.11 or newer and nothing else.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SAMPLE := docs/sample/dracula.pdf
DEMO := runs/dracula.sekv
PAGES := 1-31

.DEFAULT_GOAL := help
.PHONY: help install demo test check docs table table-of-needles table-of-questions clean

help:
	@echo "make demo   read three chapters of the sample book, ask three questions, look inside"
	@echo "make test   run the tests"
	@echo "make check  lint, formatting, types"
	@echo "make docs   write the generated pages anew"
	@echo "make table BOOKS=DIR   methods and rivals at four budgets, under an hour on two cores"
	@echo "make clean  remove the environment and everything made"

install: $(READY)

# The stamp is written last, so that an interrupted installation is done again.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sekv needs Python 3.11 or newer; name one with: make PYTHON=python3.11 ...")'
	@echo "making an environment in $(VENV), once; this takes a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)
	@mkdir -p $(dir $(DEMO))
	$(BIN)/sekv ingest $(SAMPLE) --pages $(PAGES) -o $(DEMO) --overwrite
	@echo
	$(BIN)/sekv ask $(DEMO) -f docs/sample/questions.txt
	$(BIN)/sekv inspect $(DEMO)

test: $(READY)
	$(BIN)/python -m pytest

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict

docs: $(READY)
	$(BIN)/python -m sekv_cli.reference > docs/cli.md
	$(BIN)/python -m sekv_cli.recipes > docs/recipes.md
	$(BIN)/python tests/support/models_page.py > docs/models.md
	$(BIN)/python -m sekv_cli.schemas docs/schemas

# Methods, presses and quantised caches on needles, the tasks of RULER that the default model can do
# with its full cache, and natural questions on the sample book: two runs side by side, each on a core
# of its own. Interrupted, it goes on where it was. SAMPLES=1 QUESTIONS=8 is a short one,
# METHODS=sekv,full,peers another choice. What is not installed is a line of the table that says
# what it needs.
TASKS := niah_single_2,niah_single_3,niah_multikey_1,niah_multivalue
METHODS ?= full,sekv,sekv-paper,sentencekv,compresskv,sentkvcompress,dynsplit,zoomr,streaming,snapkv,$(RIVALS)
RIVALS := transformers:quantized,transformers:quantized-2,kvpress:expectedattention,kvpress:keydiff,kvpress:snapkv
BUDGETS ?= 5%,10%,20%,30%
SAMPLES ?= 2
QUESTIONS ?= 16
SIZE ?= 1024
BENCH := OMP_NUM_THREADS=1 $(BIN)/sekv bench --method $(METHODS) --budget $(BUDGETS) --length $(SIZE)
table: $(READY)
	$(if $(BOOKS),,$(error name the folder of .txt books: make table BOOKS=DIR))
	$(MAKE) -j2 table-of-needles table-of-questions

table-of-needles:
	$(BENCH) --suite niah,ruler --text $(BOOKS) --task $(TASKS) --samples $(SAMPLES) --out runs/table

table-of-questions:
	$(BENCH) --suite qa --questions docs/questions/sample.jsonl --documents docs/sample \
		--samples $(QUESTIONS) --max-new-tokens 24 --out runs/table/qa

clean:
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find engine sekv_cli tests -name __pycache__ -type d -prune -exec rm -rf {} +
