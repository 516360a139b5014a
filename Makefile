# make family   build the demo family under runs/tiny      make test    the test suite
# make setup    the virtual environment alone              make check   lint, format and types

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: family test check setup clean
.DELETE_ON_ERROR:

family: $(READY)
	$(BIN)/kinfolk build tiny --run runs/tiny

# One thread a process: the suite runs as many processes as there are cores.
test: $(READY)
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/pytest -n auto --dist worksteal

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(READY)

# torch comes first and pinned, so that nothing else can pull another build of it. The stamp is written last: an
# interrupted setup is begun again.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "kinfolk needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $(READY)

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
