"""How much arithmetic a model is: counted from its shape, so that time can be compared with what it must cost."""

from rl_llm.model.config import ModelConfig


def forward_flops(config: ModelConfig, tokens: float, context: float, logits: float | None = None) -> float:
    """Floating-point operations (2 per multiply-add) to read `tokens` tokens that attend to `context` slots each on
    average; in layers with a sliding window to no more than that. Of experts, those count that read a token.

    `logits`: positions whose logits are computed (default: all). The backward pass costs twice as much again.
    """
    D, F, h, H, J = config.width, config.feed_forward, config.head_width, config.heads, config.kv_heads
    readers, router = (config.experts.per_token, D * config.experts.count) if config.experts else (1, 0)
    projections = D * h * (2 * H + 2 * J) + readers * 3 * D * F + router
    sliding, window = (len(config.sliding.layers), config.sliding.window) if config.sliding else (0, 0)
    seen = (config.layers - sliding) * context + sliding * min(context, window)
    head = config.vocabulary * D * (tokens if logits is None else logits)
    return 2.0 * (tokens * (config.layers * projections + 2 * H * h * seen) + head)
