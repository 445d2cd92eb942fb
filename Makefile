# `make demo` trains, exports and checks a small model; `make test` and `make lint` are what CI runs. See `make help`.

PYTHON ?= python3
UV ?= uv
DATA ?= data/shakespeare.txt

export TF_CPP_MIN_LOG_LEVEL ?= 3

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-resume test-interop lint bench bench-shakespeare bench-generation bench-saved-model
.PHONY: bench-export bench-loading bench-training bench-serving bench-soak bench-peers lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

# Tests of a file share fixtures that take long to make; more processes than four would want much memory.
PARALLEL = --numprocesses=auto --maxprocesses=4 --dist=loadfile

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

# The neighbours of a release: Optimum, which wants an older transformers, OpenVINO and Transformers.js.
.venv-neighbours/.installed: requirements-neighbours.lock
	$(PYTHON) -m venv .venv-neighbours
	.venv-neighbours/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-neighbours.lock
	touch $@

tests/neighbours/node_modules/.installed: tests/neighbours/package.json tests/neighbours/package-lock.json
	@command -v npm >/dev/null || { echo 'npm is not on the PATH, expected Node 20 or newer with it' >&2; exit 1; }
	cd tests/neighbours && npm ci --loglevel=error
	touch $@

demo: .venv/.installed ## train, export and check a small model, into build/demo
	.venv/bin/tfgpt demo --out build/demo

test: .venv/.installed ## run the tests and the examples in docstrings
	.venv/bin/python -m pytest -q -m "not interop and not slow" $(PARALLEL)

test-resume: .venv/.installed ## kill a run 20 times at random points: every resume must be bit-exact (5 minutes)
	PYTHONPATH=. .venv/bin/python tests/resume/kill_and_resume.py $(SEED)

test-interop: .venv/.installed .venv-interop/.installed .venv-neighbours/.installed
test-interop: tests/neighbours/node_modules/.installed ## run the tests against other people's libraries, and slow ones
	.venv-interop/bin/python -m pytest -q -m "interop or slow" $(PARALLEL) --ignore=tests/neighbours
	.venv-neighbours/bin/python -m pytest -q tests/neighbours

lint: .venv/.installed ## check style and formatting
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

bench: bench-shakespeare bench-generation bench-export bench-loading bench-training ## run every benchmark

bench-shakespeare: .venv/.installed ## nanoGPT's recipe beside PyTorch; DATA=path/to/input.txt, PEER_PYTHON=..., RUNS=2
	.venv/bin/python benchmarks/shakespeare.py $(DATA) $(if $(PEER_PYTHON),--peer-python $(PEER_PYTHON)) \
		$(if $(RUNS),--runs $(RUNS))

# Peers' pins disagree with ours and with each other, so they live elsewhere: in what `make bench-peers` makes, or in
# environments of your own, PEER_PYTHONS="a/bin/python b/bin/python". Whoever is in none of them is left out.
PEER_PYTHONS ?= $(wildcard .venv-bench-a/bin/python .venv-bench-b/bin/python)
SIZE ?= gpt2
BENCH = --size $(SIZE) $(if $(ROUNDS),--rounds $(ROUNDS)) --peer-pythons $(PEER_PYTHONS)

bench-generation: .venv/.installed ## generation speed beside peers; SIZE=tiny to try it out, ROUNDS=3, PEER_PYTHONS=...
	.venv/bin/python -m benchmarks.generation $(BENCH)

bench-saved-model: .venv/.installed ## the SavedModel's loop beside keras-hub's generate, and where its time goes
	.venv/bin/python -m benchmarks.generation $(BENCH) --only "tfgpt SavedModel" keras-hub
	.venv/bin/python -m benchmarks.profile_saved_model --size $(SIZE)

bench-export: .venv/.installed ## ONNX export beside peers (Keras' takes 18 GB); SIZE=gpt2-xl for ours alone, ROUNDS=2
	.venv/bin/python -m benchmarks.export $(BENCH)

bench-loading: .venv/.installed ## loading from safetensors beside keras-hub and transformers; SIZE=gpt2-xl takes 6.2 GB of disk
	.venv/bin/python -m benchmarks.loading $(BENCH)

bench-training: .venv/.installed ## training speed beside peers; SHAPES="small gpt2 long", ROUNDS=2, PEER_PYTHONS=...
	.venv/bin/python -m benchmarks.training $(if $(SHAPES),--shapes $(SHAPES)) $(if $(ROUNDS),--rounds $(ROUNDS)) \
		--peer-pythons $(PEER_PYTHONS)

bench-serving: .venv/.installed ## a server under load, beside llama-cpp-python's; CLIENTS=16, ROUNDS=2, PEER_PYTHONS=...
	.venv/bin/python -m benchmarks.serving $(if $(CLIENTS),--clients $(CLIENTS)) $(if $(ROUNDS),--rounds $(ROUNDS)) \
		--peer-pythons $(PEER_PYTHONS)

bench-soak: .venv/.installed ## a server under load for minutes: texts, answers and memory; DURATION=300, CLIENTS=64
	.venv/bin/python -m benchmarks.soak $(if $(CLIENTS),--clients $(CLIENTS)) $(if $(DURATION),--seconds $(DURATION))

bench-peers: .venv-bench-a/.installed .venv-bench-b/.installed ## install the peers; llama.cpp compiles for minutes

# Without accelerate, Optimum stores the tied embedding twice.
.venv-bench-a/.installed: PEERS = transformers ctranslate2 'llama-cpp-python[server]' gguf safetensors
.venv-bench-b/.installed: PEERS = 'optimum-onnx[onnxruntime]' 'transformers<5' accelerate
.venv-bench-a/.installed .venv-bench-b/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH) $(PEERS)
	touch $@

# torch is pinned by hand, and its dependencies named by hand: resolving it would pull in those of its CUDA build, which
# a machine without a GPU need not have.
TORCH = torch==2.13.0
TORCH_NEEDS = filelock fsspec jinja2 'networkx>=2.5.1' 'setuptools>=77.0.3' 'sympy>=1.13.3' 'typing-extensions>=4.10.0'
COMPILE = $(UV) pip compile --quiet --universal --python-version 3.10 --no-header --no-emit-index-url

# Optimum needs torch too; <(…) is bash's.
lock: SHELL = bash
lock: ## resolve the lock files anew (needs uv); add UPGRADE=--upgrade for the newest versions
	$(COMPILE) $(UPGRADE) --extra test --extra plots --extra serving setup.py --output-file requirements.lock
	printf '%s\n' 'transformers>=5.0' 'tiktoken>=0.12' "schemathesis>=4.32; python_version >= '3.11'" $(TORCH_NEEDS) | \
		$(COMPILE) $(UPGRADE) --no-annotate --constraint requirements.lock - --output-file requirements-interop.lock
	printf '%s\n' '$(TORCH)' >> requirements-interop.lock
	printf '%s\n' 'optimum-onnx[onnxruntime]' 'transformers<5' openvino 'pytest>=8.3' $(TORCH_NEEDS) | \
		$(COMPILE) $(UPGRADE) --no-annotate --excludes <(echo torch) - --output-file requirements-neighbours.lock
	printf '%s\n' '$(TORCH)' >> requirements-neighbours.lock

clean: ## remove what was built, but not the environments
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +
