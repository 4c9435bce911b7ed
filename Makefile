# Vigil: the only entry point. `make` prints help.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
# Tools of the project come first; a Go or Node of the machine is never used.
export PATH := $(BIN):$(PATH)
export GOTOOLCHAIN := local
export GOFLAGS := -buildvcs=false
export PYTHONDONTWRITEBYTECODE :=

GO_SOURCES := $(shell find gateway-go -name '*.go' -o -name '*_gen.json' -o -name 'go.mod' -o -name 'go.sum' 2>/dev/null)

WEB_SOURCES := $(shell find gateway-go/web -path '*/node_modules' -prune -o -path '*/dist' -prune -o -type f -print 2>/dev/null)

.PHONY: help setup demo run test test-full bench bench-peers profile campaign coverage evidence generate check-generated lint clean models

help: ## this text
	@echo "Vigil: safety-grade model serving"
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

$(VENV)/.tools: requirements/tools.lock
	@echo "[1/5] Python environment"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "python3 -m venv failed; on Debian: apt install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/tools.lock
	@touch $@

$(VENV)/.packages: $(VENV)/.tools requirements/dev.lock sidecar/pyproject.toml safety/pyproject.toml gen/python/pyproject.toml
	@echo "[2/5] tools and libraries (Go, buf, Node, ONNX Runtime, ...), pinned by hash"
	@$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements/dev.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e sidecar -e safety -e gen/python
	@touch $@

build/.page: $(VENV)/.packages $(WEB_SOURCES)
	@echo "[3/5] operator's page (TypeScript)"
	@cd gateway-go/web && { cmp -s package-lock.json node_modules/.lock || { npm ci --silent --no-audit --no-fund && cp package-lock.json node_modules/.lock; }; }
	@cd gateway-go/web && npm run --silent build
	@mkdir -p build && touch $@

bin/.built: $(VENV)/.packages build/.page $(GO_SOURCES)
	@echo "[4/5] gateway and verifier (Go)"
	@mkdir -p bin
	@cd gateway-go && CGO_ENABLED=0 go build -trimpath -o ../bin/ ./cmd/...
	@touch $@

build/.models: $(VENV)/.packages tools/models.json requirements/models.lock tools/fetch_models.py
	@echo "[5/5] demonstration models and pictures"
	@$(BIN)/python tools/fetch_models.py
	@mkdir -p build && touch $@

setup: bin/.built build/.models ## set everything up inside this folder
	@echo "set up: $(VENV)/bin/vigil, bin/vigil-gateway, bin/auditverify"

demo: setup ## the main job on real input: detect, swap under load, kill, verify
	@$(BIN)/python -m demo.run

run: setup ## serve in the foreground (models/, var/)
	@exec $(BIN)/vigil up

test: setup ## every test and lint but the long runs
	@$(BIN)/python -m tests.run

test-full: setup ## the long runs too
	@$(BIN)/python -m tests.run --full

bench: setup ## ratios side by side in one run (BENCH_PARTS=growth,fairness: only those)
	@$(BIN)/python -m tests.bench.run

profile: setup ## where a call's processor time goes: flame graphs of both processes and a budget, in build/bench
	@$(BIN)/python -m tests.bench.profile

bench-peers: setup ## beside Triton and MLServer in one run, each in its own environment (downloads about 1 GB)
	@$(BIN)/python -m tests.bench.peers

campaign: setup ## inject every fault, 1,000 times each; the report goes to build/campaign (hours; ARGS=--quick: minutes)
	@$(BIN)/python -m tests.harness.injecting $(ARGS)

coverage: setup ## which code the tests within one process run; the figures go to build/coverage
	@$(BIN)/python tools/measure_coverage.py

build/evidence/.env: $(VENV)/.packages requirements/evidence.lock
	@mkdir -p build/evidence
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python build/evidence/env
	@$(BIN)/uv pip sync --quiet --python build/evidence/env/bin/python --require-hashes requirements/evidence.lock
	@touch $@

evidence: setup build/evidence/.env ## one static site of requirements, links, results, campaign: build/evidence/html (after make test)
	@$(BIN)/python tools/evidence.py
	@build/evidence/env/bin/python -m sphinx -q -b html build/evidence/source build/evidence/html
	@echo "build/evidence/html/index.html"

generate: $(VENV)/.packages ## write generated code and documents anew
	@bash tools/generate.sh

lint: setup ## every linter
	@$(BIN)/python -m tests.run --lint-only

clean: ## remove what was built (keeps models/ and var/)
	rm -rf build bin $(VENV) gateway-go/web/node_modules
	find gateway-go/web/dist -type f ! -name README.md -delete
