# make demo    the terminal demo      make test    all tests      make help    the rest

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

BIN := .venv/bin
READY := .venv/ready
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))
PYTHON ?= $(shell for name in python3 python3.12 python3.11; do \
	$$name -c "$(FITS)" 2>/dev/null && echo $$name && break; done)
# Where only other Pythons are installed, uv fetches one.
MANAGED := build/python/ready
UV = UV_PYTHON_INSTALL_DIR=$(CURDIR)/build/python build/uv/bin/uv python
ENGINE = $(or $(PYTHON),$(shell $(UV) find --managed-python 3.12))
TRACE ?= examples/azure/sample.csv

PINS := --quiet --build-deps-for editable --allow-unsafe --strip-extras --generate-hashes --no-header --no-annotate \
	--no-emit-index-url --no-emit-trusted-host --no-emit-find-links
DRILLS := tests/faults tests/docker/test_started.py tests/examples/demo/test_demo.py tests/test_walkthrough.py \
	tests/test_tutorials.py $(addprefix tests/flows/,$(addsuffix .py,runtime/test_meeting runtime/test_upgrade \
	runtime/test_wrong_settings meter/test_redis_under_load meter/test_rescale))
EXTRAS := dodo flow kafka otel redis serve slack smtp webhook

.PHONY: help install check demo test drills lint format types docs bench azure audit sbom constraints clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## (.*)/\1\t\2/' | expand -t 14

install: $(READY)  ## create the environment in .venv from constraints.txt

check: lint types audit docs test drills  ## run what CI runs

demo: $(READY)  ## meter a made-up AI product, live; DEMO_SECONDS=60 ends it
	@$(BIN)/python -m examples.demo

test: $(READY)  ## run all tests but the drills, on all cores; ARGS="-k totals" selects
	$(BIN)/python -m pytest -q --numprocesses auto --dist worksteal $(addprefix --ignore=,$(DRILLS)) $(ARGS)

drills: $(READY)  ## run the long tests: kills, outages, changes, manifests, the Kafka tutorial, the demo
	$(BIN)/python -m pytest -q --numprocesses auto --dist worksteal $(ARGS) $(DRILLS)

lint: $(READY)  ## check the code with ruff: rules and format
	$(BIN)/ruff check . && $(BIN)/ruff format --check --quiet .

format: $(READY)  ## fix and format the code with ruff
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

types: $(READY)  ## check types with mypy, strict
	$(BIN)/mypy

docs: $(READY)  ## build the documentation into build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

bench: $(READY)  ## compare throughput, as in docs/benchmarks.md; takes minutes
	$(BIN)/python -m benchmarks.run $(ARGS)

azure: $(READY)  ## meter a trace of LLM requests (TRACE=file.csv) and count it a second time
	$(BIN)/python -m examples.azure.run $(TRACE)

audit: $(READY)  ## check dependencies against .ci/dependencies.toml: pins, licences, vulnerabilities
	$(BIN)/python .ci/dependencies.py locked
	$(BIN)/python .ci/dependencies.py licenses
	$(BIN)/python .ci/dependencies.py vulnerabilities

sbom: $(READY)  ## write build/sbom.json, the image's contents as CycloneDX
	$(BIN)/python .ci/dependencies.py sbom build/sbom.json

constraints: $(if $(PYTHON),,$(MANAGED))  ## pin what pyproject.toml adds and keep all other pins; UPGRADE=1 renews all
	$(ENGINE) -m venv build/pip-tools
	build/pip-tools/bin/pip install --quiet 'pip-tools>=7.5'
	$(if $(UPGRADE),,cp constraints.txt constraints-run.txt build/)
	build/pip-tools/bin/pip-compile $(PINS) $(if $(UPGRADE),--upgrade,--constraint constraints.txt) --extra dev \
		--output-file build/constraints.txt pyproject.toml
	build/pip-tools/bin/pip-compile $(PINS) $(addprefix --extra ,$(EXTRAS)) --constraint build/constraints.txt \
		--output-file build/constraints-run.txt pyproject.toml
	for name in constraints constraints-run; do \
		(head -2 $$name.txt && grep -Ev '^(#|$$)' build/$$name.txt) > build/$$name.new && mv build/$$name.new $$name.txt; \
	done

clean:  ## remove the environment, caches and the demo's folder
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis data/demo

$(READY): constraints.txt pyproject.toml $(if $(PYTHON),,$(MANAGED))
	@$(ENGINE) -c "$(FITS)" || { echo "make: needs Python 3.11 or 3.12, got $$($(ENGINE) --version 2>&1)" >&2; exit 1; }
	$(ENGINE) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(MANAGED):
	@echo "make: found no Python 3.11 or 3.12, and Bytewax has no wheels for others: fetching CPython 3.12 with uv" >&2
	@{ python3 -m venv build/uv && build/uv/bin/python -m pip install --quiet --disable-pip-version-check uv && \
		$(UV) install --no-bin 3.12; } || { echo "make: could not fetch CPython 3.12 with uv (see above)." \
		"Install Python 3.11 or 3.12 from your system or pyenv, and run make again; or name one:" \
		"make PYTHON=/path/to/python3.12; or set UV_PYTHON_INSTALL_MIRROR to a mirror that can be reached." >&2; exit 1; }
	@touch $@
