# The whole way from a fresh clone to the published book. `make help` lists the commands.

# Once installed, the environment's own interpreter goes on being used.
PYTHON ?= $(if $(wildcard $(STAMP)),$(BIN)/python,python3)
PRESET ?= cpu
ARGS ?=
PART ?=
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help book test reproduce outputs scorecard front address clean env assets

help:
	@echo "make book        execute every notebook, publish the book under _build/html"
	@echo "make test        run the tests and compare every notebook's stored outputs with a fresh run"
	@echo "make reproduce   measure the study again and compare with results/$(PRESET)"
	@echo "                 (PRESET=cpu is the default; ARGS=--accept replaces the stored results;"
	@echo "                 PART=ablations measures a named piece beyond the main plan: transfer, xstest, forced, along, chain, longer, rated)"
	@echo "make outputs     run notebooks again and store what they print: NOTEBOOKS=\"07 09\""
	@echo "make scorecard   write book/scorecard.md from the ledger of claims"
	@echo "make front       write the findings and the picture of the first page from results/cpu"
	@echo "make address     carry the address in _config.yml to every link and install cell"
	@echo "make clean       remove _build and caches; .venv and runs stay"
	@echo
	@echo "Each command sets up .venv first. Choose the interpreter with PYTHON=python3.12 (3.11 to 3.13)."

book: assets
	@$(BIN)/python book/build.py $(ARGS)

test: assets
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/python -m pytest --nbval $(ARGS)

reproduce: assets
	@$(BIN)/python -m safetylib.study.run --preset $(PRESET) $(if $(PART),--part $(PART)) $(ARGS)

outputs: assets
	@$(BIN)/python -m book.outputs $(NOTEBOOKS)

scorecard: env
	@$(BIN)/python book/scorecard.py

front: env
	@$(BIN)/python -m book.front

address: env
	@$(BIN)/python book/address.py

assets: env
	@$(BIN)/python -m safetylib.study.assets fetch

# The stamp holds what was installed (both files' checksums and the interpreter), is removed before an
# installation starts and written after it succeeded: an interrupted installation leaves none.
env:
	@set -e; \
	if ! command -v "$(PYTHON)" >/dev/null; then \
	  echo "$(PYTHON) was not found. Install Python 3.11, 3.12 or 3.13, or name one: make PYTHON=python3.12 ..." >&2; exit 1; fi; \
	version=$$("$(PYTHON)" -c 'import platform; print(platform.python_version())') || { \
	  echo "$(PYTHON) does not start. Name a Python 3.11, 3.12 or 3.13: make PYTHON=python3.12 ..." >&2; exit 1; }; \
	case $$version in 3.11.*|3.12.*|3.13.*) ;; *) \
	  echo "$(PYTHON) is Python $$version; the book needs 3.11, 3.12 or 3.13. Name one: make PYTHON=python3.12 ..." >&2; exit 1;; esac; \
	wanted="python $$version; $$(cat pyproject.toml constraints.txt | cksum)"; \
	if [ "$$(cat $(STAMP) 2>/dev/null)" = "$$wanted" ]; then exit 0; fi; \
	for tool in git cc; do command -v $$tool >/dev/null || \
	  echo "Note: $$tool was not found. If a step below fails, install it (Debian: git, build-essential; macOS: xcode-select --install)." >&2; done; \
	"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot create virtual environments. Install its venv module (Debian: python3-venv)." >&2; exit 1; }; \
	rm -f $(STAMP); \
	clear=--clear; \
	if [ "$$($(BIN)/python -c 'import pip, platform; print(platform.python_version())' 2>/dev/null)" = "$$version" ]; then clear=; fi; \
	echo "== Environment: $(VENV), Python $$version"; \
	"$(PYTHON)" -m venv $$clear $(VENV); \
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[book,test]" || { \
	  echo "The installation did not finish (see above). Run the same command again: what was downloaded is kept." >&2; exit 1; }; \
	echo "$$wanted" > $(STAMP).new && mv $(STAMP).new $(STAMP)

clean:
	rm -rf _build .pytest_cache .ruff_cache .hypothesis safetylib.egg-info
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
