# Two commands do all set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# `make bench CLEAN=speech/ NOISE=noise/` measures quality on folders of yours; without, on the demo recording.
.PHONY: demo test coverage lint bench docs clean

demo: $(VENV)/.installed
	$(BIN)/ppse demo

test: lint $(VENV)/.wheel
	$(PYTEST) --durations=10

# Which lines the tests reach; it takes half as long again as the tests alone.
coverage: $(VENV)/.test
	$(PYTEST) --cov --cov-report=term

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/mypy -p ppse

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/speed.py --out docs/speed.md
	$(BIN)/python benchmarks/quality.py $(if $(CLEAN),--clean $(CLEAN) --noise $(NOISE)) --out runs/$(if $(CLEAN),quality,demo).json

# Executes the tutorial, which takes minutes, and writes it as a page.
docs: $(VENV)/.docs
	$(BIN)/python docs/render.py

# The wheel, tried where no checkout shadows it.
$(VENV)/.wheel: $(VENV)/.test pyproject.toml $(wildcard ppse/*.py ppse/*/*.py models/*.py guides/*.py ppse/py.typed ppse/weights/* ppse/data/*)
	rm -rf build dist $(VENV)/wheel
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .
	$(PIP) --no-deps --target $(VENV)/wheel dist/ppse-*.whl
	cd $(VENV) && PYTHONPATH=wheel bin/python -P -c "import ppse.models, ppse.guides, ppse.cli; \
	assert 'wheel' in ppse.__file__, ppse.__file__; ppse.models.VAESpeech.pretrained(); print('wheel: imports outside the checkout')"
	touch $@

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	touch $@

$(VENV)/.test: $(VENV)/.installed
	$(PIP) -e '.[test]'
	touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(PIP) -e '.[docs]'
	touch $@

$(VENV)/.bench: $(VENV)/.installed
	$(PIP) -e '.[bench]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage
