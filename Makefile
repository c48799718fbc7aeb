# make demo    the terminal demo      make test    all tests      make help    the rest

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

BIN := .venv/bin
READY := .venv/ready
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))
PYTHON ?= $(shell for name in python3 python3.12 python3.11; do \
	$$name -c "$(FITS)" 2>/dev/null && echo $$name && break; done)
TRACE := $(firstword $(wildcard ../shared/data/azure-llm-conversation-2023.csv) examples/azure/sample.csv)

PINS := --quiet --build-deps-for editable --allow-unsafe --strip-extras --generate-hashes --no-header --no-annotate \
	--no-emit-index-url --no-emit-trusted-host --no-emit-find-links
DRILLS := tests/faults tests/docker/test_started.py tests/examples/demo/test_demo.py tests/test_walkthrough.py \
	$(addprefix tests/flows/,$(addsuffix .py,runtime/test_meeting meter/test_redis_under_load meter/test_rescale \
	runtime/test_upgrade))
EXTRAS := dodo flow kafka otel redis serve slack smtp webhook

.PHONY: help install demo test drills lint format types bench azure audit sbom constraints clean

help:  ## what there is to make
	@grep -hE '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## (.*)/\1\t\2/' | expand -t 14

install: $(READY)  ## the environment in .venv, from constraints.txt

demo: $(READY)  ## meters a made-up AI product, live; DEMO_SECONDS=60 ends it by itself
	@$(BIN)/python -m examples.demo

test: $(READY)  ## all tests but the drills, on all cores; ARGS="-k totals" for some
	$(BIN)/python -m pytest -q --numprocesses auto --dist worksteal $(addprefix --ignore=,$(DRILLS)) $(ARGS)

drills: $(READY)  ## kills, outages and changes of everything, the manifests, the walkthrough and the demo, as they run
	$(BIN)/python -m pytest -q --numprocesses auto --dist worksteal $(ARGS) $(DRILLS)

lint: $(READY)  ## ruff, and whether all is written as it formats it
	$(BIN)/ruff check . && $(BIN)/ruff format --check --quiet .

format: $(READY)  ## writes the code as ruff formats it
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

types: $(READY)  ## mypy, strict
	$(BIN)/mypy

bench: $(READY)  ## the measurements behind README's numbers, a few minutes
	$(BIN)/python -m benchmarks.run $(ARGS)

azure: $(READY)  ## meters a trace of LLM requests and counts it a second time
	$(BIN)/python -m examples.azure.run $(TRACE)

audit: $(READY)  ## dependencies against .ci/dependencies.toml: pins, licences, known vulnerabilities
	$(BIN)/python .ci/dependencies.py locked
	$(BIN)/python .ci/dependencies.py licenses
	$(BIN)/python .ci/dependencies.py vulnerabilities

sbom: $(READY)  ## build/sbom.json, what the image consists of, as CycloneDX
	$(BIN)/python .ci/dependencies.py sbom build/sbom.json

constraints:  ## pins constraints.txt and, for the image, constraints-run.txt anew, from pyproject.toml
	$(PYTHON) -m venv build/pip-tools
	build/pip-tools/bin/pip install --quiet 'pip-tools>=7.5'
	build/pip-tools/bin/pip-compile $(PINS) --upgrade --extra dev --output-file build/constraints.txt pyproject.toml
	build/pip-tools/bin/pip-compile $(PINS) $(addprefix --extra ,$(EXTRAS)) --constraint build/constraints.txt \
		--output-file build/constraints-run.txt pyproject.toml
	for name in constraints constraints-run; do \
		(head -2 $$name.txt && grep -Ev '^(#|$$)' build/$$name.txt) > build/$$name.new && mv build/$$name.new $$name.txt; \
	done

clean:  ## removes the environment, caches and the demo's folder
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis data/demo

$(READY): constraints.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: needs Python 3.11 or 3.12, as Bytewax has no wheels for others;" \
		"found none of python3, python3.12, python3.11. Name one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c "$(FITS)" || { echo "make: needs Python 3.11 or 3.12, got $$($(PYTHON) --version 2>&1)" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
