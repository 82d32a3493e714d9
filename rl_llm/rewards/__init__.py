"""How responses are scored: reward components, and the process pool that grades with them."""
