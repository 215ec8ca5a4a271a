# Everything a user or CI does, one word each. `make help` lists it.
PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
BIN = $(VENV)/bin
TORCH = 'torch>=2.9' 'torchvision>=0.24' $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))

.DEFAULT_GOAL := help
.PHONY: help env dev quickstart reproduce-mnist reproduce-cifar10 reproduce-faces test faults docs audit lighthouse serve notebooks notebooks-lab bench clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 18
	@echo
	@echo 'Variables: PYTHON=$(PYTHON) (3.10 or newer)  VENV=$(VENV)'
	@echo '           TORCH_INDEX=https://download.pytorch.org/whl/cpu  takes the small CPU build of torch'

$(VENV)/.env: settings.ini setup.py
	@$(PYTHON) -c 'import sys; sys.exit("Python %d.%d is too old: 3.10 or newer is needed; name another with PYTHON=python3.11" % sys.version_info[:2] if sys.version_info < (3, 10) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -U pip setuptools wheel
	$(BIN)/pip install -q $(TORCH)
	$(BIN)/pip install -q -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.env
	$(BIN)/pip install -q -e '.[dev]'
	@touch $@

env: $(VENV)/.env  ## Make the environment and install the package
dev: $(VENV)/.dev  ## The same, with what it takes to run the notebooks, the tests and the site

quickstart: env  ## Train on 5,000 digits, draw, judge: a few minutes on 2 CPU cores
	$(BIN)/diffusion-train configs/quickstart.yaml

reproduce-mnist: env  ## Train the two MNIST networks of the package anew, hours on a CPU, and measure whether they are as good
	$(BIN)/python tools/mnist.py train
	$(BIN)/python tools/mnist.py check

reproduce-cifar10: env  ## Train the CIFAR-10 network of the package anew, hours on a CPU, and measure whether it is as good
	$(BIN)/python tools/cifar10.py train
	$(BIN)/python tools/cifar10.py check

reproduce-faces: env  ## Make the data set of faces, train their network anew, hours on a CPU, and measure whether it is as good
	$(BIN)/pip install -q -e '.[faces]'
	$(BIN)/python tools/faces_network.py train
	$(BIN)/python tools/faces_network.py check

test: dev  ## Sync, what a reader sees, plain English, staleness of pages and stored results, every chapter, the equation ledger, pytest; some of it as on an older processor
	$(BIN)/python tools/check.py
	$(BIN)/python tools/reading.py
	$(BIN)/python tools/english.py
	$(BIN)/python tools/exported.py --check
	$(BIN)/python tools/colab.py --check
	$(BIN)/python tools/run_nbs.py --check
	$(BIN)/python tools/trainings.py --check
	$(BIN)/python tools/provenance.py --check
	$(BIN)/python tools/ledger.py --check
	OMP_NUM_THREADS=1 $(BIN)/python tools/run_nbs.py --test --workers 2
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal tests
	ATEN_CPU_CAPABILITY=default OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m any_processor tests

faults: dev  ## Try the faults that a run must survive, and write the table of them that the book shows
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m fault --faults nbs/assets/faults.json tests

docs: dev  ## Build the site in _site, strictly: with Quarto where it is installed, else in pure Python
	$(BIN)/python tools/reading.py
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tools/build_docs.py --strict

audit:  ## Look at the built site in Chromium, wide and narrow, light and dark: what is cut off, axe-core, other hosts
	npm install --silent --no-audit --no-fund --prefix .audit playwright-core@1.65 axe-core@4.14
	NODE_MODULES=.audit/node_modules node tools/audit.mjs _site

serve:  ## Look at the site on http://127.0.0.1:8000
	$(PYTHON) -m http.server 8000 --bind 127.0.0.1 --directory _site

lighthouse:  ## Measure the built site as a phone and a desktop load it: needs node, npm and Chrome
	npm install --silent --no-save --prefix .cache/node lighthouse@12 chrome-launcher@1
	NODE_MODULES=.cache/node/node_modules node tools/lighthouse.mjs _site

notebooks: dev  ## Export the library, run every chapter and store its outputs
	$(BIN)/nbdev_export
	$(BIN)/python tools/exported.py
	$(BIN)/python tools/trainings.py
	$(BIN)/python tools/run_nbs.py
	$(BIN)/python tools/build_docs.py --readme

notebooks-lab: dev  ## Install JupyterLab and open the notebooks in it
	$(BIN)/pip install -q -e '.[lab]'
	$(BIN)/python -m jupyterlab nbs

bench: dev  ## Measure speed beside bare networks and diffusers, and write the pages in benchmarks/
	$(BIN)/python benchmarks/trainer.py
	$(BIN)/python benchmarks/loading.py
	$(BIN)/python benchmarks/networks.py
	$(BIN)/python benchmarks/solvers.py
	$(BIN)/python benchmarks/faces.py
	$(BIN)/python benchmarks/busy.py
	$(BIN)/python benchmarks/gpu.py

clean:  ## Remove what was built (not runs/, not the environment)
	rm -rf _site _docs _proc .audit nbs/nbdev.yml nbs/.last_checked
