# `make demo` and `make test` need only python3 (3.11 or later), make and a package registry.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test lint venv bench clean

demo: venv
	$(BIN)/retrograde train digits

# Threads that keep their processor while they wait would take it from the tests beside them.
test: venv
	OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist worksteal

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The peers have an environment of their own: JAX never enters the other.
bench: .venv-bench/.installed
	.venv-bench/bin/python -m benchmarks

.venv-bench/.installed: pyproject.toml constraints.txt benchmarks/constraints.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt -c benchmarks/constraints.txt -e '.[app,bench]'
	touch $@

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Retrograde needs Python 3.11 or later; this is %d.%d" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[app,dev]'
	touch $(STAMP)

clean:
	rm -rf .venv .venv-bench build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache
