"""How the cases of the peer oracles are put to our components."""
