# Sourced at the checkout's root on every host of a TPU VM slice: the locked environment, in .venv, and the TPU runtime
# in the version that the locked JAX asks for. A second start finds it done. The machines' own Python (3.10) is too old; uv brings one.
python3 -m pip install --quiet --user "uv>=0.9" &&
    { test -x .venv/bin/python || python3 -m uv venv --quiet --python 3.12 .venv; } &&
    python3 -m uv pip install --quiet --python .venv/bin/python -r requirements/py312.lock &&
    python3 -m uv pip install --quiet --python .venv/bin/python --no-build-isolation --no-deps -e . &&
    python3 -m uv pip install --quiet --python .venv/bin/python "jax[tpu]==$(.venv/bin/python -c 'import jax; print(jax.__version__)')" &&
    . .venv/bin/activate
