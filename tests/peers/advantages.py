"""Our components on the cases of peers' advantages, returns, reward shaping and filters."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peers.case import Case, Given, batch
from rl_llm.algorithms.advantage import GPG, OPO, RLOO, BestOfGroup, Normalize, ReMax
from rl_llm.algorithms.filters import DifficultyWindow
from rl_llm.algorithms.moments import Moments, mean, no_moments, update, variance
from rl_llm.algorithms.returns import GAE, RewardToGo
from rl_llm.algorithms.shaping import KLInReward, SoftOverlong, WhitenRewards
from rl_llm.algorithms.whitening import GDPO, ClipAdvantage, Whiten
from rl_llm.evaluation.statistics import pass_at

Outputs = Mapping[str, np.ndarray]

apply = jax.jit(lambda component, batch: component(batch), static_argnums=0)
including = jax.jit(update)
returns_of = jax.jit(lambda component, batch: component.returns(batch), static_argnums=0)


def named(case: Case, start: str) -> np.ndarray:
    """Input with a name that starts with `start`."""
    (name,) = (name for name in case.entry["inputs"] if name.startswith(start))
    return case.input(name)


def on_tokens(case: Case, output: str, ours: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Our values at tokens and the peer's at padding, where peers keep arbitrary values."""
    return np.where(mask > 0, ours, case.output(output))


def responses(case: Case, component: Any, moments: Moments | None = None) -> np.ndarray:
    """Advantage f32[B] of a component for the case's rewards, stored group by group."""
    reward = named(case, "reward_")
    per_prompt = case.params.get("num_generations") or case.params.get("n_sample") or case.responses_per_group
    source = batch(np.ones((len(reward), 1)), per_prompt, reward=reward)
    return np.asarray(apply(component, replace(source, moments=moments)))[:, 0]


# verl: rewards at tokens, groups by an index in any order


def verl(component: Callable[[Case], Any]) -> Callable[[Case], Outputs]:
    def match(case: Case) -> Outputs:
        groups = named(case, "index") if "index" in str(case.entry["inputs"]) else np.arange(len(case.input("mask")))
        rows = np.argsort(groups, kind="stable")
        fields = {"reward": named(case, "token_reward").sum(axis=1)[rows]}
        if case.has("greedy_baseline"):
            fields["greedy_reward"] = case.input("greedy_baseline")[rows]
        source = batch(case.input("mask")[rows], int(np.sum(groups == groups[0])), **fields)
        ours = {"advantages": apply(component(case), source)}
        if "returns" in case.entry["outputs"]:
            ours["returns"] = returns_of(RewardToGo(), source)
        return {name: np.asarray(value)[np.argsort(rows)] for name, value in ours.items()}

    return match


def verl_grpo(case: Case) -> Normalize:
    if not case.params["norm_adv_by_std_in_grpo"]:
        return Normalize(std="none")
    return Normalize(eps=case.params["epsilon"])


def verl_best_of_group(case: Case) -> BestOfGroup:
    if not case.params["norm_adv_by_std_in_grpo"]:
        return BestOfGroup(std="none")
    return BestOfGroup(eps=case.params["epsilon"])


def verl_tokens(component: Callable[[Case], Any]) -> Callable[[Case], Outputs]:
    """Advantages from token rewards, whitened over tokens; only tokens are compared, as the notes say."""

    def match(case: Case) -> Outputs:
        mask = named(case, "mask")
        fields = {"value": case.input("values")} if case.has("values") else {}
        source = batch(mask, 1, token_reward=named(case, "token_reward"), **fields)
        white = Whiten(component(case))
        ours = {"advantages": apply(white, source), "returns": returns_of(white, source)}
        return {name: on_tokens(case, name, value, mask) for name, value in ours.items()}

    return match


def verl_whiten(case: Case) -> Outputs:
    values, mask = case.input("loss_mat"), case.input("mask")
    source = batch(mask, 1, advantage=values, token_reward=values)
    kept = apply(WhitenRewards(keep_mean=True), source).token_reward
    return {
        "whitened": on_tokens(case, "whitened", apply(Whiten(Given()), source), mask),
        "whitened_noshift": on_tokens(case, "whitened_noshift", kept, mask),
        "mean": mean(values, mask).reshape(()),
        "var": variance(values, mask, ddof=1).reshape(()),
    }


def verl_rewards(case: Case) -> Outputs:
    """The peer does not mask padding, so every position is a token here."""
    rewards = named(case, "token_reward")
    source = batch(
        np.ones_like(rewards), 1, token_reward=rewards, old_logp=case.input("old_logp"), ref_logp=case.input("ref_logp")
    )
    return {"rewards": apply(KLInReward(case.params["kl_ratio"]), source).token_reward}


def soft_overlong(capped: bool) -> Callable[[Case], Outputs]:
    def match(case: Case) -> Outputs:
        lengths = case.input("overlong_lengths")
        mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.float32)
        shape = SoftOverlong(case.params["max_len"], case.params["buffer"], case.params.get("factor", 1.0), capped)
        return {"penalty": apply(shape, batch(mask, 1)).reward}

    return match


# ROLL


def roll_reward_norm(case: Case) -> Outputs:
    mean_of, std_of = (case.params[f"norm_{name}_type"] or "none" for name in ("mean", "std"))
    component = Normalize(mean=mean_of, std=std_of)
    if not component.needs:
        return {"reward": responses(case, component)}
    moments = no_moments()
    for rewards in (*case.input("running_batches"), named(case, "reward_")):
        moments = including(moments, rewards)
    return {"reward": responses(case, component, moments)}


def roll_group_reward_norm(case: Case) -> Outputs:
    if not case.params["div_std"]:
        component = Normalize(std="none")
    elif case.params["div_std_global"]:
        component = Normalize(std="batch", std_of="centred")
    else:
        component = Normalize()
    return {"reward": responses(case, component)}


def roll_moments(case: Case) -> Outputs:
    rows, so_far = [], no_moments()
    for rewards in case.input("running_batches"):
        alone, so_far = (including(moments, rewards) for moments in (no_moments(), so_far))
        rows.append([alone.mean, alone.std(1), so_far.mean, so_far.std(1)])
    return {"stats": np.array(rows)}


def roll_estimate(case: Case) -> Outputs:
    """ROLL's estimators see no mask: padding counts as tokens, and the critic's values there are used."""
    rewards = named(case, "token_reward")
    fields = {"value": named(case, "values")} if "values" in str(case.entry["inputs"]) else {}
    source = batch(np.ones_like(rewards), 1, token_reward=rewards, **fields)
    gamma = case.params["gamma"]
    component = GAE(gamma, case.params["lambd"]) if fields else RewardToGo(gamma)
    ours = {"advantages": apply(component, source), "returns": returns_of(component, source)}
    return {name: value for name, value in ours.items() if name in case.entry["outputs"]}


def roll_advantage(case: Case) -> Outputs:
    """Estimate without a mask, as above; rewards and advantages are whitened with it."""
    params, mask = case.params, case.input("mask")
    source = batch(mask, 1, token_reward=named(case, "token_reward"), value=case.input("values"))
    if params["whiten_rewards"]:
        source = apply(WhitenRewards(), source)
    gae = params["adv_estimator"] == "gae"
    component = GAE(params["gamma"], params["lambd"]) if gae else RewardToGo(params["gamma"])
    unmasked = replace(source, mask=jnp.ones_like(source.mask))
    around: Any = Given()
    if params["whiten_advantages"]:
        around = Whiten(around)
    if params["advantage_clip"] is not None:
        around = ClipAdvantage(around, params["advantage_clip"])
    advantages = apply(around, replace(source, advantage=apply(component, unmasked)))
    return {"advantages": advantages, "returns": returns_of(component, unmasked)}


def roll_difficulty(case: Case) -> Outputs:
    reward = named(case, "reward_")
    window = DifficultyWindow(case.params["low_threshold"], case.params["high_threshold"])
    source = batch(np.ones((len(reward), 1)), case.params["n_sample"], reward=reward)
    return {"mask": apply(window, source)}


# OpenRLHF: subtract the baseline from the reward, then the KL, then sum rewards to returns

OPENRLHF_OUTCOMES = {
    "rloo": RLOO(),
    "reinforce_baseline": Normalize(std="none"),
    "dr_grpo": Normalize(std="none"),
    "group_norm": Normalize(eps=1e-9),
    "reinforce": None,
}


def openrlhf(case: Case) -> Outputs:
    params, mask, estimator = case.params, case.input("mask"), case.params["estimator"]
    source = batch(
        mask,
        case.responses_per_group,
        reward=named(case, "reward_"),
        value=case.input("values"),
        old_logp=case.input("old_logp"),
        ref_logp=case.input("ref_logp"),
    )
    if params["kl_coef"] > 0:
        source = apply(KLInReward(params["kl_coef"]), source)
    if estimator == "gae":
        component: Any = GAE(params["gamma"], params["lambd"])
        returns = returns_of(component, source)
    else:
        component = RewardToGo(params["gamma"], OPENRLHF_OUTCOMES[estimator])
        returns = apply(component, source)  # there the returns are those after the baseline
    if estimator in ("gae", "reinforce", "reinforce_baseline"):
        component = Whiten(component, ddof=0)
    ours = {"advantages": apply(component, source), "returns": returns}
    return {name: on_tokens(case, name, value, mask) for name, value in ours.items()}


# TRL, prime-rl


def trl_grpo(case: Case) -> Outputs:
    scale = case.params["scale_rewards"]
    component = Normalize(std="none") if scale == "none" else Normalize(std=scale, eps=1e-4)
    return {"advantages": responses(case, component)}


def trl_rloo(case: Case) -> Outputs:
    component: Any = RLOO()
    if case.params["normalize_advantages"]:
        component = Whiten(component, over="responses", eps=1e-4, eps_on="std")
    return {"advantages": responses(case, component)}


def trl_gdpo(case: Case) -> Outputs:
    rewards = np.stack([case.input(name) for name in case.entry["inputs"]], axis=1)
    component = GDPO(weights=tuple(case.params["reward_weights"]))
    source = batch(np.ones((len(rewards), 1)), case.responses_per_group, rewards=rewards)
    return {"advantages": apply(component, source)[:, 0]}


def prime_rl_pass(case: Case) -> Outputs:
    """pass^k, all of k right, is the chance that none of k is wrong."""
    n = case.params["n"]
    ours = {}
    for output in case.entry["outputs"]:
        kind, k = output.rsplit("_", 1)
        at = [pass_at([np.repeat([1.0, 0.0], [right, n - right])], int(k)).value for right in range(n + 1)]
        ours[output] = np.array(at) if kind == "pass_at" else 1 - np.array(at[::-1])
    return ours


MATCHERS: dict[tuple[str, str], Callable[[Case], Outputs]] = {
    ("verl", "compute_gae_advantage_return"): verl_tokens(lambda case: GAE(case.params["gamma"], case.params["lam"])),
    ("verl", "compute_grpo_outcome_advantage"): verl(verl_grpo),
    ("verl", "compute_grpo_vectorized_outcome_advantage"): verl(lambda case: Normalize(eps=case.params["epsilon"])),
    ("verl", "compute_rloo_outcome_advantage"): verl(lambda case: RLOO()),
    ("verl", "compute_rloo_vectorized_outcome_advantage"): verl(lambda case: RLOO()),
    ("verl", "compute_opo_outcome_advantage"): verl(lambda case: OPO()),
    ("verl", "compute_gpg_outcome_advantage"): verl(lambda case: GPG()),
    ("verl", "compute_reinforce_plus_plus_baseline_outcome_advantage"): verl(
        lambda case: Whiten(Normalize(std="none"))
    ),
    ("verl", "compute_grpo_passk_outcome_advantage"): verl(verl_best_of_group),
    ("verl", "compute_remax_outcome_advantage"): verl(lambda case: ReMax()),
    ("verl", "compute_reinforce_plus_plus_outcome_advantage"): verl_tokens(
        lambda case: RewardToGo(case.params["gamma"])
    ),
    ("verl", "compute_rewards"): verl_rewards,
    ("verl", "masked_whiten"): verl_whiten,
    ("verl", "DAPORewardManager.__call__ (overlong block)"): soft_overlong(capped=False),
    ("ROLL", "reward_norm"): roll_reward_norm,
    ("ROLL", "group_reward_norm"): roll_group_reward_norm,
    ("ROLL", "RunningMoments.update"): roll_moments,
    ("ROLL", "compute_gae_advantage_return"): roll_estimate,
    ("ROLL", "compute_reinforce_return"): roll_estimate,
    ("ROLL", "compute_advantage"): roll_advantage,
    ("ROLL", "difficulty_mask"): roll_difficulty,
    ("OpenRLHF", "RemoteExperienceMaker.compute_advantages_and_returns"): openrlhf,
    ("OpenRLHF", "apply_overlong_penalty"): soft_overlong(capped=True),
    ("TRL", "GRPOTrainer._generate_and_score_completions (advantage block)"): trl_grpo,
    ("TRL", "GRPOTrainer (normalize_then_sum)"): trl_gdpo,
    ("TRL", "RLOOTrainer (advantage block)"): trl_rloo,
    ("TRL", "get_soft_overlong_punishment"): soft_overlong(capped=True),
    ("prime-rl", "compute_pass_metrics"): prime_rl_pass,
}
