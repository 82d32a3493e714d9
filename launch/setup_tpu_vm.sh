# Sourced at the checkout's root on every host of a TPU VM slice: the locked environment, in .venv. A second start finds
# it done. The machines' own Python (3.10) is too old; uv brings one.
python3 -m pip install --quiet --user "uv>=0.9" &&
    { test -x .venv/bin/python || python3 -m uv venv --quiet --python 3.12 .venv; } &&
    python3 -m uv pip install --quiet --python .venv/bin/python -r requirements/py312.lock &&
    python3 -m uv pip install --quiet --python .venv/bin/python --no-build-isolation --no-deps -e . &&
    . .venv/bin/activate
