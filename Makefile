# gradtrail: `make demo` and `make test` are all a newcomer needs; both set up what they use.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-all lint lock picture clean help bench-index bench-models bench-score bench-peers bench-fidelity bench-lineage bench-faults bench-audit bench-mutants bench-docs

help: ## what there is to run
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(READY): requirements.lock requirements-no-deps.lock pyproject.toml
	@echo "Setting up $(VENV) with $(PYTHON): a few minutes the first time, nothing after that."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps -r requirements-no-deps.lock
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --editable .
	@touch $(READY)

demo: $(READY) ## train, register, index and audit a real model; ends with a report to open
	@$(BIN)/gradtrail demo

test: TESTS ?= not slow and not ci
test: $(READY) ## the tests, in a few minutes
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder -m "$(TESTS)" --durations=8
	@echo "Tests passed. Next: make demo, or read docs/."

test-all: test ## the tests, then those of whole flows and processes, and the slow ones, one at a time
	@$(BIN)/python -m pytest -m "slow or ci" --durations=20

lint: $(READY) ## style, types, layers
	@.ci/lint

lock: $(READY) ## write requirements.lock anew from pyproject.toml
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/lock.sh

picture: $(READY) ## the README's picture, from the newest demo report
	@$(BIN)/python scripts/report_picture.py --width 1280 --height 1560 \
	  "$$($(BIN)/gradtrail report --json | $(BIN)/python -c 'import json, sys; print(json.load(sys.stdin)["html"])')" docs/report.png

bench-index: $(READY) ## race of indexing, against peers in an environment of their own
	@$(BIN)/python benchmarks/index.py

bench-models: $(READY) ## models that people bring: error and speed beside a loop of autograd; ten minutes
	@$(BIN)/python benchmarks/models.py

bench-score: $(READY) ## exact scoring, against a bare scan and a bare product
	@$(BIN)/python benchmarks/score.py

bench-peers: $(READY) ## our scores against those that peers compute now
	@$(BIN)/python benchmarks/peer_oracles.py

bench-fidelity: $(READY) ## fidelity, LDS and learned weights on four tasks, peers too; about an hour
	@$(BIN)/python benchmarks/measure_fidelity.py
	@$(BIN)/python benchmarks/document_fidelity.py

bench-lineage: $(READY) ## the ledger at ten million attributions, an hour or less; writes its part of docs/ledger.md
	@$(BIN)/python benchmarks/lineage.py
	@$(BIN)/python benchmarks/document_lineage.py

bench-faults: $(READY) ## flows killed at random moments, and what comes twice, late or goes away; half an hour or more
	@$(BIN)/python benchmarks/faults.py

bench-audit: $(READY) ## whole audits of up to 10,000 outputs: speed, memory, and what an empty run costs; eighteen minutes
	@$(BIN)/python benchmarks/audit.py

bench-mutants: $(READY) ## small faults in scoring, projection, chain and index table that tests notice; ten minutes, or more
	@$(BIN)/python benchmarks/mutants.py $(if $(COMMIT),--commit $(COMMIT))

bench-docs: $(READY) ## docs/benchmarks.md and its picture, from the results
	@$(BIN)/python benchmarks/document.py

clean: ## remove the demo's data and the environment
	rm -rf $(VENV) .gradtrail .cache
