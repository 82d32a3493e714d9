# Source this at the checkout's root on every host. It installs the locked environment into .venv, with JAX's extra for
# the accelerator: $JAX_EXTRA, or tpu if unset. Repeating it changes nothing. The host's Python may be too old (3.10 on
# TPU VMs), so uv installs one.
python3 -m pip install --quiet "uv>=0.9" &&
    { test -x .venv/bin/python || python3 -m uv venv --quiet --python 3.12 .venv; } &&
    python3 -m uv pip install --quiet --python .venv/bin/python -r requirements/py312.lock &&
    python3 -m uv pip install --quiet --python .venv/bin/python --no-build-isolation --no-deps -e . &&
    python3 -m uv pip install --quiet --python .venv/bin/python \
        "jax[${JAX_EXTRA:-tpu}]==$(.venv/bin/python -c 'import jax; print(jax.__version__)')" &&
    . .venv/bin/activate
