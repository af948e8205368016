PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help venv demo test lint
help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

venv: $(VENV)/installed ## the virtual environment with everything installed

demo: venv ## distil the embedded teacher into a 4-call student, score it, compare it with the best solver: about ten minutes on two cores
	$(BIN)/hsivi train --nfe 4 --steps 100 --out demo/student
	$(BIN)/hsivi sample demo/student --nfe 4 --count 64 --grid demo/images.png
	$(BIN)/hsivi compare demo/student --nfe 4 --solvers $(DEMO_SOLVER) --recorded --json demo/report.json
	@echo "images: demo/images.png   table: demo/report.json"

DEMO_SOLVER ?= unipc-leading

test: venv ## the tests
	$(BIN)/python -m pytest

lint: venv ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
