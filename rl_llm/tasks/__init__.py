"""Sources of problems (the built-in task, reasoning-gym, JSONL files) and tokenizers."""
