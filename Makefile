# Two commands matter: `make demo` and `make test`. Each sets up all it needs in .venv (Python 3.11, git and make are enough).
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
export PYTHONPATH := $(CURDIR)
export OMP_NUM_THREADS ?= 1
SCALE  ?= default

.PHONY: demo test test-all test-long test-oldest chaos bench experiments docs browser clean check notebooks export

demo: $(STAMP)
	OMP_NUM_THREADS=2 $(BIN)/dtir demo --scale $(SCALE) $(DEMO_FLAGS)

test: $(STAMP) check
	$(BIN)/python -m pytest -q tests -m "not slow and not long"
	$(BIN)/python -m pytest -q tests/test_gpu.py
	$(BIN)/python tools/ci_nbtest.py --n_workers 2

# and the promises of a long run that need launchers, several workers and minutes
test-all: test
	$(BIN)/python -m pytest -q tests -m slow --durations 5

# every page of the site in a browser, every foreign network, every Python, every kill point: an hour or two
test-long: $(STAMP)
	$(BIN)/python -m pytest -q tests -m long

# with the oldest versions that settings.ini allows, in an environment of its own
test-oldest:
	$(PYTHON) -m venv $(VENV)-oldest && $(PYTHON) tools/oldest.py > $(VENV)-oldest/oldest.txt
	$(VENV)-oldest/bin/pip install -q -c $(VENV)-oldest/oldest.txt -e '.[dev]'
	$(VENV)-oldest/bin/python -m pytest -q tests -m "not slow and not long"

# every way to break a run, at least KILLS times; cut off, it goes on; the table is kept in nbs/experiments/results/chaos.json
chaos: $(STAMP)
	CUDA_VISIBLE_DEVICES= $(BIN)/python tests/chaos.py --kills $(or $(KILLS),200)

# ours beside its rivals (the extra `bench`), fewer rounds; fails if a ratio is more than 15 % worse than the stored one. ROWS=quality,matching picks rows
bench: $(STAMP)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,bench]' || echo 'note: not all rivals could be installed; their rows are skipped'
	rm -rf runs/bench
	OMP_NUM_THREADS=1 $(BIN)/dtir bench --quick --out runs/bench --rows '$(ROWS)' --check nbs/experiments/results/benchmarks

# what the experiments have no record of yet, from the photographs in $DTIR_DATA; cut off, it goes on; ONLY="select a b sweeps", JOBS and MINUTES limit it
experiments: $(STAMP)
	$(BIN)/python -m dtir_nb.experiments.protocol --jobs $(or $(JOBS),1) $(if $(ONLY),--only $(ONLY)) $(if $(MINUTES),--minutes $(MINUTES))
	$(if $(ONLY)$(MINUTES),,$(BIN)/python -m dtir_nb.experiments.two_passes)
	$(if $(ONLY)$(MINUTES),,$(BIN)/python -m dtir_nb.experiments.one_clock)

check: $(STAMP)
	$(BIN)/python tools/check_sync.py
	$(BIN)/python tools/build_docs.py --check-readme
	$(BIN)/python tools/check_numbers.py

export: $(STAMP)
	$(BIN)/nbdev_export

notebooks: $(STAMP)
	$(BIN)/python tools/execnbs.py nbs/*.ipynb

docs: $(STAMP)
	@[ -d node_modules/katex ] || ! command -v npm >/dev/null || npm ci --no-audit --no-fund --silent || echo 'note: npm ci failed, formulas will stay TeX'
	$(BIN)/python tools/build_docs.py

browser:
	tools/install_browser.sh

$(STAMP): settings.ini setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-oldest runs build dist _docs _site_src _proc *.egg-info node_modules
	find . -name __pycache__ -prune -exec rm -rf {} +
