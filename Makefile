# `make demo` trains, exports and checks a small model; `make test` and `make lint` are what CI runs. See `make help`.

PYTHON ?= python3
UV ?= uv
DATA ?= data/shakespeare.txt

export TF_CPP_MIN_LOG_LEVEL ?= 3

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-interop lint bench bench-shakespeare lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

# Environments. The stamp is touched last, so that an interrupted installation is taken up again.

.venv/.installed: setup.py tfgpt/version.py requirements.lock
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[test,plots]'
	touch $@

.venv-interop/.installed: setup.py tfgpt/version.py requirements.lock requirements-interop.lock
	$(PYTHON) -m venv .venv-interop
	.venv-interop/bin/python -m pip install --quiet --disable-pip-version-check \
		-c requirements.lock -c requirements-interop.lock -e '.[test,plots,interop]'
	touch $@

demo: .venv/.installed ## train, export and check a small model, into build/demo
	.venv/bin/tfgpt demo --out build/demo

test: .venv/.installed ## run the tests and the examples in docstrings
	.venv/bin/python -m pytest -q -m "not interop"

test-interop: .venv-interop/.installed ## run the tests against PyTorch and transformers
	.venv-interop/bin/python -m pytest -q -m interop

lint: .venv/.installed ## check style and formatting
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

bench: bench-shakespeare ## run every benchmark

bench-shakespeare: .venv/.installed ## train on Shakespeare; DATA=path/to/input.txt
	.venv/bin/python benchmarks/shakespeare.py $(DATA)

# torch is pinned by hand, and its dependencies named by hand: resolving it would pull in those of its CUDA build, which
# a machine without a GPU need not have.
TORCH = torch==2.13.0
TORCH_NEEDS = filelock fsspec jinja2 'networkx>=2.5.1' 'setuptools>=77.0.3' 'sympy>=1.13.3' 'typing-extensions>=4.10.0'
COMPILE = $(UV) pip compile --quiet --universal --python-version 3.10 --no-header --no-emit-index-url

lock: ## resolve the lock files anew (needs uv); add UPGRADE=--upgrade for the newest versions
	$(COMPILE) $(UPGRADE) --extra test --extra plots --extra serving setup.py --output-file requirements.lock
	printf '%s\n' 'transformers>=5.0' $(TORCH_NEEDS) | \
		$(COMPILE) $(UPGRADE) --no-annotate --constraint requirements.lock - --output-file requirements-interop.lock
	printf '%s\n' '$(TORCH)' >> requirements-interop.lock

clean: ## remove what was built, but not the environments
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +
