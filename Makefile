# Everything runs in .venv, which is made on demand and never needs to be activated.
# PYTHON=/path/to/python chooses the interpreter it is made with.

.DEFAULT_GOAL := help
.PHONY: help quickstart studies test slow check lock

# Tried in this order. Each is run, not only looked up: a version manager may put names on PATH that do not work.
CANDIDATES := $(if $(PYTHON),"$(PYTHON)",python3.12 python3.11 python3.13 python3)

# Python code that prints the lock file of the interpreter it runs in, and nothing for an unsupported one.
LOCK_FILE := import ensurepip, sys, venv; version = sys.version_info[:2]; \
	print({(3, 11): "requirements/py311.lock"}.get(version, "requirements/py312.lock") \
	if (3, 11) <= version < (3, 14) else "")

# All but `tpu`, which only `make slow` and who has to do with TPUs needs.
EXTRAS := data dev slurm tasks

# A process for each core (at most four: each comes to take four gigabytes), which gets whole files of tests.
PARALLEL := -n logical --maxprocesses 4 --dist loadfile

help: ## list these targets
	@awk -F ': .*## |: ## ' '/^[a-z]+:.* ## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

quickstart: .venv/installed ## train the tiny model end to end; after an interruption it goes on where it was
	.venv/bin/rl-llm train experiments/quickstart.py --out runs/quickstart --resume

studies: .venv/installed ## run all studies of the paper at the scale of a CPU (hours; resumable), print their table
	.venv/bin/python experiments/studies.py

test: .venv/installed ## run the quick tests
	.venv/bin/python -m pytest $(PARALLEL)

# In the order of their names: files of few tests are not the short ones here, and would come last.
slow: .venv/installed .venv/tpu ## run the slow tests
	.venv/bin/python -m pytest $(PARALLEL) --no-loadscope-reorder -m slow

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

# The stamp is written last, so an interrupted installation is begun anew.
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

# The TPU compiler in the version that the installed JAX asks for. Without it, the tests that need it are skipped.
.venv/tpu: .venv/installed
	@if [ "$$(uname -sm)" != "Linux x86_64" ] || .venv/bin/python -m pip install --quiet --disable-pip-version-check \
	    "jax[tpu]==$$(.venv/bin/python -c 'from importlib.metadata import version; print(version("jax"))')"; \
	then touch .venv/tpu; else echo "Going on without the TPU compiler" >&2; fi
