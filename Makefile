# Everything a newcomer, CI and an operator type. `make` alone lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FLEET := $(BIN)/fleet

.PHONY: help demo test check up down status bench chaos schema lock clean servers
.DEFAULT_GOAL := help

help:  ## this list
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): requirements.lock requirements-model.lock requirements-uv.lock pyproject.toml deploy/install
	@PYTHON="$(PYTHON)" VENV="$(VENV)" sh deploy/install
	@touch $@

demo: $(STAMP)  ## a question in, an answer out, a worker killed in between; Q="…" asks yours
	@$(FLEET) demo $(if $(Q),--question "$$Q")

test: $(STAMP) servers  ## the whole suite, on real servers, in two processes; ARGS="…" goes to one pytest
	@$(BIN)/python -m compileall -q shared workers tests
	@$(BIN)/python -m $(if $(ARGS),pytest -q $(ARGS),tests.side_by_side)

check: $(STAMP)  ## ruff, mypy, import contracts, house and unit tests: under a minute
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@told=$$($(BIN)/lint-imports --no-cache 2>&1) || { printf '%s\n' "$$told"; exit 1; }
	@told=$$(mktemp -d); trap 'rm -rf $$told' EXIT; trap 'exit 130' INT TERM; $(BIN)/mypy > $$told/types 2>&1 & types=$$!; \
	$(BIN)/python -m pytest -q -p no:cacheprovider tests/contract tests/property > $$told/beside 2>&1 & beside=$$!; \
	$(BIN)/python -m pytest -q tests/house tests/unit; tests=$$?; \
	wait $$beside; beside=$$?; wait $$types; types=$$?; cat $$told/beside $$told/types; exit $$((tests + beside + types))

chaos: $(STAMP) servers  ## the storm, the ledger's model, the database's nodes at length; CHAOS_SEED=N replays a storm
	@CHAOS=long $(BIN)/python -m pytest -q -s tests/chaos tests/integration/test_ledger_stateful.py \
	    tests/integration/test_db_causal.py tests/integration/test_db_failover.py $(ARGS)

up: $(STAMP) servers  ## the full topology on this machine, left running
	@$(FLEET) up --profile full

status: $(STAMP)  ## what runs, and whether it answers
	@$(FLEET) status

down: $(STAMP)  ## stop it
	@$(FLEET) down

bench: $(STAMP) servers  ## measure beside peers; NAME=noop|step|resume|growth|… runs one
	@$(BIN)/python -m tests.bench $(NAME)

schema: $(STAMP)  ## write the JSON Schemas of the task message and of the models' file anew
	@$(FLEET) schema > deploy/task-message.v1.schema.json
	@$(FLEET) llm schema > deploy/llm.v1.schema.json

lock:  ## resolve the dependencies anew (needs uv)
	@$(BIN)/uv pip compile pyproject.toml --all-extras --python-version 3.11 --only-binary :all: --generate-hashes --no-header --no-annotate -q -o requirements.lock

servers:
	@sh deploy/servers

clean: down  ## remove what was built and started here
	rm -rf $(VENV) .fleet
