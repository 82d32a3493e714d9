"""RL of a language model on one page: a warm start on demonstrations, then Lite PPO (arXiv 2508.08221, section 5).

Run:    python experiments/one_page.py --seed 0     # sums modulo 5; docs/results.md has three seeds

Left out, and where it lives: 1. run folders, resume, reports: rl_llm/runs; 2. devices and processes: rl_llm/parallel;
3. graders that survive hostile answers: rl_llm/rewards; 4. micro-batches, critics, replay, staleness: rl_llm/update;
5. refusal of knobs that cannot act: rl_llm/experiment. A test holds this page's loss and gradient to rl_llm/train.py.
"""

import argparse
from functools import partial

import jax
import numpy as np

from rl_llm.algorithms import LITE_PPO, Algorithm
from rl_llm.learner.gradient import apply_gradient
from rl_llm.learner.optimizer import AdamW, Optimizer
from rl_llm.learner.train_step import MAXIMUM_LIKELIHOOD, make_batch, policy_loss
from rl_llm.model import ModelConfig, init
from rl_llm.prng import Purpose, generator, key
from rl_llm.problem import Problem
from rl_llm.rollout.text import decode_responses, encode_prompts, encode_responses
from rl_llm.sampler import Sampling, generate
from rl_llm.tasks.modular_sum import Demonstrations, ModularSum
from rl_llm.types import Rollout

N, K, P, T = 48, 8, 17, 48  # prompts per step, responses per prompt, tokens of a prompt and of a response
TASK = ModularSum(max_terms=8, modulus=5, demonstrations=Demonstrations(0.60, 0.10, 0.30))
TOKENIZER = TASK.tokenizer
MODEL = ModelConfig(TOKENIZER.vocab_size, width=96, layers=2, heads=4, kv_heads=2, head_width=32, feed_forward=256)
WARM_START = AdamW(3e-3, warmup_updates=50, schedule="cosine", final_fraction=0.1, beta2=0.99).build(800)
RL = AdamW(5e-4, warmup_updates=3, schedule="linear", final_fraction=0.1).build(48)
sample = jax.jit(partial(generate, MODEL, responses_per_prompt=K, max_tokens=T))


@partial(jax.jit, static_argnums=(0, 1))
def update(algorithm: Algorithm, optimizer: Optimizer, params: dict, opt_state: tuple, rollout: Rollout) -> tuple:
    """One optimizer update on a graded rollout: advantages and weights once, then the gradient of the policy loss."""
    batch, _ = make_batch(algorithm, rollout)
    value, gradient = jax.value_and_grad(lambda p: policy_loss(MODEL, algorithm, 1.0, None, p, batch)[0])(params)
    params, opt_state, _ = apply_gradient(optimizer, params, opt_state, gradient)
    return params, opt_state, value


def demonstrate(problems: list[Problem], draw: np.random.Generator) -> Rollout:
    """Demonstrations as a rollout with reward 1: maximum likelihood is the policy gradient with advantage 1."""
    tokens, mask = encode_responses(TOKENIZER, [TASK.demonstrate(problem, draw) for problem in problems], T, "T")
    ones, logp = np.ones(len(problems), np.float32), 0 * mask
    return Rollout(encode_prompts(TOKENIZER, problems, P), tokens, mask, ones < 0, logp, logp, logp, reward=ones)


def rollout_of(params: dict, problems: list[Problem], noise: jax.Array) -> Rollout:
    """Sample K responses to each problem and grade them."""
    rollout = sample(params, encode_prompts(TOKENIZER, problems, P), noise, Sampling(T).values(TOKENIZER.stop_ids))
    texts = decode_responses(TOKENIZER, rollout)
    return rollout.replace(reward=np.array([TASK.verify(problems[b // K], t) for b, t in enumerate(texts)], np.float32))


def main(seed: int) -> None:
    """Train from random parameters; prints held-out accuracy before and after RL."""
    train, held_out = TASK.problems("train", 8192, seed), TASK.problems("held_out", 240, seed)
    params = init(MODEL, key(seed, Purpose.PARAMETERS))
    for name, algorithm, optimizer in (("warm start", MAXIMUM_LIKELIHOOD, WARM_START), ("Lite PPO", LITE_PPO, RL)):
        opt_state = optimizer.init(params)
        for step in range(optimizer.updates):
            draw, noise = generator(seed, Purpose.PROMPT_ORDER, step), key(seed, Purpose.ROLLOUT, step)
            problems = [train[index] for index in draw.choice(len(train), N, replace=False)]
            rollout = demonstrate(problems, draw) if optimizer is WARM_START else rollout_of(params, problems, noise)
            params, opt_state, loss = update(algorithm, optimizer, params, opt_state, rollout)
            if step % (optimizer.updates // 16) == 0:
                print(f"{name} {step + 1}  loss {loss:.3f}  reward {rollout.reward.mean():.3f}", flush=True)
        parts = [rollout_of(params, held_out[i : i + N], key(seed, Purpose.EVALUATION)) for i in range(0, 240, N)]
        print(f"after {name}: held-out accuracy {np.mean([part.reward for part in parts]):.3f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    main(parser.parse_args().seed)
