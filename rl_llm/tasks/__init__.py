"""Where problems come from: the built-in task, reasoning-gym, JSONL files; and the character tokenizer."""
