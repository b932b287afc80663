# make setup   virtual environment in $(VENV) with the package, at the tested versions
# make dev     the same with what tests and checks need; `make test`, `make check`, ... do this themselves
# make demo    four processes answer a question about a private document (ARGS= goes to `mpcache demo`)
# make test    all tests in three processes (WORKERS=0: in one; ARGS= goes to pytest)
# make check   lint, format, strict types, generated files
# make reference   regenerate docs/commands.md
# make gates   measure every gate of every suite and regenerate docs/gates.md (a minute)
# make policies   regenerate the tables of docs/policies.md (minutes)
# make families   regenerate docs/families from the registry of model families (a minute)
# make published   regenerate the table of docs/bench.md beside published logs (seconds)
# make results   measure every table again into $(RESULTS) and fill the pages from it (an hour; SPU needs 1 GB, networks need root)
# make bench   measure what docs/costs.md shows (15 minutes on 2 cores, 16 GB), into $(RESULTS), and report on it
# make clean   remove the virtual environment and caches

SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
WORKERS ?= 3
RESULTS ?= results
CRYPTEN := crypten==0.4.1
BIN := $(abspath $(VENV))/bin
PIP := "$(BIN)/python" -m pip install --disable-pip-version-check --quiet
# A plain path entry, so that a folder named mpcache in which a program starts does not hide the package.
EDITABLE := -c constraints.txt --config-settings editable_mode=compat -e
STAMP := $(VENV)/.mpcache-installed
DEV_STAMP := $(VENV)/.mpcache-dev-installed

.PHONY: setup dev demo test check reference gates policies families published bench results clean
.DEFAULT_GOAL := setup

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not installed; install Python 3.11 or newer (Debian: apt install python3 python3-venv), or name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $$($(PYTHON) --version) is too old, 3.11 or newer is needed; name another one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "error: $$($(PYTHON) --version) has no module venv; install it (Debian: apt install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv "$(VENV)"
	$(PIP) $(EDITABLE) .
	$(PIP) --no-deps $(CRYPTEN)
	@touch "$@"

dev: $(DEV_STAMP)

$(DEV_STAMP): $(STAMP)
	$(PIP) --no-warn-conflicts $(EDITABLE) '.[dev]'
	@touch "$@"

demo: setup
	@"$(BIN)/mpcache" demo $(ARGS)

# Tests start many processes: compiled modules are kept, whatever the environment says.
test: export PYTHONDONTWRITEBYTECODE :=
test: dev
	"$(BIN)/python" -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

check: dev
	"$(BIN)/python" -m ruff check .
	"$(BIN)/python" -m ruff format --check .
	"$(BIN)/python" -m mypy --strict
	"$(BIN)/python" -m parties.wire.generate_stubs --check
	"$(BIN)/python" -m tests.tools.family_pages --check
	@"$(BIN)/typer" launch.cli.main utils docs --name mpcache | diff -B docs/commands.md - || { echo "docs/commands.md is out of date; run \`make reference\`" >&2; exit 1; }

reference: dev
	"$(BIN)/typer" launch.cli.main utils docs --name mpcache --output docs/commands.md

gates: setup
	"$(BIN)/mpcache" gates --markdown docs/gates.md $(ARGS)

policies: dev
	"$(BIN)/python" -m tests.tools.policy_page $(ARGS)

families: dev
	"$(BIN)/python" -m tests.tools.family_pages $(ARGS)

published: dev
	"$(BIN)/python" -m tests.tools.published_page $(ARGS)

bench: setup
	"$(BIN)/mpcache" bench --config docs/bench/costs.yaml --out $(RESULTS) $(ARGS)
	"$(BIN)/mpcache" report --results $(RESULTS) --out $(RESULTS)/report

results: setup
	"$(BIN)/mpcache" peers install
	set -e; for matrix in costs paper peers networks; do "$(BIN)/mpcache" bench --config docs/bench/$$matrix.yaml --out $(RESULTS); done
	set -e; for page in README.md docs/costs.md docs/choosing.md docs/bench.md docs/paper.md; do "$(BIN)/mpcache" report --results $(RESULTS) --fill $$page; done

clean:
	rm -rf "$(VENV)" build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
