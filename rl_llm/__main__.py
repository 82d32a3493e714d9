"""`python -m rl_llm` is `rl-llm`."""

import sys

from rl_llm.cli import main

if __name__ == "__main__":
    sys.exit(main())
