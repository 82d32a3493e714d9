"""No dead knobs: every field of every component of an algorithm changes what is learned, or is refused.

Components and their fields are found by reflection, so a new one cannot slip through: it needs another value here that
changes the result.
"""

import inspect
from dataclasses import fields, is_dataclass, replace
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Literal, get_origin, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rl_llm.algorithms as a
import rl_llm.algorithms as algorithms
from rl_llm.algorithms import Algorithm, Clip, Moments, Normalize, Reference, RewardToGo, RunShape, TokenMean
from rl_llm.learner.train_step import make_batch
from rl_llm.types import Mean, Prompts, Rollout

ARRAYS = np.load(Path(__file__).parents[1] / "data" / "oracles" / "oracles.npz")
N, K, T = 6, 4, 16
MASK = ARRAYS["in/mask"]
LOGP, OLD, SAMPLER, REF = (ARRAYS[f"in/{name}"] for name in ("logp", "old_logp", "rollout_logp", "ref_logp"))
REWARD = np.where(np.arange(N * K) < K, 0.3, ARRAYS["in/reward_real"])  # the first group's rewards are equal
DRAW = np.random.default_rng(0)
TRUNCATED = np.arange(N * K) % 5 == 0
DISTRIBUTIONS = np.log(DRAW.dirichlet(np.ones(5), (2, *MASK.shape)))[..., :3].astype(np.float32)  # 3 tokens of 5
STUDENT, TEACHER = jnp.asarray(DISTRIBUTIONS)
ENTROPY = jnp.asarray(DRAW.uniform(0.1, 2.0, MASK.shape).astype(np.float32))
MEASURED = {
    name: Mean(jnp.float32(0.3), jnp.float32(1.0)) for name in ("policy/kl", "policy/entropy", "policy/distillation")
}
BASE = Algorithm(advantage=Normalize("group", "batch"), objective=Clip(), aggregate=TokenMean())

SLOTS = {
    a.Advantage: "advantage",
    a.Aggregate: "aggregate",
    a.Objective: "objective",
    a.Filter: "filters",
    a.Shaping: "shaping",
    a.Correction: "corrections",
    a.Regularizer: "regularizers",
}
NO_COMPONENTS = {"Algorithm", "RunShape", "Moments", "Reference"}  # the last one is tried below


@jax.jit
def _rollout() -> Rollout:
    prompts = Prompts(jnp.zeros((N, 1), jnp.int32), jnp.ones(N, jnp.int32), jnp.arange(N))
    tokens = jnp.asarray(DRAW.integers(2, 5, MASK.shape, dtype=np.int32))
    return Rollout(prompts, tokens, jnp.asarray(MASK), jnp.asarray(TRUNCATED), SAMPLER, OLD, OLD, jnp.asarray(REWARD))


def effect(algorithm: Algorithm) -> np.ndarray:
    """Effect of an algorithm on the fixture, as numbers."""
    return np.asarray(outcome(algorithm))


def outcome(algorithm: Algorithm) -> jax.Array:
    """Weights, advantages, rows, loss and gradient of an algorithm on the fixture, in one vector.

    Controllers set the coefficients from a measurement. The algorithm's numbers may be traced.
    """
    made: dict[str, Any] = {
        "ref_logp": REF,
        "greedy_reward": ARRAYS["in/greedy_baseline"],
        "value": ARRAYS["in/values"],
        "kl_baseline": np.full(N * K, 0.3, np.float32),
        "teacher_tokens": np.zeros(TEACHER.shape, np.int32),
        "teacher_logp": TEACHER,
        "old_top_logp": STUDENT,
        "rewards": np.stack([ARRAYS["in/reward_binary"], REWARD], axis=1),
    }
    made = {name: made[name] for name in made if name in algorithm.needs}
    moments = Moments(jnp.float32(30.0), jnp.float32(0.2), jnp.float32(40.0)) if "moments" in algorithm.needs else None
    first = {name: jnp.float32(component.coefficient) for name, component in algorithm.adaptive.items()}
    coefficients = algorithm.adapted(first, MEASURED, 100)
    batch, moments = make_batch(algorithm, _rollout(), made, moments, coefficients)

    def loss(logp: jax.Array, entropy: jax.Array, student: jax.Array, values: jax.Array) -> jax.Array:
        seen = replace(batch, student_logp=student)
        losses, _ = algorithm.objective(logp, seen)
        for term in algorithm.regularizers:
            losses = losses + term(logp, entropy, seen, **a.with_coefficient(term, coefficients))[0]
        total = jnp.sum(batch.weight * losses)
        if algorithm.value_loss is None:
            return total
        return total + jnp.sum(batch.value_weight * algorithm.value_loss(values, batch)[0])

    at = jnp.asarray(LOGP), ENTROPY, STUDENT, jnp.asarray(ARRAYS["in/values"]) + 0.1  # values have moved
    value, gradient = jax.value_and_grad(loss, argnums=(0, 1, 2, 3))(*at)
    parts = (batch.weight, batch.advantage, batch.kept, batch.reward, value, *gradient, *coefficients.values())
    return jnp.concatenate([jnp.asarray(part, jnp.float32).reshape(-1) for part in parts])


def of(component: Any) -> Algorithm:
    """Base algorithm with the component in its place, and with everything needed to see its effect."""
    match component:
        case algorithms.Divergence():
            return of(algorithms.KLPenalty(0.1, component))
        case algorithms.DPO() | algorithms.IPO():
            return of(algorithms.Pairwise(component))
        case algorithms.KTO():
            return of(algorithms.Unpaired(component))
        case algorithms.GeneralizedJSD():
            return of(algorithms.Distillation(component))
        case algorithms.Distillation():
            return replace(BASE, regularizers=(component,))
        case algorithms.Pairwise() | algorithms.Unpaired():
            return replace(BASE, objective=component, aggregate=algorithms.SequenceSum())
        case algorithms.AdaptiveKL():
            return of(algorithms.KLPenalty(0.1, controller=component))
        case algorithms.EntropyTarget():
            return of(algorithms.EntropyBonus(0.1, controller=component))
        case algorithms.ValueLoss() | algorithms.GAE():
            gae = component if isinstance(component, algorithms.GAE) else algorithms.GAE(0.9, 0.9)
            critic = component if isinstance(component, algorithms.ValueLoss) else algorithms.ValueLoss()
            return replace(BASE, advantage=gae, value_loss=critic)
        case algorithms.BradleyTerry():
            return replace(BASE, value_loss=component, value_aggregate=algorithms.SequenceSum())
        case algorithms.LengthAdaptive():
            return of(algorithms.GAE(0.9, component))
        case (
            algorithms.KLInReward() | algorithms.FullKLInReward() | algorithms.WhitenRewards()
        ):  # these reward single tokens
            return replace(BASE, advantage=RewardToGo(), shaping=(component,))
        case algorithms.SequenceMean() | algorithms.SequenceSum():  # rows without a token are those a filter drops
            return replace(BASE, aggregate=component, filters=(algorithms.Overlong(),))
    slot = next(slot for role, slot in SLOTS.items() if isinstance(component, role))
    return replace(BASE, **{slot: component if slot in ("advantage", "aggregate", "objective") else (component,)})


# An example of every component, and another value for each of its fields that must change the result.
KNOBS: dict[type, tuple[Any, dict[str, Any]]] = {
    a.Normalize: (
        a.Normalize("group", "batch"),
        {"mean": "batch", "std": "group", "ddof": 0, "eps": 0.5, "std_of": "centred"},
    ),
    a.RLOO: (a.RLOO(), {}),
    a.OPO: (a.OPO(), {}),
    a.ReMax: (a.ReMax(), {}),
    a.GPG: (a.GPG(), {}),
    a.MaxRL: (a.MaxRL(), {}),
    a.BestOfGroup: (a.BestOfGroup(), {"std": "none", "ddof": 0, "eps": 0.5}),
    a.PassAtK: (a.PassAtK(2), {"k": 3}),
    a.GDPO: (a.GDPO((1.0, 0.5)), {"weights": (1.0, 2.0), "ddof": 0, "eps": 0.5}),
    a.Whiten: (
        a.Whiten(a.Normalize(), eps=0.1),
        {"advantage": a.RLOO(), "over": "responses", "ddof": 0, "eps": 0.5, "eps_on": "std"},
    ),
    a.ClipAdvantage: (a.ClipAdvantage(a.Normalize(), 0.5), {"advantage": a.RLOO(), "bound": 0.25}),
    a.RewardToGo: (a.RewardToGo(0.9), {"gamma": 0.5, "outcome": a.Normalize()}),
    a.GAE: (a.GAE(0.9, 0.9), {"gamma": 0.5, "lam": a.LengthAdaptive(0.5), "critic_lam": 0.5}),
    a.TokenMean: (a.TokenMean(), {"scope": "group", "mini_batches": None}),
    a.SequenceMean: (a.SequenceMean(), {"empty": "counted"}),
    a.SequenceSum: (a.SequenceSum(), {"empty": "counted"}),
    a.FixedLength: (a.FixedLength(16), {"length": 32, "rows": "sum"}),
    a.VLNorm: (a.VLNorm(16), {"length": 32, "alpha": 0.5}),
    a.Balanced: (a.Balanced(), {}),
    a.PolicyGradient: (a.PolicyGradient(), {}),
    a.Clip: (a.Clip(), {"low": 0.05, "high": 0.05, "cap": 1.5}),
    a.GPPO: (a.GPPO(), {"low": 0.05, "high": 0.05}),
    a.SAPO: (a.SAPO(), {"tau_positive": 2.0, "tau_negative": 2.0}),
    a.DPPO: (a.DPPO(0.05, 0.05), {"low": 0.01, "high": 0.01, "symmetric": True}),
    a.CISPO: (a.CISPO(0.2, 0.28), {"low": 0.05, "high": 0.05, "masked": True}),
    a.AIPO: (a.AIPO(), {"cap": 1.1}),
    a.TOPR: (a.TOPR(), {"level": "token"}),
    a.VESPO: (
        a.VESPO(),
        {"k_positive": 1.0, "lambda_positive": 1.0, "k_negative": 1.0, "lambda_negative": 1.0},
    ),
    a.GSPO: (a.GSPO(0.02, 0.03), {"low": 0.001, "high": 0.001, "gradient": "token"}),
    a.SequenceClip: (a.SequenceClip(), {"low": 0.01, "high": 0.01}),
    a.GMPO: (a.GMPO(), {"low": 0.01, "high": 0.01}),
    a.ClipCov: (
        a.ClipCov(0.2, 0.2, 1.0, 0.2, 5.0),
        {"low": 0.05, "high": 0.05, "share": 0.1, "floor": 1.5, "ceiling": 0.5},
    ),
    a.KLCov: (a.KLCov(0.1, 1.0), {"share": 0.5, "coefficient": 2.0}),
    a.ReverseKL: (a.ReverseKL(0.2), {"low": 0.05}),
    a.Nothing: (a.Nothing(), {}),
    a.Pairwise: (a.Pairwise(a.DPO()), {"loss": a.IPO()}),
    a.Unpaired: (a.Unpaired(a.KTO()), {"loss": a.KTO(0.5), "threshold": 0.0}),
    a.DPO: (a.DPO(), {"beta": 0.5, "label_smoothing": 0.1}),
    a.IPO: (a.IPO(), {"beta": 0.5}),
    a.KTO: (a.KTO(), {"beta": 0.5, "desirable_weight": 2.0, "undesirable_weight": 2.0}),
    a.BradleyTerry: (a.BradleyTerry(), {}),
    a.Distillation: (
        a.Distillation(),
        {"divergence": a.GeneralizedJSD(1.0), "coefficient": 0.5, "controller": a.AdaptiveKL()},
    ),
    a.GeneralizedJSD: (a.GeneralizedJSD(), {"beta": 0.1, "temperature": 2.0}),
    a.PositiveLikelihood: (a.PositiveLikelihood(0.1, 0.5), {"coefficient": 0.5, "threshold": 0.0}),
    a.RewardAtLeast: (a.RewardAtLeast(0.0), {"threshold": 0.5, "counts": False}),
    a.Overlong: (a.Overlong(), {"counts": False}),
    a.ZeroVariance: (a.ZeroVariance(), {"counts": False}),
    a.DifficultyWindow: (a.DifficultyWindow(-1.0, 0.25), {"low": 0.1, "high": 9.0, "counts": False}),
    a.SoftOverlong: (a.SoftOverlong(12, 4), {"max_length": 8, "buffer": 8, "factor": 2.0, "capped": False}),
    a.RepetitionPenalty: (a.RepetitionPenalty(1.0, 2), {"coefficient": 2.0, "n": 1}),
    a.KLInReward: (
        a.KLInReward(0.05, "response"),
        {"coefficient": 0.5, "level": "token", "controller": a.AdaptiveKL(), "divergence": a.Divergence("k2")},
    ),
    a.FullKLInReward: (a.FullKLInReward(0.05), {"coefficient": 0.5}),
    a.AdaptiveKL: (a.AdaptiveKL(0.2, 1000.0), {"target": 0.28, "horizon": 500.0}),
    a.EntropyTarget: (a.EntropyTarget(1.0, 0.1), {"target": 0.2, "step": 0.05, "highest": 0.15}),
    a.ValueLoss: (a.ValueLoss(), {"clip": 0.01}),
    a.WhitenRewards: (a.WhitenRewards(), {"keep_mean": True, "ddof": 0, "eps": 0.5}),
    a.ImportanceWeight: (
        a.ImportanceWeight(),
        {"level": "sequence", "lower": 0.99, "upper": 1.01, "batch_normalize": True},
    ),
    a.RatioMask: (a.RatioMask(0.5, 2.0), {"level": "sequence", "lower": 0.99, "upper": 1.01}),
    a.DivergenceMask: (a.DivergenceMask(0.02), {"limit": 1e-4, "estimator": "k2", "over": "max"}),
    a.Divergence: (a.Divergence(), {"estimator": "k2", "limit": 0.01}),
    a.LengthAdaptive: (a.LengthAdaptive(0.2), {"alpha": 0.5}),
    a.OffPolicyMask: (a.OffPolicyMask(0.02), {"limit": 1e-4}),
    a.KLPenalty: (
        a.KLPenalty(0.1),
        {"coefficient": 0.5, "divergence": a.Divergence("k2"), "corrected": True, "controller": a.AdaptiveKL()},
    ),
    a.EntropyBonus: (a.EntropyBonus(0.1), {"coefficient": 0.5, "controller": a.EntropyTarget(1.0)}),
    a.DriftPenalty: (a.DriftPenalty(0.1), {"coefficient": 0.5, "origin": "old"}),
}


# None above: the field cannot act alone and is refused, with this message.
REFUSED: dict[tuple[str, str], tuple[Any, str]] = {
    ("TokenMean", "mini_batches"): (lambda: algorithms.TokenMean("batch", 2), "mini_batches=2 cannot act"),
}
RUN = RunShape(8, 4, 2, extra_fields=frozenset({"ref_logp"}))
CASES = [(kind, name) for kind, (_, others) in KNOBS.items() for name in others]


def test_every_component_and_every_field_is_tried():
    kinds = {kind for kind in vars(algorithms).values() if inspect.isclass(kind) and is_dataclass(kind)}
    assert {kind.__name__ for kind in kinds} - NO_COMPONENTS == {kind.__name__ for kind in KNOBS}
    for kind, (_, others) in KNOBS.items():
        assert {field.name for field in fields(kind)} == set(others), kind.__name__
    assert set(REFUSED) == {(kind.__name__, name) for kind, name in CASES if KNOBS[kind][1][name] is None}


def test_every_component_is_exported():
    names = {module.name for module in iter_modules(algorithms.__path__)} - {"peers"}
    modules = [import_module(f"rl_llm.algorithms.{name}") for name in names]
    kinds = [kind for module in modules for kind in vars(module).values() if inspect.isclass(kind)]
    found = {kind.__name__ for kind in kinds if is_dataclass(kind) and kind.__module__.startswith(algorithms.__name__)}
    assert found <= set(vars(algorithms))


@pytest.mark.parametrize(("kind", "name"), CASES, ids=[f"{kind.__name__}.{name}" for kind, name in CASES])
def test_a_field_changes_what_is_learned_or_is_refused(kind: type, name: str):
    component, others = KNOBS[kind]
    if (kind.__name__, name) in REFUSED:
        attempt, words = REFUSED[kind.__name__, name]
        with pytest.raises(ValueError, match=words):
            attempt()
    else:
        changed = replace(component, **{name: others[name]})
        assert not np.array_equal(effect(of(component)), effect(of(changed)))


NAMED = [(kind, name) for kind, name in CASES if get_origin(get_type_hints(kind)[name]) is Literal]


@pytest.mark.parametrize(("kind", "name"), NAMED, ids=[f"{kind.__name__}.{name}" for kind, name in NAMED])
def test_an_unknown_choice_is_refused(kind: type, name: str):
    with pytest.raises(ValueError, match=rf"{name}='typo'"):
        of(replace(KNOBS[kind][0], **{name: "typo"})).check(RUN)


@pytest.mark.parametrize("kind", list(KNOBS), ids=lambda kind: kind.__name__)
def test_a_component_acts(kind: type):
    """It differs from the base algorithm, and stays finite at extreme ratios."""
    found = effect(of(KNOBS[kind][0]))
    assert np.isfinite(found).all()
    if kind not in (Normalize, Clip, TokenMean):  # these are the base algorithm
        assert not np.array_equal(found, effect(BASE))


@pytest.mark.parametrize(("changed", "same"), [(Reference(2), Reference()), (Reference(decay=0.5), Reference())])
def test_a_reference_moves_only_if_configured(changed: Reference, same: Reference):
    old, new = {"x": jnp.zeros(2)}, {"x": jnp.ones(2)}
    assert not np.array_equal(changed.after_step(old, new, 2)["x"], old["x"])
    assert same.after_step(old, new, 2) is old


def test_missing_batch_fields_are_refused_by_name():
    run = RunShape(8, 4, 2, extra_fields=frozenset({"moments"}))
    with pytest.raises(ValueError, match=r"KLPenalty need batch.ref_logp.*Experiment.reference"):
        algorithms.GRPO_KL.check(run)
    with pytest.raises(ValueError, match=r"GAE need batch.value"):
        replace(BASE, advantage=algorithms.GAE()).check(run)


def test_an_unread_token_reward_is_refused():
    shaped = replace(BASE, shaping=(algorithms.KLInReward(),))
    with pytest.raises(ValueError, match=r"KLInReward rewards single tokens, and Normalize sees"):
        shaped.check(RunShape(8, 4, 2, extra_fields=frozenset({"ref_logp"})))


PLAIN = replace(BASE, advantage=Normalize("none", "none"))


@pytest.mark.parametrize("objective", [a.Pairwise(a.DPO()), a.Unpaired(a.KTO())], ids=repr)
def test_a_loss_of_responses_needs_an_exact_aggregate(objective: Any):
    run = RunShape(8, 4, 2, extra_fields=frozenset({"ref_logp", "kl_baseline"}))
    replace(PLAIN, objective=objective, aggregate=a.SequenceSum()).check(run)
    with pytest.raises(ValueError, match=rf"{type(objective).__name__} with TokenMean: .* only SequenceSum"):
        replace(PLAIN, objective=objective).check(run)


def test_an_algorithm_without_a_loss_is_refused():
    run = RunShape(8, 4, 2, extra_fields=frozenset({"teacher_tokens", "teacher_logp"}))
    replace(PLAIN, objective=a.Nothing(), regularizers=(a.Distillation(),)).check(run)
    with pytest.raises(ValueError, match=r"Nothing without regularizers"):
        replace(PLAIN, objective=a.Nothing()).check(run)


@pytest.mark.parametrize("aggregate", [a.SequenceMean("counted"), a.SequenceSum("counted")], ids=repr)
def test_rows_that_no_filter_empties_are_not_counted(aggregate: Any):
    replace(BASE, aggregate=aggregate, filters=(a.Overlong(),)).check(RUN)
    with pytest.raises(ValueError, match=r"aggregate=Sequence.*empty='counted'\) cannot act"):
        replace(BASE, aggregate=aggregate).check(RUN)
    critic = replace(BASE, advantage=a.GAE(), value_loss=a.ValueLoss(), filters=(a.Overlong(),))
    made = replace(RUN, extra_fields=frozenset({"value", "returns"}))
    critic.check(made)
    with pytest.raises(ValueError, match=r"value_aggregate=Sequence.*empty='counted'\) cannot act"):
        replace(critic, value_aggregate=aggregate).check(made)


OFF_POLICY = RunShape(8, 4, 1, sampler_differs=True, extra_fields=frozenset({"ref_logp"}))


@pytest.mark.parametrize("objective", [a.AIPO(), a.TOPR(), a.VESPO(), a.DPPO(), a.ReverseKL()], ids=repr)
def test_the_sampler_ratio_is_not_weighed_twice(objective: Any):
    weighing = replace(PLAIN, objective=objective)
    replace(weighing, corrections=(a.RatioMask(),)).check(OFF_POLICY)
    with pytest.raises(ValueError, match=rf"ImportanceWeight\(.*\) beside {type(objective).__name__}"):
        replace(weighing, corrections=(a.ImportanceWeight(),)).check(OFF_POLICY)


def test_components_that_read_the_sign_of_an_advantage_need_one():
    student = replace(PLAIN, objective=a.ReverseKL(), corrections=(a.OffPolicyMask(0.1),))
    replace(student, objective=a.PolicyGradient()).check(OFF_POLICY)
    with pytest.raises(ValueError, match=r"OffPolicyMask reads the sign of the advantage, which ReverseKL"):
        student.check(OFF_POLICY)


def test_a_bound_outside_the_range_of_a_mask_is_refused():
    def check(*corrections: Any) -> None:
        replace(BASE, corrections=corrections).check(OFF_POLICY)

    for weight in (a.ImportanceWeight(upper=1.5), a.ImportanceWeight("sequence"), a.ImportanceWeight(upper=None)):
        check(a.RatioMask(), weight)
    check(a.RatioMask(), a.ImportanceWeight(batch_normalize=True))  # its mean is over the masked ones too
    with pytest.raises(ValueError, match=r"ImportanceWeight.upper=2.0 cannot act beside RatioMask"):
        check(a.RatioMask(), a.ImportanceWeight())
    with pytest.raises(ValueError, match=r"ImportanceWeight.lower=0.5 cannot act beside RatioMask"):
        check(a.RatioMask(), a.ImportanceWeight(lower=0.5, upper=1.5))
