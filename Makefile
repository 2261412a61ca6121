# make quickstart   a small MosaicBERT from scratch, in minutes on a CPU
# make test         lint and tests (PYTHON=python3.12 for the other end of the support range;
#                   PYTEST_ARGS="tests/data -x" and the like are given to pytest)
# make docs         the documentation as a site, in site/
# make notebooks    runs notebooks/ on what the quickstart left, and stores them with what they show
# make gpu-bundle   what a GPU machine without a network needs to run `python -m benchmarks.gpu`
# make .venv-compile/installed    what `plan` and those tests need to compile for GPUs that aren't here

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
# One environment an interpreter: .venv for the default one.
VENV := .venv$(if $(filter-out python3,$(PYTHON)),-$(VERSION))
BIN := $(VENV)/bin
# The same packages, and what it takes to compile for GPUs that aren't here: JAX's CUDA plugin, which
# would complain in VENV at each start on a CPU, and NVIDIA's compiler.
COMPILE_VENV := $(VENV:.venv%=.venv-compile%)
export COMPILE_PYTHON ?= $(CURDIR)/$(COMPILE_VENV)/bin/python
# Says which package pip is at, on one line each: an installation takes minutes.
NAMES := sed -un 's/^Collecting \([A-Za-z0-9._-]*\).*/  \1/p'
# The tests and the quickstart run on a CPU wherever they are; training on GPUs does not go through here.
export JAX_PLATFORMS := cpu

DATA := runs/quickstart-data
RUN := runs/quickstart

.PHONY: quickstart docs notebooks gpu-bundle test pytest lint format clean

$(BIN)/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is Python $(VERSION); 3.11 or later is needed: make PYTHON=python3.12 ..."; exit 2; }
	@echo "Installing into $(VENV), for some minutes:"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check -e '.[embedded,dev]' | $(NAMES)
	@touch $@

# Not for the quickstart: they are large.
$(BIN)/torch-installed: $(BIN)/installed
	@echo "Installing Ray and PyTorch into $(VENV), for the tests"
	@$(BIN)/python -m pip install --disable-pip-version-check --retries 1 -e '.[cluster,torch]' | $(NAMES)
	@touch $@

$(COMPILE_VENV)/installed: $(BIN)/installed
	@echo "Installing into $(COMPILE_VENV)"
	@$(PYTHON) -m venv $(COMPILE_VENV)
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> $$($(COMPILE_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/venv.pth
	@jax=$$($(BIN)/python -c 'from importlib.metadata import version; print(version("jax"))') && \
		$(COMPILE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --retries 1 --no-deps \
		jax-cuda12-plugin==$$jax jax-cuda12-pjrt==$$jax nvidia-cuda-nvcc-cu12==12.9.86
	@touch $@

quickstart: $(BIN)/installed
	@$(BIN)/mosaicbert prepare --input embedded --output $(DATA) \
		--vocab-size 4096 --long-documents split
	@if $(BIN)/mosaicbert train --config=quickstart --workdir=$(RUN) --config.data.path=$(DATA); then \
		echo && $(BIN)/mosaicbert fill-mask $(RUN) --top 3 \
			"The [MASK] of the union is strong." \
			"He was born in [MASK] and died in 1890." \
			"The congress of the united [MASK] has passed the law." && \
		echo && \
		echo "The model, its checkpoints, metrics.jsonl and TensorBoard events lie in $(RUN), the data in $(DATA)." && \
		echo "Next, try a sentence of your own:" && \
		echo "  $(BIN)/mosaicbert fill-mask $(RUN) 'Peace is the [MASK] of all nations.'"; \
	elif [ $$? -eq 75 ]; then echo "make quickstart resumes it."; \
	else exit 2; fi

$(BIN)/docs-installed: $(BIN)/installed
	@echo "Installing MkDocs into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@

docs: $(BIN)/docs-installed
	@$(BIN)/python -m docs.config_reference docs/config.md
	@$(BIN)/python -m docs.layout docs/layout.svg
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The site is in site/: $(BIN)/python -m http.server --directory site"

notebooks: $(BIN)/torch-installed
	@test -d $(RUN)/checkpoints || { echo "error: there is no run in $(RUN): make quickstart"; exit 2; }
	@$(BIN)/python -m notebooks.execute

gpu-bundle:
	@bash launch/gpu_bundle.sh

# Offline, the tests that compile for GPUs, compare with PyTorch or start Ray are skipped, and say so.
test: lint pytest

pytest: $(BIN)/installed
	@$(MAKE) --no-print-directory $(BIN)/torch-installed || \
		echo "make: no Ray and no PyTorch; the tests that need them are skipped" >&2
	@$(MAKE) --no-print-directory $(COMPILE_VENV)/installed || \
		echo "make: no packages to compile for GPUs with; the tests that do are skipped" >&2
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(BIN)/installed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(BIN)/installed
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-* .gpu .mypy_cache runs site build *.egg-info
