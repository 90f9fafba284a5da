# 'make' alone explains the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:
MAKEFLAGS += --no-print-directory

VENV ?= .venv
# The environment of 'make test-ros'.
VENV_ROS ?= .venv-ros
# The environment of 'make docs'.
VENV_DOCS ?= .venv-docs
# What this machine is for; installed from requirements/. A robot alone: make venv ROLES=robot (or robot-gpu).
# Empty: what the environment was made with, and what the target needs.
ROLES ?=
# Test processes.
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
# More arguments, for pytest and for the commands.
ARGS ?=

# Draws the same pixels on every machine, with or without a GPU. On a GPU, MUJOCO_GL=egl is faster.
MUJOCO_GL ?= osmesa
export MUJOCO_GL
# Empty, or an index with CPU builds of torch and the like.
export PIP_ARGS ?=

PYTHON_BIN := $(VENV)/bin/python
# A test that hangs is a failure with its name and the stacks of its threads. (A worker that is started again would hang.)
PYTEST := -n $(JOBS) --dist loadfile --max-worker-restart 0 -o faulthandler_timeout=900 -o faulthandler_exit_on_timeout=true
# A test process is one thread: several of them share the cores, and numbers do not depend on how many there are.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 NUMEXPR_NUM_THREADS=1

.PHONY: help
help: ## Explain the targets (this text)
	@printf 'usage: make <target> [VENV=.venv] [ARGS="..."]\n\n'
	awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  \033[1m%-20s\033[0m %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	printf '\nEach makes its own virtual environment in $(VENV) first, when it is missing or requirements/ changed.\n'

# What these targets need; an environment made for a GPU keeps its robot-gpu.
demo pretrained test test-ros lint check format fuzz benchmark-tabletop: export ALSO := robot train sim dev

.PHONY: demo
demo: venv rendering ## Everything once: collect, train, export, evaluate, serve, report.html
	@$(VENV)/bin/m2distill demo $(ARGS)

.PHONY: pretrained
pretrained: venv rendering ## Train the pretrained policy again and replace it (runs/pretrained; ten minutes)
	@$(VENV)/bin/m2distill demo --out runs/pretrained $(ARGS)
	rm -rf m2distill_policy/pretrained/tabletop
	cp -r runs/pretrained/m2distill/bundles/stage_2 m2distill_policy/pretrained/tabletop
	$(VENV)/bin/m2distill info m2distill_policy/pretrained/tabletop

.PHONY: test
test: venv rendering ## Run the tests, those that need ROS 2 too where it is or its wheels are (make test-ros)
	@bash scripts/libero_loader.sh "$(VENV)"
	$(ONE_THREAD) bash scripts/test.sh "$(PYTHON_BIN)" "$(VENV_ROS)" $(PYTEST) $(ARGS)

.PHONY: test-ros
test-ros: venv rendering ## Run the tests that need ROS 2: on the one that is sourced, or on its wheels in .venv-ros
	@$(ONE_THREAD) bash scripts/test_ros.sh "$(VENV_ROS)" "$(PYTHON_BIN)" $(PYTEST) $(ARGS)

.PHONY: lint
lint: venv ## Lint, formatting and types, without the tests
	@$(PYTHON_BIN) -m ruff check .
	$(PYTHON_BIN) -m ruff format --check --quiet . || { echo "some files are not formatted: make format" >&2; exit 1; }
	$(PYTHON_BIN) -m mypy

.PHONY: check
check: lint test ## Everything a change must pass: lint, formatting, types, tests

.PHONY: format
format: venv ## Format the code and sort the imports
	@$(PYTHON_BIN) -m ruff check --quiet --fix --exit-zero .
	$(PYTHON_BIN) -m ruff format .

# The input to test, seconds for each, and how many at once; see tests/fuzz/__main__.py.
DOOR ?=
SECONDS ?= 900
.PHONY: fuzz
fuzz: venv ## Send bad inputs to every interface: DOOR=bundle SECONDS=900 JOBS=2 (findings: runs/fuzz)
	@case "$(or $(DOOR),ros)" in *ros*) export M2DISTILL_FUZZ_ROS; M2DISTILL_FUZZ_ROS=$$(bash scripts/ros_env.sh "$(VENV_ROS)" "$(PYTHON_BIN)") || true;; esac
	$(ONE_THREAD) $(PYTHON_BIN) -m tests.fuzz $(DOOR:%=--door %) --seconds $(SECONDS) --jobs $(JOBS) $(ARGS)

.PHONY: benchmark-tabletop
benchmark-tabletop: venv rendering ## The figures: 5 tasks, 3 seeds, every strategy (hours to days; resumable)
	@$(PYTHON_BIN) -m benchmarks.tabletop $(ARGS)

.PHONY: docs
docs: ## Build the documentation website: site/index.html
	@bash scripts/venv.sh "$(VENV_DOCS)" docs
	NO_MKDOCS_2_WARNING=1 "$(VENV_DOCS)/bin/python" -m mkdocs build --quiet $(ARGS)
	echo "open $(CURDIR)/site/index.html"

.PHONY: doctor
doctor: venv ## What this machine can do, and how to get what is missing
	@$(VENV)/bin/m2distill doctor $(ARGS)

.PHONY: venv
venv: ## Make or update the virtual environment (ROLES="robot train sim dev")
	@bash scripts/venv.sh "$(VENV)" $(ROLES)

.PHONY: rendering
rendering: ## Install the library for drawing without a screen, or say how
	@bash scripts/rendering.sh

.PHONY: clean
clean: ## Remove the virtual environment and caches; what was learned (runs/) stays
	@rm -rf "$(VENV)" "$(VENV_ROS)" "$(VENV_DOCS)" site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +
