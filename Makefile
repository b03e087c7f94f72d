# Two commands do everything, their own set-up included: `make figures` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# What runs two at a time leaves each half of the cores.
HALF = OMP_NUM_THREADS=$$((($$(getconf _NPROCESSORS_ONLN) + 1) / 2))

.PHONY: figures tables gpu test fuzz lab lint docs lock help

help:
	@echo "make figures   regenerate every figure into figures/output/ (ten minutes on two quick cores, twenty on slow ones)"
	@echo "make tables    regenerate the measured tables: 64 images and more, speed and memory"
	@echo "make gpu       on a machine with a GPU: speed and memory in Stable Diffusion 1.5's geometry (run again to go on)"
	@echo "make test      run the tests, notebooks included"
	@echo "make fuzz      2,000 calls with a spoilt argument; SEED=1 and so on for others"
	@echo "make lab       open JupyterLab on notebooks/"
	@echo "make lint      check style"
	@echo "make docs      the public API as pages: docs/index.html"

# The environment is made once, and again only when what it is made from changes.
.venv/.installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"Python 3.11 or newer is needed, this is {sys.version}"'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing the pinned packages into .venv (once; a few minutes)"
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps -e .
	touch $@

# A line each when it is done; all that it said where it fails.
figures: .venv/.installed
	@ls figures/fig*.py | MPLBACKEND=Agg $(HALF) xargs -P 2 -I{} sh -c ' \
	  start=$$(date +%s); log=$$(mktemp); $(BIN)/python {} > $$log 2>&1 || { cat $$log; exit 255; }; \
	  echo "$$(($$(date +%s) - start)) s: $$(tail -n 1 $$log)"; rm $$log'

tables: .venv/.installed
	@echo "from nothing, tab09, tab10 and tab12 take hours each; tab07 to tab13 go on where they were stopped"
	@$(BIN)/python figures/tab12_choosing.py --dry-run | sed 's/^/tab12, /'
	@set -e; for script in figures/tab*.py; do start=$$(date +%s); echo "== $$script"; \
	  $(BIN)/python $$script; echo "== $$script: $$(($$(date +%s) - start)) s"; done

gpu: .venv/.installed
	$(BIN)/python figures/gpu01_speed.py

test: .venv/.installed
	$(HALF) $(BIN)/python -m pytest -n 2 --dist load --maxschedchunk 4 --durations 50 --durations-min 10

SEED ?= 0
fuzz: .venv/.installed
	$(BIN)/python tests/fuzz.py --count 2000 --seed $(SEED)

lab: .venv/.installed
	$(BIN)/jupyter lab notebooks

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: .venv/.installed
	$(BIN)/pdoc --math --docformat google -o docs fcs_lab $(patsubst %,fcs_lab.%,algorithm baselines probes study diagnosis \
	  sensitivity features metrics plots widgets pipelines families forecast data images zoo)

# After a change of dependencies: every pin anew. Torch is pinned by version alone, so that a CPU, a CUDA or a Mac
# build satisfies it; what only its CUDA build needs is left to pip. Soup Sieve 3 wants Python 3.11.5; Debian 12 has 3.11.2.
lock:
	rm -rf .lock-venv && $(PYTHON) -m venv .lock-venv
	.lock-venv/bin/python -m pip install --quiet $$(sed -n 's/^torch==\([^+]*\).*/torch==\1/p' requirements.lock) -e '.[dev,study]' 'soupsieve<3'
	.lock-venv/bin/python -m pip freeze --exclude-editable --exclude pip --exclude setuptools \
	  | sed 's/^\(torch==[^+]*\)+.*/\1/' | grep -v -i -E '^(nvidia|cuda|triton)' > requirements.lock
	rm -rf .lock-venv
