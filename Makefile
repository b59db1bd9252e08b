# Every target sets up its own virtual environment first; nothing but Python 3.11+ and make is needed.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint types bench cookbook report clean

demo: $(INSTALLED)  ## the main job on the embedded model
	$(BIN)/mara demo

test: $(INSTALLED)  ## all tests
	$(BIN)/python -m pytest

lint: $(INSTALLED)  ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)  ## mypy, strict
	$(BIN)/mypy

bench: $(INSTALLED)  ## speed and memory, as ratios
	$(BIN)/python benchmarks/decoding.py
	$(BIN)/python benchmarks/serving.py throughput
	$(BIN)/python benchmarks/serving.py prefix
	$(BIN)/python benchmarks/serving.py stress
	$(BIN)/python benchmarks/labelling.py speed
	$(BIN)/python benchmarks/fitting.py speed
	$(BIN)/python benchmarks/alignment.py table
	$(BIN)/python benchmarks/alignment.py ablation
	$(BIN)/python benchmarks/reinforcement.py steps
	$(BIN)/python benchmarks/reinforcement.py curves

cookbook: $(INSTALLED)  ## runs the notebooks, and draws the README's picture from real decisions
	$(BIN)/python cookbook/how_it_works.py
	$(BIN)/jupyter execute --inplace --timeout 1800 cookbook/*.ipynb

report: $(INSTALLED)  ## compares systems on the embedded model: cookbook/report/report.html
	$(BIN)/python cookbook/report.py

clean:  ## removes what the other targets made
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The constraints name the versions that are tested. torch is constrained as ==2.13.0, so that a
# local CPU wheel of that version is preferred where pip knows one.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[training,plot,test,dev]'
	touch $(INSTALLED)
