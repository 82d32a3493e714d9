"""How much arithmetic a model is: counted from its shape, so that time can be compared with what it must cost."""

from rl_llm.model.config import ModelConfig


def forward_flops(config: ModelConfig, tokens: float, context: float, logits: float | None = None) -> float:
    """Floating-point operations (2 per multiply-add) to read `tokens` tokens that attend to `context` slots each on
    average.

    `logits`: positions whose logits are computed (default: all). The backward pass costs twice as much again.
    """
    D, F, h, H, J = config.width, config.feed_forward, config.head_width, config.heads, config.kv_heads
    projections = D * h * (2 * H + 2 * J) + 3 * D * F
    attention = 2 * H * h * context
    head = config.vocabulary * D * (tokens if logits is None else logits)
    return 2.0 * (config.layers * tokens * (projections + attention) + head)
