# Everything runs in .venv, which is created on demand and never needs to be activated.
# PYTHON=/path/to/python chooses its interpreter.

.DEFAULT_GOAL := help
.PHONY: help quickstart studies test slow nightly check lock

# Tried in this order. Each is run, because a version manager may put names on PATH that do not work.
CANDIDATES := $(if $(PYTHON),"$(PYTHON)",python3.12 python3.11 python3.13 python3)

# Python code that prints the lock file of its interpreter, and nothing if the interpreter is unsupported.
LOCK_FILE := import ensurepip, sys, venv; version = sys.version_info[:2]; \
	print({(3, 11): "requirements/py311.lock"}.get(version, "requirements/py312.lock") \
	if (3, 11) <= version < (3, 14) else "")

# The extras that quick tests need; `tpu` is one that only `make slow`, `make nightly` and work with TPUs need.
EXTRAS := data dev math slurm tasks

# One process per core runs whole files of tests. At most four: each grows to five gigabytes.
PARALLEL := -n logical --maxprocesses 4 --dist loadfile

help: ## list these targets
	@awk -F ': .*## |: ## ' '/^[a-z]+:.* ## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

quickstart: .venv/installed ## train the tiny model end to end; resumes after an interruption
	.venv/bin/rl-llm train experiments/quickstart.py --out runs/quickstart --resume

studies: .venv/installed ## run all studies of the paper at CPU scale (hours; resumable), print their table
	.venv/bin/python experiments/studies.py

test: .venv/installed ## run the quick tests (minutes)
	.venv/bin/python -m pytest $(PARALLEL)

# Files run in the order of their names: here, files with few tests are the long ones and must not come last.
slow: .venv/installed .venv/tpu ## run the slow tests, the rest of continuous integration
	.venv/bin/python -m pytest $(PARALLEL) --no-loadscope-reorder -m "slow and not nightly"

# Everything, compiled as users compile: without the cheap XLA_FLAGS of tests/conftest.py.
nightly: .venv/installed .venv/tpu ## run all tests, with those too long for continuous integration (hours)
	XLA_FLAGS= .venv/bin/python -m pytest $(PARALLEL) --no-loadscope-reorder -m "slow or not slow"

check: .venv/installed ## lint, and check format and types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

lock: ## rewrite the lock files after a change of pyproject.toml; UPGRADE=1 takes the newest versions
	$(or $(PYTHON),python3) -m venv .cache/lock
	.cache/lock/bin/python -m pip install --quiet "uv>=0.9"
	for version in 3.11 3.12; do \
	    .cache/lock/bin/uv pip compile pyproject.toml --quiet $(EXTRAS:%=--extra %) $(if $(UPGRADE),--upgrade) \
	        --python-version $$version --universal --fork-strategy fewest --generate-hashes --no-emit-index-url \
	        --custom-compile-command "make lock" -o requirements/py$${version%.*}$${version#*.}.lock || exit 1; \
	done

# The stamp is written last, so an interrupted installation starts over.
.venv/installed: requirements/py311.lock requirements/py312.lock
	@for python in $(CANDIDATES) ""; do \
	    if [ -z "$$python" ]; then \
	        echo "No working Python 3.11, 3.12 or 3.13 (with venv) among: $(CANDIDATES). Give one: make PYTHON=..." >&2; \
	        exit 1; \
	    fi; \
	    lock=$$("$$python" -c '$(LOCK_FILE)' 2>/dev/null) && [ -n "$$lock" ] && break; \
	done; \
	echo "Setting up .venv with $$("$$python" --version) from $$lock: a minute or two ..."; \
	"$$python" -m venv --clear .venv && \
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$$lock" && \
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e . && \
	touch .venv/installed

# The TPU compiler in the version that the installed JAX requires. Without it, tests that need it are skipped.
.venv/tpu: .venv/installed
	@if [ "$$(uname -sm)" != "Linux x86_64" ] || .venv/bin/python -m pip install --quiet --disable-pip-version-check \
	    "jax[tpu]==$$(.venv/bin/python -c 'from importlib.metadata import version; print(version("jax"))')"; \
	then touch .venv/tpu; else echo "Continuing without the TPU compiler" >&2; fi
