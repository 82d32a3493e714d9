"""Our components on the cases of peers' aggregation and corrections."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peers.case import Case
from peers.case import batch as batch_of
from rl_llm.algorithms.aggregate import FixedLength, SequenceMean, SequenceSum, TokenMean
from rl_llm.algorithms.correction import DivergenceMask, ImportanceWeight, RatioMask
from rl_llm.types import Batch

Outputs = Mapping[str, Any]


def aggregate_of(case: Case, empty: Any) -> Any:
    """Aggregate of a `loss_agg_mode`; its norm variant divides by the width of the batch instead of rows."""
    return {
        "token-mean": TokenMean(),
        "seq-mean-token-sum": SequenceSum(empty),
        "seq-mean-token-mean": SequenceMean(empty),
        "seq-mean-token-sum-norm": FixedLength(mask_of(case).shape[1], rows="sum"),
    }[case.params.get("loss_agg_mode", "token-mean")]


def mask_of(case: Case) -> np.ndarray:
    return case.input("mask_filtered" if case.has("mask_filtered") else "mask")


def loss_batch(case: Case, aggregate: Any, corrections: tuple[Any, ...] = ()) -> Batch:
    """Weighed batch of a case. Without log-probabilities of the sampler, pi_old is the sampler."""
    mask = mask_of(case)
    given: dict[str, np.ndarray] = {"advantage": np.zeros(mask.shape, np.float32)}
    for name in ("adv_seq", "adv_tok", "adv_row"):
        if case.has(name):
            given["advantage"] = np.broadcast_to(case.input(name).reshape(mask.shape[0], -1), mask.shape)
    for ours, theirs in (("old_logp", "old_logp"), ("sampler_logp", "old_logp"), ("sampler_logp", "rollout_logp")):
        if case.has(theirs):
            given[ours] = case.input(theirs)
    for ours, theirs in (
        ("ref_logp", "ref_logp"),
        ("returns", "returns"),
        ("value", "values"),
        ("reward", "reward_binary"),
    ):
        if case.has(theirs):
            given[ours] = case.input(theirs)
    batch = batch_of(mask, 1, **given)
    weight = aggregate(batch.mask, batch)
    for correction in corrections:
        weight = weight * correction(batch)
    return replace(batch, weight=weight)


def aggregation(empty: Any) -> Callable[[Case], Outputs]:
    def match(case: Case) -> Outputs:
        losses = case.input("loss_mat")
        weight = loss_batch(case, aggregate_of(case, empty)).weight
        loss = jnp.sum(weight * losses)
        found = {"loss": loss, "dloss_d_loss_mat": weight}
        # ROLL's token mean leaves the mask to its caller: what it makes of unmasked losses is no mean of anything.
        if case.params["loss_agg_mode"] != "token-mean":
            found["loss_unmasked_input"] = loss
        return {name: value for name, value in found.items() if name in case.entry["outputs"]}

    return match


def micro_batches(case: Case) -> Outputs:
    """Result and sum over parts; the naive mean over parts is the bug that the case shows."""
    losses = jnp.asarray(case.input("loss_mat"))
    found = {}
    for name, aggregate in (
        ("token-mean", TokenMean()),
        ("seq-mean-token-sum", SequenceSum()),
        ("seq-mean-token-mean", SequenceMean()),
    ):
        weighed = loss_batch(case, aggregate).weight * losses
        parts = jnp.split(weighed, case.params["micro_batches"])
        found[f"{name}.whole"] = jnp.sum(weighed)
        found[f"{name}.micro_global_sum"] = sum(jnp.sum(part) for part in parts)
    return found


def verl_aggregation(case: Case) -> Outputs:
    return micro_batches(case) if "micro_batches" in case.params else aggregation("ignored")(case)


def product(case: Case, *corrections: Any) -> jax.Array:
    batch = loss_batch(case, TokenMean())
    return math.prod((correction(batch) for correction in corrections), start=jnp.ones_like(batch.mask))


def verl_weights(case: Case) -> Outputs:
    p = case.params
    weight = ImportanceWeight(p["rollout_is"], upper=p["threshold"], batch_normalize=p["batch_normalize"])
    return {"weights": product(case, weight) * case.input("mask")}


def verl_rejection(case: Case) -> Outputs:
    names, limits = (case.params[name].split(",") for name in ("rollout_rs", "rollout_rs_threshold"))
    corrections: list[Any] = []
    for name, limit in zip(names, limits, strict=True):
        *over, estimator = name.split("_")
        if estimator == "k1":
            lower, upper = map(float, limit.split("_"))
            level: Any = {"token": "token", "sum": "sequence", "mean": "geometric"}[over[-1]]
            # Their k1 is -log(pi_old / mu): the bounds are those of the ratio turned over.
            corrections.append(RatioMask(1 / upper, 1 / lower, level=level))
        else:
            corrections.append(DivergenceMask(float(limit), estimator, over[-1]))
    return {"mask": product(case, *corrections) * case.input("mask")}


def roll_correction(case: Case) -> Outputs:
    p = case.params
    if "agg_type" in p:
        kept = RatioMask(p["ratio_low"], p["ratio_high"], level=p["agg_type"])
        return {"mask": product(case, kept) * case.input("mask")}
    weight = ImportanceWeight(p["weight_type"], upper=p["upper_bound"])
    return {"weights": product(case, weight) * case.input("mask")}


def trl_sampling_ratio(case: Case) -> Outputs:
    level, kind = case.params["mode"].split("_")
    lower, upper = case.params["clip_min"], case.params["clip_max"]
    if kind == "truncate":
        ratio = product(case, ImportanceWeight(level, lower, upper))
    else:
        ratio = product(case, RatioMask(lower, upper, level=level), ImportanceWeight(level, upper=None))
    return {"ratio": ratio[:, :1] if level == "sequence" else ratio}


MATCHERS: dict[tuple[str, str], Callable[[Case], Outputs]] = {
    ("verl", "agg_loss"): verl_aggregation,
    ("verl", "compute_rollout_correction_weights"): verl_weights,
    ("verl", "compute_rollout_rejection_mask"): verl_rejection,
    ("ROLL", "agg_loss"): aggregation("counted"),
    ("ROLL", "compute_train_infer_correction"): roll_correction,
    ("TRL", "GRPOTrainer (vLLM importance sampling block)"): trl_sampling_ratio,
}
