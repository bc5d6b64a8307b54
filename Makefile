# `make demo` and `make test` set everything up by themselves in .venv; nothing outside this folder is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo

.PHONY: help demo test docs bench clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("tag2mask needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,docs]'
	touch $@

# The extras, and the libraries the tests compare with. pydensecrf2 is compiled on installation: without a C++ compiler those tests skip.
$(VENV)/.peers: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[clip,export,geotiff,huggingface,ray]' captum grad-cam torchcam
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt pydensecrf2 || echo "no C++ compiler: tests against pydensecrf2 will skip"
	touch $@

# Libraries of annotation tools need other versions of NumPy and OpenCV: tests run them in a separate environment.
$(VENV)/.annotation-tools: $(VENV)/.installed constraints-annotation-tools.txt
	$(PYTHON) -m venv $(VENV)/annotation-tools
	$(VENV)/annotation-tools/bin/pip install --quiet --disable-pip-version-check -c constraints-annotation-tools.txt datasets datumaro label-studio-sdk supervision || { echo "not installable here: tests with annotation tools' libraries will skip"; rm -rf $(VENV)/annotation-tools; }
	touch $@

demo: $(VENV)/.installed ## tags to masks on the embedded data set, in minutes: runs/demo/index.html
	$(BIN)/tag2mask run --config configs/demo.yaml --output $(DEMO)
	@echo 'done: $(DEMO)/metrics.json, and $(DEMO)/index.html to open in a browser'

test: $(VENV)/.installed $(VENV)/.peers $(VENV)/.annotation-tools docs ## ruff, mypy, pytest and the documentation's strict build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

docs: $(VENV)/.installed ## the documentation site: docs/site/index.html; every warning is an error
	$(BIN)/python docs/reference.py
	$(BIN)/zensical build --clean --strict --config-file docs/zensical.toml

bench: $(VENV)/.installed $(VENV)/.peers ## speed against the libraries everybody uses, as ratios; where a training step's time goes
	$(BIN)/python -m tests.benchmarks.bench_crf
	$(BIN)/python -m tests.benchmarks.bench_sec
	$(BIN)/python -m tests.benchmarks.bench_step
	$(BIN)/python -m tests.benchmarks.bench_networks
	$(BIN)/python -m tests.benchmarks.bench_affinity
	$(BIN)/python -m tests.benchmarks.bench_loader
	$(BIN)/python -m tests.benchmarks.bench_gradcam
	$(BIN)/python -m tests.benchmarks.bench_cache
	$(BIN)/python -m tests.benchmarks.bench_precision
	$(BIN)/python -m tests.benchmarks.bench_start

clean: ## remove the environment, the demo and the site
	rm -rf $(VENV) $(DEMO) docs/site docs/.cache
