# Every target is one command that you could type. `make` alone lists them.
.DEFAULT_GOAL := help
PYTHON ?= python3
TORCH_INDEX ?=
ARGS ?=
BENCH ?= data bd_lru causal_conv cross_entropy epoch models inference
GPU_TESTS := $(addprefix tests/ops/test_,fused.py scan.py parallel.py conv_triton.py on_device.py)
GPU_TESTS += tests/ops/test_dropout.py::test_on_the_gpu_it_is_the_dropout_of_torch
BIN := .venv/bin
export PYTHONUNBUFFERED := 1

# Settings of train.py on the command line of make: `make ablations data=amazon-beauty seed=1`.
OURS := PYTHON TORCH_INDEX BIN ARGS BENCH RUNS
given = $(findstring command line,$(origin $(1)))
SETTINGS = $(foreach v,$(filter-out $(OURS),$(.VARIABLES)),$(if $(call given,$(v)),'$(v)=$($(v))'))
RUNS ?=
ifneq ($(strip $(SETTINGS)),)
ifneq ($(MAKECMDGOALS),ablations)
$(error $(strip $(SETTINGS)): `make ablations` alone takes settings; to others give ARGS="..." \
(`make` lists them))
endif
endif

.PHONY: help setup demo ablations table1 table2 table3 table4 table5 figures report
.PHONY: test test-slow test-all test-gpu lint bench bench-gpu clean clean-data

help: ## this list
	@grep -hE '^[a-z0-9 -]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9 -]+):.*## (.*)/\1|\2/' | awk -F'|' '{printf "  make %-13s %s\n", $$1, $$2}'

setup: .venv/ready ## virtual environment .venv with everything (TORCH_INDEX=url: where torch comes from)

.venv/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(grep '^torch>' requirements.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

demo: .venv/ready ## train RecBLR on the synthetic log and compare it with floors and ceiling (2 minutes)
	$(BIN)/python train.py data=synthetic model=recblr trainer.max_epochs=10 logger=csv overwrite=true $(ARGS)

ablations: .venv/ready ## Table 3: RecBLR with one part left out (data=amazon-beauty and other settings)
	$(BIN)/python train.py experiment=table3 $(if $(call given,data),,data=synthetic) $(SETTINGS) $(ARGS)

table1 table2 table3 table4 table5: .venv/ready ## a table of the paper from the files in results/, or from RUNS=runs
	$(BIN)/python -m recblr.report $@ $(RUNS) $(ARGS)

figures: .venv/ready ## its figures, from the same
	$(BIN)/python -m recblr.report figures $(RUNS) $(ARGS)

report: .venv/ready ## write RESULTS.md from the files in results/
	$(BIN)/python -m recblr.report page $(ARGS)

test: .venv/ready ## fast tests, on two processes
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile $(ARGS)

test-slow: .venv/ready ## the slow tests alone, on two processes
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile $(ARGS)

test-all: test test-slow ## both

lint: .venv/ready ## ruff and pyright
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright

test-gpu: ## ops and model on a CUDA device (PYTHON=python3 with torch, triton and pytest; no .venv)
	@$(PYTHON) -c 'import torch; torch.cuda.is_available() or exit("test-gpu: no CUDA device here")'
	PYTHONPATH=src $(PYTHON) -m pytest -o addopts= $(GPU_TESTS) $(ARGS)

bench-gpu: ## measure the kernels on a CUDA device (PYTHON=python3 with torch and triton; no .venv)
	PYTHONPATH=src $(PYTHON) benchmarks/bench_gpu.py $(ARGS)

bench: .venv/ready ## measure, and write results/speed.csv (BENCH=data: that one alone)
	for name in $(BENCH); do $(BIN)/python benchmarks/bench_$$name.py $(ARGS) || exit; done

clean-data: ## remove prepared logs (data/cache), keep downloads
	rm -rf data/cache

clean: ## remove runs/ and caches, keep .venv
	rm -rf runs .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
