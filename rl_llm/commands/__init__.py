"""The commands of `rl-llm`, one module each. `common.Command` states the interface of a module."""
