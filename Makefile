# make demo        score the phiX174 example with the bundled model and draw the picture
# make test        the tests that take seconds; `make test-slow` runs the others
# make check       everything a change must pass: lint, format, types, and make test
# make mutants     plant small faults, and see whether the tests that take seconds notice: 8 a module, or MUTANTS=all
# make clean       remove the virtual environment, results and caches

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --no-input --quiet --constraint constraints.txt
# Two processes of one thread each: torch's own threads only fight with pytest's workers.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2
MUTANTS := 8
SEED := 0

.PHONY: demo test test-slow check mutants clean

demo: $(VENV)/.installed-run
	$(BIN)/python examples/phix174/demo.py --out out/phix174

test: $(VENV)/.installed-test
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/.installed-test
	$(PYTEST) -m slow

check: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(MAKE) test

mutants: $(VENV)/.installed-mutants
	$(BIN)/python tests/mutants/run.py --mutants $(MUTANTS) --seed $(SEED)

clean:
	rm -rf $(VENV) out build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment is good until the requirements change.
$(VENV)/.installed-run: EXTRAS :=
$(VENV)/.installed-test: EXTRAS := [test]
$(VENV)/.installed-dev: EXTRAS := [dev]
$(VENV)/.installed-mutants: EXTRAS := [mutants]
$(VENV)/.installed-%: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing evo2$(EXTRAS) into $(VENV): a few minutes the first time"
	$(PIP_INSTALL) --editable '.$(EXTRAS)'
	@touch $@
