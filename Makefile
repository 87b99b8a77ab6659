# `make demo` and `make test` each set up what they need in .venv and nowhere else.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test test-library slow bench peers lint docs wheel clean

install: .venv/.installed

# uv where it is there (much faster); plain venv and pip suffice.
.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is too old: invertjax needs Python 3.11 or newer; try make PYTHON=python3.12"; exit 2; }
	@if command -v uv >/dev/null 2>&1; then \
	  { test -x $(BIN)/python || uv venv --quiet --python $(PYTHON) .venv; } && \
	  uv pip install --quiet --python $(BIN)/python -e '.[test]'; \
	else \
	  { test -x $(BIN)/python || $(PYTHON) -m venv .venv; } && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'; \
	fi
	@touch $@

demo: install
	$(BIN)/python -m experiments.demo

test: install
	$(BIN)/python -m pytest -q -n auto --maxprocesses=8

# The library's own tests, by themselves.
test-library: install
	$(BIN)/python -m pytest -q -n auto --maxprocesses=8 tests/invertjax

slow: install
	$(BIN)/python -m pytest -q -m slow

# QUICK=1: the main cells within 6 minutes. PEERS=python: an environment with the peers.
PEERS ?= .venv-peers/bin/python
bench: install peers
	$(BIN)/python -m benchmarks --peers=$(PEERS) $(if $(QUICK),--quick)

# PyTorch and breaching, to measure against, apart from ours. Without them: no columns.
peers:
	@test -e .venv-peers/.installed || test "$(PEERS)" != .venv-peers/bin/python || \
	  { $(PYTHON) -m venv .venv-peers && \
	    $(PEERS) -m pip install --quiet --disable-pip-version-check \
	      torch==2.13.0 hydra-core scipy tqdm pillow && \
	    $(PEERS) -m pip install --quiet --disable-pip-version-check --no-deps \
	      torchvision==0.28.0 breaching==0.1.2 lpips && \
	    touch .venv-peers/.installed; } || \
	  echo "bench: the peers could not be installed (see above); going on without them"

lint: install
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip -q
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'ruff>=0.14' 'pyright>=1.1.400'
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# The site in build/docs. A warning is an error, such as a link within it that leads nowhere.
docs: install
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip -q
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "build/docs/index.html"

# The wheel holds the library alone, and imports with nothing but its own dependencies.
wheel:
	rm -rf dist build/wheel
	$(PYTHON) -m venv build/wheel
	build/wheel/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps -w dist .
	build/wheel/bin/python -m pip install --quiet --disable-pip-version-check dist/*.whl
	cd build && wheel/bin/python -c 'import invertjax; print("wheel", invertjax.__version__, invertjax.__file__)'
	@cd build && wheel/bin/python -c 'import importlib.metadata as m, re, sys; \
	  found = re.findall(r"\]\((?!https?:|#)[^)]*", m.metadata("invertjax")["Description"]); \
	  sys.exit(f"error: relative links in the README of the wheel: {found}" if found else 0)'

clean:
	rm -rf .venv .venv-peers build dist
