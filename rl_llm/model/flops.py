"""Arithmetic of a forward pass, counted from the model's shape."""

from rl_llm.model.config import ModelConfig


def forward_flops(config: ModelConfig, tokens: float, context: float, logits: float | None = None) -> float:
    """Floating-point operations (2 per multiply-add) to read `tokens` tokens.

    Each token attends to `context` slots on average, in layers with a sliding window to at most the window. Only the
    experts that read a token count. `logits`: positions with logits (default: all). The backward pass costs twice as
    much again.
    """
    D, F, h, H, J = config.width, config.feed_forward, config.head_width, config.heads, config.kv_heads
    readers, router = (config.experts.per_token, D * config.experts.count) if config.experts else (1, 0)
    projections = D * h * (2 * H + 2 * J) + readers * 3 * D * F + router
    sliding, window = (len(config.sliding.layers), config.sliding.window) if config.sliding else (0, 0)
    seen = (config.layers - sliding) * context + sliding * min(context, window)
    head = config.vocabulary * D * (tokens if logits is None else logits)
    return 2.0 * (tokens * (config.layers * projections + 2 * H * h * seen) + head)
