"""Our components on the cases of peers' losses of policies, critics, preferences and students."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peers import weights
from peers.case import Case
from peers.weights import Outputs, aggregate_of, loss_batch, mask_of
from rl_llm.algorithms.aggregate import FixedLength, SequenceMean, SequenceSum, TokenMean
from rl_llm.algorithms.controller import AdaptiveKL
from rl_llm.algorithms.correction import ImportanceWeight, RatioMask
from rl_llm.algorithms.covariance_objective import ClipCov, KLCov
from rl_llm.algorithms.critic import ValueLoss
from rl_llm.algorithms.distillation import GeneralizedJSD, ReverseKL
from rl_llm.algorithms.divergence import (
    Divergence,
    DriftPenalty,
    EntropyBonus,
    KLPenalty,
    full_divergence,
)
from rl_llm.algorithms.objective import DPPO, GMPO, GSPO, SAPO, Clip, PolicyGradient, SequenceClip
from rl_llm.algorithms.preference import DPO, IPO, bradley_terry, implicit_reward
from rl_llm.algorithms.score_objective import AIPO, CISPO, TOPR, VESPO
from rl_llm.learner.logprobs import logp_and_entropy

# --- Policy losses. ---


def policy_outputs(
    case: Case, objective: Any, aggregate: Any, corrections: tuple[Any, ...] = (), terms: tuple[Any, ...] = ()
) -> dict[str, Any]:
    """Weighted loss, its gradient by logp, and the shares of clipped tokens."""
    batch = loss_batch(case, aggregate, corrections)
    entropy = jnp.zeros_like(batch.mask)

    def total(logp: jax.Array) -> tuple[jax.Array, Any]:
        losses, metrics = objective(logp, batch)
        for term in terms:
            losses = losses + term(logp, entropy, batch)[0]
        return jnp.sum(batch.weight * losses), metrics

    (loss, metrics), gradient = jax.value_and_grad(total, has_aux=True)(jnp.asarray(case.input("logp")))
    shares = {name: metric.result() for name, metric in metrics.items()}
    return {"loss": loss, "dloss_d_logp": gradient, "metrics": shares}


def compared(outputs: dict[str, Any]) -> Outputs:
    return {name: outputs[name] for name in ("loss", "dloss_d_logp")}


def with_clip_share(outputs: dict[str, Any]) -> Outputs:
    """Outputs with the share of tokens at which the bounds act."""
    metrics = outputs["metrics"]
    return {**compared(outputs), "clipfrac": metrics["policy/clip_high"] + metrics["policy/clip_low"]}


def verl_vanilla(case: Case) -> Outputs:
    p = case.params
    clip = Clip(p.get("clip_ratio_low", p["clip_ratio"]), p.get("clip_ratio_high", p["clip_ratio"]), p["clip_ratio_c"])
    if "rollout_is_weights" in p:  # min(rho, 2); this case keeps no diagnostics
        return compared(policy_outputs(case, clip, TokenMean(), (ImportanceWeight(upper=2.0),)))
    outputs = policy_outputs(case, clip, aggregate_of(case, "ignored"))
    return {**with_clip_share(outputs), "clipfrac_lower": outputs["metrics"]["policy/clip_cap"]}


def verl_gspo(case: Case) -> Outputs:
    objective = GSPO(case.params["clip_ratio_low"], case.params["clip_ratio_high"], gradient="token")
    return with_clip_share(policy_outputs(case, objective, SequenceMean()))


def verl_sapo(case: Case) -> Outputs:
    objective = SAPO(case.params["tau_pos"], case.params["tau_neg"])
    return compared(policy_outputs(case, objective, SequenceMean()))


def verl_geo_mean(case: Case) -> Outputs:
    objective = GMPO(case.params["clip_ratio_low"], case.params["clip_ratio_high"])
    return compared(policy_outputs(case, objective, SequenceMean("counted")))


def verl_cispo(case: Case) -> Outputs:
    objective = CISPO(case.params["clip_ratio_low"], case.params["clip_ratio_high"])
    return compared(policy_outputs(case, objective, aggregate_of(case, "ignored")))


def verl_gpg(case: Case) -> Outputs:
    return compared(policy_outputs(case, PolicyGradient(), aggregate_of(case, "ignored")))


def verl_clip_cov(case: Case) -> Outputs:
    p = case.params
    bound = p["clip_ratio"]
    objective = ClipCov(bound, bound, share=p["clip_cov_ratio"], floor=p["clip_cov_lb"], ceiling=p["clip_cov_ub"])
    outputs = policy_outputs(case, objective, TokenMean())
    return {**compared(outputs), "clipfrac": outputs["metrics"]["policy/covariance_dropped"]}


def verl_kl_cov(case: Case) -> Outputs:
    objective = KLCov(case.params["kl_cov_ratio"], case.params["ppo_kl_coef"])
    return compared(policy_outputs(case, objective, TokenMean()))


def roll_actor(case: Case) -> Outputs:
    p = case.params
    low = high = p["pg_clip"]
    if p.get("use_pg_clip_range"):  # 0.2 and 0.28 are ROLL's defaults
        low, high = p.get("pg_clip_low", 0.2), p.get("pg_clip_high", 0.28)
    objective: Any = Clip(low, high, cap=1.0 + 2.0 * p["pg_clip"] if p.get("dual_clip_loss") else None)
    if p.get("importance_sampling") == "seq":
        objective = GSPO(low, high)
    k3 = Divergence("k3", limit=10.0)
    terms = (KLPenalty(p["kl_loss_coef"], k3),) if p.get("use_kl_loss") else ()
    aggregate = aggregate_of(case, "counted")
    outputs = policy_outputs(case, objective, aggregate, terms=terms)
    batch = loss_batch(case, aggregate)
    kl = jnp.sum(batch.weight * k3(jnp.asarray(case.input("logp")), batch.ref_logp))
    return {**compared(outputs), "kl_loss": kl}


def roll_policy_gradient(objective: Callable[[Mapping[str, Any]], Any], *terms: Any) -> Callable[[Case], Outputs]:
    """Matcher of the losses of ActorPGWorker: one objective from a case's params, with these terms."""

    def match(case: Case) -> Outputs:
        return compared(policy_outputs(case, objective(case.params), TokenMean(), terms=terms))

    return match


def roll_cispo(params: Mapping[str, Any]) -> CISPO:
    masked = bool(params.get("cispo_use_unified_mask"))
    return CISPO(params["cispo_epsilon_low"], params["cispo_epsilon_high"], masked=masked)


def roll_kimi(case: Case) -> Outputs:
    pull = DriftPenalty(case.params["kimi15_tau"] / 2, origin="old")
    return compared(policy_outputs(case, PolicyGradient(), TokenMean(), terms=(pull,)))


def openrlhf_policy(case: Case) -> Outputs:
    p = case.params
    low, high = p.get("clip_eps_low", 0.2), p.get("clip_eps_high", 0.2)
    objective: Any = Clip(low, high, cap=p.get("dual_clip"))
    if p.get("policy_loss_type") == "gspo":
        objective = GSPO(low, high)
    corrections: tuple[Any, ...] = ()
    if p.get("enable_vllm_is_correction"):
        lower, upper = p["vllm_is_truncated_threshold"]
        plain = ImportanceWeight(upper=None)
        corrections = {
            "tis": (ImportanceWeight(lower=lower, upper=upper),),
            "icepop": (RatioMask(lower, upper), plain),
            "seq-mask-tis": (RatioMask(lower, upper, level="geometric"), plain),
        }[p["vllm_is_correction_type"]]
    # Under gspo OpenRLHF takes the mean over sequences whatever was set.
    by_token = p["token_level_loss"] and not isinstance(objective, GSPO)
    aggregate = TokenMean() if by_token else SequenceMean("counted")
    return compared(policy_outputs(case, objective, aggregate, corrections))


def trl_grpo(case: Case) -> Outputs:
    p = case.params
    kind, low = p["loss_type"], p.get("epsilon_low", 0.2)
    high = p.get("epsilon_high", low)
    objective: Any = Clip(low, high, cap=p.get("delta"))
    if p.get("importance_sampling_level") == "sequence":
        objective = GSPO(low, high)
    elif kind == "cispo":  # clamped at epsilon_high itself, and only above
        objective = CISPO(low=1.0, high=high - 1.0)
    elif kind == "sapo":
        objective = SAPO(1.0, 1.05)
    elif kind == "vespo":
        objective = VESPO()
    aggregate = {
        "grpo": SequenceMean("counted"),
        "sapo": SequenceMean("counted"),
        "luspo": SequenceSum("counted"),
        "dr_grpo": FixedLength(mask_of(case).shape[1]),
    }.get(kind, TokenMean())
    corrected = bool(p.get("use_bias_correction_kl"))
    terms = (KLPenalty(p["beta"], Divergence("k3"), corrected=corrected),) if "beta" in p else ()
    return compared(policy_outputs(case, objective, aggregate, terms=terms))


def trl_rloo(case: Case) -> Outputs:
    objective = SequenceClip(case.params["epsilon"], case.params["epsilon"])
    return compared(policy_outputs(case, objective, SequenceMean("counted")))


def prime_rl(objective: Callable[[Mapping[str, Any]], Any]) -> Callable[[Case], Outputs]:
    """Matcher of prime-rl's losses, which all pull the policy to the sampler as well (default 1e-3)."""

    def match(case: Case) -> Outputs:
        assert case.params.get("adv_tau", 1.0) == 1.0
        pull = DriftPenalty(case.params.get("kl_tau", 1e-3))
        return compared(policy_outputs(case, objective(case.params), TokenMean(), terms=(pull,)))

    return match


# --- Divergence and entropy. ---


def divergence(limits: Mapping[str, float | None]) -> Callable[[Case], Outputs]:
    """Matcher of estimates, with the peer's limits of some of them."""

    def match(case: Case) -> Outputs:
        name = case.params.get("kl_penalty") or case.params["kl_estimator"]
        if name == "full":
            return {"kl": full_divergence(case.input("logits"), case.input("logits_teacher"))}
        estimator: Any = {"kl": "k1", "mse": "k2"}.get(name, name)
        estimate = Divergence(estimator, limits.get(estimator))
        ref_logp = case.input("ref_logp_extreme" if case.has("ref_logp_extreme") else "ref_logp")
        logp = jnp.asarray(case.input("logp"))
        found: dict[str, Any] = {"kl": estimate(logp, ref_logp) * (case.input("mask") if case.peer == "ROLL" else 1.0)}
        if "loss" in case.entry["outputs"]:
            weight = loss_batch(case, TokenMean()).weight
            total = jax.value_and_grad(lambda logp: jnp.sum(weight * estimate(logp, ref_logp)))
            found["loss"], found["dloss_d_logp"] = total(logp)
        return found

    return match


def entropy(case: Case) -> Outputs:
    logits = case.input("logits")
    return {"entropy": logp_and_entropy(logits, np.zeros(logits.shape[:-1], np.int32))[1]}


def entropy_loss(case: Case) -> Outputs:
    """The peer returns the mean entropy; our bonus is subtracted from the loss."""
    batch = loss_batch(case, aggregate_of(case, "ignored"))

    def total(logits: jax.Array) -> jax.Array:
        logp, entropy = logp_and_entropy(logits, batch.tokens)
        return -jnp.sum(batch.weight * EntropyBonus(1.0)(logp, entropy, batch)[0])

    loss, gradient = jax.value_and_grad(total)(jnp.asarray(case.input("logits")))
    return {"loss": loss, "dloss_d_logits": gradient}


def log_probabilities(case: Case) -> Outputs:
    return {"logp": logp_and_entropy(case.input("logits"), case.input("labels"))[0]}


def adaptive_kl(case: Case) -> Outputs:
    controller = AdaptiveKL(case.params["target"], case.params["horizon"])
    coefficient = jnp.float32(case.params["init"])
    found = []
    for kl, responses in zip(case.input("kl_seq"), case.input("kl_nsteps"), strict=True):
        coefficient = controller.update(coefficient, kl, int(responses))
        found.append(coefficient)
    return {"kl_coef": jnp.stack(found)}


# --- Critic, preferences, distillation. ---


def value_loss(aggregate: Callable[[Case], Any], clip: str, share: bool = False) -> Callable[[Case], Outputs]:
    """Matcher of a critic's loss; `clip` is the peer's name for the bound."""

    def match(case: Case) -> Outputs:
        batch = loss_batch(case, aggregate(case))

        def total(value: jax.Array) -> tuple[jax.Array, Any]:
            losses, metrics = ValueLoss(case.params[clip])(value, batch)
            return jnp.sum(batch.weight * losses), metrics

        (loss, metrics), gradient = jax.value_and_grad(total, has_aux=True)(jnp.asarray(case.input("vpred")))
        found = {"loss": loss, "dloss_d_vpred": gradient}
        return found | ({"clipfrac": metrics["critic/clipped"].result()} if share else {})

    return match


def openrlhf_dpo(case: Case) -> Outputs:
    p = case.params
    loss = IPO(p["beta"]) if p["ipo"] else DPO(p["beta"], p["label_smoothing"])
    chosen, rejected, ref_chosen, ref_rejected = (
        jnp.asarray(case.input(f"dpo_{name}")) for name in ("pi_chosen", "pi_rejected", "ref_chosen", "ref_rejected")
    )
    total = jax.value_and_grad(lambda chosen: jnp.mean(loss(chosen, rejected, ref_chosen, ref_rejected)))
    value, gradient = total(chosen)
    return {
        "loss": value,
        "dloss_d_dpo_pi_chosen": gradient,
        "chosen_rewards": implicit_reward(p["beta"], chosen, ref_chosen),
        "rejected_rewards": implicit_reward(p["beta"], rejected, ref_rejected),
    }


def openrlhf_pairwise(case: Case) -> Outputs:
    chosen, rejected = (jnp.asarray(case.input(f"dpo_pi_{name}")) for name in ("chosen", "rejected"))
    loss, gradient = jax.value_and_grad(lambda chosen: jnp.mean(bradley_terry(chosen, rejected)))(chosen)
    return {"loss": loss, "dloss_d_dpo_pi_chosen": gradient}


def trl_gkd(case: Case) -> Outputs:
    weight = loss_batch(case, TokenMean()).weight
    distance = GeneralizedJSD(case.params["beta"], case.params["temperature"])
    teacher = jnp.asarray(case.input("logits_teacher"))
    total = jax.value_and_grad(lambda logits: jnp.sum(weight * distance(logits, teacher)))
    loss, gradient = total(jnp.asarray(case.input("logits")))
    return {"loss": loss, "dloss_d_logits": gradient}


K3_LIMITED = {"k3": 10.0}
ALL_LIMITED = {"k1": 10.0, "k2": 10.0, "k3": 10.0}

MATCHERS: dict[tuple[str, str], Callable[[Case], Outputs]] = {
    **weights.MATCHERS,
    ("verl", "compute_policy_loss_vanilla"): verl_vanilla,
    ("verl", "compute_policy_loss_gspo"): verl_gspo,
    ("verl", "compute_policy_loss_sapo"): verl_sapo,
    ("verl", "compute_policy_loss_geo_mean"): verl_geo_mean,
    ("verl", "compute_policy_loss_cispo"): verl_cispo,
    ("verl", "compute_policy_loss_gpg"): verl_gpg,
    ("verl", "compute_policy_loss_clip_cov"): verl_clip_cov,
    ("verl", "compute_policy_loss_kl_cov"): verl_kl_cov,
    ("verl", "kl_penalty_forward"): divergence(K3_LIMITED),
    ("verl", "compute_value_loss"): value_loss(lambda case: aggregate_of(case, "ignored"), "cliprange_value", True),
    ("verl", "entropy_from_logits"): entropy,
    ("verl", "compute_entropy_loss"): entropy_loss,
    ("verl", "logprobs_from_logits_naive"): log_probabilities,
    ("verl", "AdaptiveKLController"): adaptive_kl,
    ("ROLL", "ActorWorker.loss_func"): roll_actor,
    ("ROLL", "ActorPGWorker._compute_cispo_*"): roll_policy_gradient(roll_cispo),
    ("ROLL", "ActorPGWorker._compute_tis_*"): roll_policy_gradient(lambda params: AIPO(cap=1.0)),
    ("ROLL", "ActorPGWorker._compute_topr_*"): roll_policy_gradient(lambda params: TOPR(level="token")),
    ("ROLL", "ActorPGWorker._compute_vanilla_*"): roll_policy_gradient(lambda params: PolicyGradient()),
    ("ROLL", "ActorPGWorker._compute_kimi15_*"): roll_kimi,
    ("ROLL", "compute_approx_kl"): divergence(K3_LIMITED),
    ("ROLL", "CriticWorker.loss_func"): value_loss(lambda case: SequenceMean("counted"), "value_clip"),
    ("ROLL", "entropy_from_logits"): entropy,
    ("ROLL", "AdaptiveKLController"): adaptive_kl,
    ("OpenRLHF", "PolicyLoss"): openrlhf_policy,
    ("OpenRLHF", "ValueLoss"): value_loss(lambda case: TokenMean(), "clip_eps"),
    ("OpenRLHF", "DPOLoss"): openrlhf_dpo,
    ("OpenRLHF", "PairWiseLoss"): openrlhf_pairwise,
    ("OpenRLHF", "compute_approx_kl"): divergence(ALL_LIMITED),
    ("OpenRLHF", "AdaptiveKLController"): adaptive_kl,
    ("TRL", "GRPOTrainer._compute_loss"): trl_grpo,
    ("TRL", "RLOOTrainer._compute_loss"): trl_rloo,
    ("TRL", "GKDTrainer.generalized_jsd_loss"): trl_gkd,
    ("prime-rl", "default_loss_fn"): prime_rl(lambda params: DPPO(params["dppo_mask_low"], params["dppo_mask_high"])),
    ("prime-rl", "ipo_loss_fn"): prime_rl(
        lambda params: DPPO(params["ipo_threshold"], params["ipo_threshold"], symmetric=True)
    ),
    ("prime-rl", "ref_kl_loss_fn"): prime_rl(lambda params: ReverseKL()),
}
