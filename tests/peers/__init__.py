"""Cases of the peer oracles as inputs of our components."""
