# The verbs of Statestream. `make demo` and `make test` need Python 3.11+ and make, nothing else.
#
#   PYTHON             the Python that makes .venv (python3, or the first python3.N that is new enough)
#   STATESTREAM_TORCH  where torch comes from: a wheel, an index, a requirement (torch==2.13.0)
#   ARGS               passed on by test, test-compose, chaos, bench, dist and demo

NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
  "$$p" -c '$(NEW_ENOUGH)' 2>/dev/null && { echo "$$p"; exit; }; done; echo python3)
ARGS ?=
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.statestream-installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-first test-second test-slow test-slow-first test-slow-second test-compose test-attacks attack fuzz bench chaos gpu simulate install stubs
.PHONY: lessons twins dist docs example-models scale clean
.PHONY: check check-format check-lint check-types check-layers check-stubs check-twins check-protos check-docs

help:
	@echo "make demo          train, export, serve, stream, crash, go on: the whole of it, in some minutes"
	@echo "make test          unit, protocol and end-to-end tests"
	@echo "make test-slow     tests that take longer: wheels into empty environments and the like"
	@echo "make test-compose  builds the images and runs the compose files, 500 sessions under faults"
	@echo "make test-attacks  hostile callers beside a victim, counted"
	@echo "make attack        the same, measured: the longest turn of the loop, the victim's steps"
	@echo "make fuzz          random input of every kind to real servers on both edges, ten minutes"
	@echo "make check         format, lint, types, layers, stubs, twins, protos and docs"
	@echo "make bench         measures, some 10 minutes; ARGS=--quick for one"
	@echo "make scale         measures costs here, compares a simulated fleet with real ones, asks it for large ones"
	@echo "make chaos         kills servers at random"
	@echo "make lessons       trains, measures and draws what docs/lessons shows, some three minutes"
	@echo "make example-models  trains the models in deploy/models anew; ARGS=--check writes nothing"
	@echo "make simulate      runs simulated schedules by seed; ARGS='--first 0 --seeds 1000'"
	@echo "make gpu           tests, a small chaos and the benchmark of devices on this machine's GPU"
	@echo "make docs          the docs as a site, into site/"
	@echo "make dist          wheels and source archives, their licences and SBOMs, into dist/"
	@echo "make install       makes .venv anew from constraints.txt"
	@echo "make stubs         generates the stubs from protos/"
	@echo "make twins         generates the synchronous client from the asyncio one"
	@echo "make clean         removes what was built, .venv too"

$(STAMP): constraints.txt requirements-dev.txt requirements-models.txt tools/setup_venv.py client/pyproject.toml server/pyproject.toml export/pyproject.toml
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
	  echo "Statestream needs Python 3.11 or newer and finds no '$(PYTHON)'; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) tools/setup_venv.py

install:
	@rm -f $(STAMP)
	@$(MAKE) --no-print-directory $(STAMP)

demo: $(STAMP)
	@$(RUN) demo/demo.py $(ARGS)

# Two runs at a time, one for each of the two processors that a small machine has; with ARGS one run of what they name.
QUICK := -m "not compose and not chaos and not slow and not attack"
FIRST := tests/client tests/compat tests/compliance tests/deploy tests/export tests/server/durability tests/server/models \
  tests/server/stores tests/server/upkeep
test: $(STAMP)
ifeq ($(strip $(ARGS)),)
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=line test-first test-second
else
	$(RUN) -m pytest $(QUICK) $(ARGS)
endif

test-first: $(STAMP)
	@$(RUN) -m pytest -q $(QUICK) $(FIRST)

test-second: $(STAMP)
	@$(RUN) -m pytest -q $(QUICK) $(FIRST:%=--ignore=%)

SLOW := -m "slow and not compose and not chaos and not attack"
test-slow: $(STAMP)
ifeq ($(strip $(ARGS)),)
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=line test-slow-first test-slow-second
else
	$(RUN) -m pytest $(SLOW) $(ARGS)
endif

test-slow-first: $(STAMP)
	@$(RUN) -m pytest -q $(SLOW) $(FIRST)

test-slow-second: $(STAMP)
	@$(RUN) -m pytest -q $(SLOW) $(FIRST:%=--ignore=%)

test-compose: $(STAMP)
	$(RUN) -m pytest -m compose tests/compose $(ARGS)

test-attacks: $(STAMP)
	$(RUN) -m pytest -m attack tests/attacks $(ARGS)

attack: $(STAMP)
	@$(RUN) -m tests.attacks $(ARGS)

# Every check runs, also after one has failed.
check: $(STAMP)
	@$(MAKE) --no-print-directory --keep-going check-format check-lint check-types check-layers check-stubs check-twins check-protos check-docs

check-format: $(STAMP)
	$(VENV)/bin/ruff format --check

check-lint: $(STAMP)
	$(VENV)/bin/ruff check

check-types: $(STAMP)
	$(VENV)/bin/mypy

check-layers: $(STAMP)
	$(VENV)/bin/lint-imports --no-cache

check-stubs: $(STAMP)
	$(RUN) tools/stubs.py --check

check-twins: $(STAMP)
	$(RUN) tools/twins.py --check

check-protos: $(STAMP)
	$(RUN) tools/lint_protos.py

# Every page, every link and anchor; some seconds.
check-docs: docs

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet

bench: $(STAMP)
	@$(RUN) -m benchmarks $(ARGS)

scale: $(STAMP)
	@$(RUN) -m benchmarks.scale $(ARGS)

CHAOS ?= tests/chaos tests/compat/test_node.py tests/model tests/server/durability
chaos: $(STAMP)
	$(RUN) -m pytest -m chaos $(CHAOS) $(ARGS)

# Two minutes; the same bytes each time on one machine.
example-models: $(STAMP)
	@$(RUN) tools/example_models.py $(ARGS)

# What servers hold afterwards is counted; a finding ends with status 1.
fuzz: $(STAMP)
	@$(RUN) -m tests.fuzz $(ARGS)

simulate: $(STAMP)
	@$(RUN) -m tests.simulation $(ARGS)

lessons: $(STAMP)
	@$(RUN) -m statestream_export.lessons --out docs/lessons $(ARGS)

# Ten minutes at most; docs/devices.md says what has to be installed.
gpu: $(STAMP)
	STATESTREAM_REQUIRE_GPU=1 $(RUN) -m pytest -q tests/server/models/test_cuda.py
	STATESTREAM_TEST_DEVICE=cuda STATESTREAM_CHAOS_SCALE=0.1 $(RUN) -m pytest -q -m chaos tests/chaos/test_kills.py -k sqlite
	$(RUN) -m benchmarks.device --device cuda $(ARGS)

stubs: $(STAMP)
	$(RUN) tools/stubs.py

twins: $(STAMP)
	$(RUN) tools/twins.py

dist: $(STAMP)
	@$(RUN) tools/dist.py $(ARGS)

clean:
	rm -rf $(VENV) examples/node/node_modules .demo site .pytest_cache .mypy_cache .ruff_cache .hypothesis .tools dist client/dist server/dist export/dist
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
