# Sourced at the checkout's root on every host: the locked environment, in .venv, and what the locked JAX wants for the
# accelerator, by the name of its extra: JAX_EXTRA, tpu if it is not set. A second start finds it done. The hosts' own
# Python may be too old (3.10 on TPU VMs); uv brings one.
python3 -m pip install --quiet "uv>=0.9" &&
    { test -x .venv/bin/python || python3 -m uv venv --quiet --python 3.12 .venv; } &&
    python3 -m uv pip install --quiet --python .venv/bin/python -r requirements/py312.lock &&
    python3 -m uv pip install --quiet --python .venv/bin/python --no-build-isolation --no-deps -e . &&
    python3 -m uv pip install --quiet --python .venv/bin/python \
        "jax[${JAX_EXTRA:-tpu}]==$(.venv/bin/python -c 'import jax; print(jax.__version__)')" &&
    . .venv/bin/activate
