# Everything that is done with this repository. `make help` is its documentation; CI runs the same targets.

PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest
WORK := .work
WORKERS ?= $(shell nproc)
SOURCES := src tests bench scripts

.DEFAULT_GOAL := help
.PHONY: help setup dev demo test check lint guest golden fmt docs blocking bench soak sizes coverage serve lock clean

help: ## show this
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## */\1\t/' | expand -t 12

setup: ## install what running serai needs: Debian packages, .venv
	@scripts/setup

dev: ## install what working on serai needs as well
	@scripts/setup --dev

demo: ## from nothing to a running guest and back, step by step (3 minutes, then 20 s)
	@begun=$$(date +%s.%N) && scripts/setup && SERAI_DEMO_BEGUN=$$begun $(PYTHON) scripts/demo.py

test: dev ## all tests (14 to 15 minutes on two cores)
	@$(PYTEST) -n $(WORKERS) --dist worksteal tests

check: dev ## format, lint, types, dead code, layers, sizes, docs, unit and wire (2 minutes at most)
	@$(PYTEST) -n $(WORKERS) --dist worksteal tests/habits tests/unit tests/wire

lint: dev ## format, lint, types, dead code only
	@$(PYTEST) -q -n $(WORKERS) tests/habits/test_lint.py

guest: dev ## tests with real guests only; PYTEST_ARGS="-k stop --sit" passes options
	@$(PYTEST) tests/guest $(PYTEST_ARGS)

golden: dev ## write the golden files and made pages anew, to be looked at in the diff
	@SERAI_GOLDEN=write $(PYTEST) -q tests/habits tests/unit tests/wire

fmt: dev ## format the source, mend what can be mended
	@.venv/bin/ruff check --quiet --fix $(SOURCES) || true
	@.venv/bin/ruff format $(SOURCES)

docs: dev ## make the pages of docs/ that come from the program
	@SERAI_GOLDEN=write $(PYTEST) -q tests/habits/test_docs.py tests/unit/test_cli_reference.py tests/wire/test_api_description.py

blocking: dev ## make the blocking SDK of the async one
	@$(PYTHON) scripts/make_blocking.py

bench: dev ## measure against bare QEMU and libvirt, write docs/benchmarks.md (some minutes)
	@PYTHONPATH=tests/guest $(PYTHON) -m bench

soak: dev ## 1,000 cycles, killed daemons, stopped guests, a full disk: what leaks, what is lost
	@PYTHONPATH=tests/guest $(PYTHON) -m bench.soak

sizes: dev ## the longest files and functions
	@$(PYTHON) tests/habits/sizes.py

coverage: dev ## all tests once more, and what they did not run (half an hour)
	@rm -rf $(WORK)/coverage && mkdir -p $(WORK)/coverage
	@status=0; $(PYTHON) -m coverage run -m pytest -n $(WORKERS) --dist worksteal tests || status=$$?; \
	    $(PYTHON) -m coverage combine --quiet --keep $(WORK)/coverage && $(PYTHON) -m coverage report; exit $$status

serve: setup ## a daemon in the foreground, in .work/home
	@mkdir -p $(WORK)/home && SERAI_HOME=$(CURDIR)/$(WORK)/home .venv/bin/serai daemon run

lock: dev ## write the lock files anew from pyproject.toml
	@scripts/lock

clean: ## remove what can be made again; no guest is touched
	@rm -rf $(WORK)/coverage $(WORK)/cache $(WORK)/failures .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	@find $(SOURCES) -name __pycache__ -prune -exec rm -rf {} +
