"""Techniques in whole runs: their inputs are made, carried from step to step, and survive an interruption."""

import json
import math
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from program import (
    ROOT,
    WARM_STEPS,
    Finished,
    finish,
    finished,
    outcome,
    rl_llm,
    start,
    steps_done,
    wait_until,
    without_time,
)

from rl_llm import algorithms
from rl_llm.algorithms import (
    DIRECT_PREFERENCE,
    GDPO,
    GKD,
    GRPO_KL,
    LITE_PPO,
    ON_POLICY_DISTILLATION,
    PPO,
    REWARD_MODEL,
    RLOO,
    EntropyBonus,
    Normalize,
    Reference,
    RepetitionPenalty,
    RewardAtLeast,
    RewardToGo,
    RunShape,
    SoftOverlong,
    TokenMean,
    Whiten,
    WhitenRewards,
    ZeroVariance,
)
from rl_llm.config import load_experiment
from rl_llm.experiment import (
    Curriculum,
    Difficulty,
    DynamicSampling,
    Mixture,
    Replay,
    ResponseLength,
    RewardModel,
    StoredResponses,
    Teacher,
)
from rl_llm.learner.optimizer import AdamW
from rl_llm.rewards.components import Accuracy, Reward
from rl_llm.tasks.modular_sum import ModularSum
from tests.data.techniques import ABLATION, CRITIC

FILE = "tests/data/techniques.py"
EVERYTHING = load_experiment(f"{ROOT / FILE}:everything")[1]
# Recipes that need nothing but rewards run like the tiny experiment, Lite PPO.
REWARDS_ONLY = {name for name, one in ABLATION.items() if not one.algorithm.needs and one.critic is None}
BY_COMPONENTS = pytest.mark.nightly("test_invariance.py covers its components; recipes that need more than rewards run")
RECIPES = [pytest.param(name, marks=BY_COMPONENTS if name in REWARDS_ONLY else ()) for name in sorted(ABLATION)]
ALIKE = pytest.mark.nightly("`everything` carries the same parts; test_state.py restores its state")
MORE = ("critic", pytest.param("lora", marks=ALIKE), pytest.param("small", marks=ALIKE))


class NoDemonstrations(ModularSum):
    """A task without demonstrations."""

    def __init__(self) -> None:
        super().__init__(modulus=3)

    demonstrate = property()  # type: ignore[assignment]


def train(folder: Path, name: str, *arguments: str, **environment: str) -> Finished:
    return finished(folder, rl_llm("train", f"{FILE}:{name}", "--out", folder, *arguments, **environment))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return train(tmp_path_factory.mktemp("everything") / "run", "everything")


@pytest.mark.slow
def test_the_divergence_is_measured_from_the_reference(run: Finished):
    """It grows from update to update and falls after the second step, when the reference is reset to the policy."""
    divergence = [line["policy/kl"] for line in run.metrics[WARM_STEPS:]]
    assert all(math.isfinite(value) and value >= 0 for value in divergence)
    assert divergence[0] > 0, "the second update of a step is made by another policy than the reference"
    assert divergence[1] > divergence[0]
    assert divergence[2] < divergence[1]


@pytest.mark.slow
def test_the_sampler_lags_behind_the_learner(run: Finished, tmp_path: Path):
    """Staleness 2 samples steps 1 to 3 with the first parameters, staleness 1 only steps 1 and 2."""
    fresh = train(tmp_path / "run", "everything", "--set", "staleness=1")
    tokens = [[line["tokens/generated"] for line in each.metrics[WARM_STEPS:]] for each in (run, fresh)]
    assert tokens[0][:2] == tokens[1][:2]
    assert tokens[0][2:] != tokens[1][2:]


@pytest.fixture(scope="module")
def selecting(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return train(tmp_path_factory.mktemp("selecting") / "run", "selecting")


def interrupted(folder: Path, name: str) -> Finished:
    """A run that was stopped in the middle of its RL steps and resumed."""
    process = start("train", f"{FILE}:{name}", "--out", folder, "--set", "checkpointing.every=1")
    wait_until(process, lambda: steps_done(folder) > WARM_STEPS)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 143
    assert WARM_STEPS < steps_done(folder) < WARM_STEPS + EVERYTHING.steps
    return train(folder, name, "--resume")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["everything", "selecting", *MORE])
def test_carried_state_survives_an_interruption(request: pytest.FixtureRequest, tmp_path: Path, name: str):
    """The train state, and the run's position in its problems."""
    fixture = {"everything": "run", "selecting": "selecting"}.get(name)
    whole = request.getfixturevalue(fixture) if fixture else train(tmp_path / "whole", name)
    resumed = interrupted(tmp_path / "run", name)
    assert without_time(resumed.metrics) == without_time(whole.metrics)
    assert outcome(resumed.summary) == outcome(whole.summary)


@pytest.mark.slow
def test_uninformative_groups_are_resampled_until_enough_or_the_limit_of_rollouts(selecting: Finished):
    experiment = load_experiment(f"{ROOT / FILE}:selecting")[1]
    for line in selecting.metrics[WARM_STEPS:]:
        enough = line["sampling/informative_groups"] >= experiment.prompts_per_step
        assert line["sampling/rollouts"] <= 3
        assert enough or line["sampling/rollouts"] == 3
        assert line["tokens/generated"] >= line["sampling/rollouts"] * experiment.prompts_per_step * 4
    assert any(line["sampling/rollouts"] > 1 for line in selecting.metrics[WARM_STEPS:])


@pytest.mark.slow
def test_a_curriculum_widens_and_solved_problems_are_counted(selecting: Finished):
    lines = selecting.metrics[WARM_STEPS:]
    assert [line["curriculum/max_tokens"] for line in lines] == [6, 9, 12, 16]
    assert [line["curriculum/problems"] for line in lines] == [24, 29, 35, 40]
    assert all(line["response/length"] <= line["curriculum/max_tokens"] for line in lines)
    assert lines[0]["response/truncated"] > 0
    solved = [line["curriculum/solved"] for line in lines]
    assert solved == sorted(solved)
    assert solved[-1] > 0


@pytest.mark.slow
def test_controllers_move_their_coefficients(run: Finished):
    """The entropy is below its target throughout."""
    found = [line["coefficient/EntropyBonus"] for line in run.metrics[WARM_STEPS:]]
    assert max(line["policy/entropy"] for line in run.metrics[WARM_STEPS:]) < 5.0
    np.testing.assert_allclose(found, 0.05 + 0.005 * np.arange(1, len(found) + 1), atol=1e-6)


@pytest.mark.slow
def test_earlier_rollouts_are_replayed(run: Finished):
    """Two updates per rollout, and a second rollout from the second step on. The learning rate counts them all."""
    assert EVERYTHING.policy_updates() == 2 + 3 * 4
    assert [EVERYTHING.rollout_updates(steps) for steps in range(5)] == [0, 2, 6, 10, 14]
    assert int(run.metrics[-1]["step"]) == WARM_STEPS + EVERYTHING.steps


@pytest.mark.slow
def test_the_full_divergence_is_what_k3_estimates(tmp_path: Path):
    """Estimated from a few hundred sampled tokens, over all updates of a step."""
    lines = train(tmp_path / "run", "full_kl").metrics[WARM_STEPS:]
    for line in lines:
        assert line["policy/distillation"] == pytest.approx(line["policy/kl"], rel=0.5)


@pytest.mark.slow
def test_a_critic_is_pretrained_alone(tmp_path: Path):
    finished = train(tmp_path / "run", "critic")
    alone, *both = finished.metrics[WARM_STEPS:]
    assert alone["critic/error"] > 0
    assert "policy/ratio" not in alone
    assert all("policy/ratio" in line and line["critic/gradient_norm"] > 0 for line in both)


@pytest.mark.slow
def test_a_run_with_carried_state_can_be_evaluated(run: Finished):
    code, stdout, stderr = rl_llm("evaluate", run.folder)
    assert code == 0, stderr
    assert json.loads(stdout)["accuracy"] == run.summary["accuracy_after"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [*RECIPES, "remax", "following", "shared_critic", "mixed", "full_kl", "full_kl_in_reward"]
)
def test_a_recipe_runs(tmp_path: Path, name: str):
    for line in train(tmp_path / "run", name).metrics:
        assert math.isfinite(line["loss"])
        assert line.get("update/skipped", 0) == line.get("critic/skipped", 0) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": GRPO_KL}, r"KLPenalty need batch.ref_logp, which this run does not make"),
        ({"reference": Reference()}, r"reference=Reference\(.*\) cannot act: no component"),
        ({"staleness": -1}, r"Experiment.staleness=-1 is out of range; expected >= 0"),
        ({"algorithm": PPO}, r"critic=None with algorithm.value_loss=ValueLoss"),
        ({"critic": CRITIC}, r"algorithm.value_loss=None: a critic learns by a value loss"),
        (
            {"algorithm": PPO, "critic": replace(CRITIC, pretraining_steps=5)},
            r"pretraining_steps=5 are more than steps",
        ),
        ({"dynamic_sampling": DynamicSampling()}, r"dynamic_sampling=.* cannot act: no filter"),
        (
            {
                "dynamic_sampling": DynamicSampling(),
                "algorithm": replace(LITE_PPO, filters=(ZeroVariance(),)),
                "train_problems": 15,
            },
            r"dynamic_sampling=.* cannot act: a second rollout asks prompts_per_step=8 further problems",
        ),
        (
            {"curriculum": Curriculum(drop_solved=0.5), "train_problems": 8},
            r"drop_solved=0.5 cannot act: every step asks all of train_problems=8",
        ),
        ({"curriculum": Curriculum(Difficulty(0.1, 2))}, r"first_share=0.1 of train_problems=40 is less than"),
        ({"curriculum": Curriculum(Difficulty(0.5, 9))}, r"difficulty.steps=9 are more than steps=4"),
        (
            {"curriculum": Curriculum(length=ResponseLength(16, 2))},
            r"length.first=16 cannot act: sampling.max_tokens=16",
        ),
        ({"teacher": Teacher("x")}, r"teacher=Teacher\(.*\) cannot act: no component"),
        ({"teacher": Teacher("x"), "reference": Reference(), "algorithm": GRPO_KL}, r"both make batch.ref_logp"),
        ({"algorithm": GKD, "teacher": Teacher("x")}, r"Distillation need batch.teacher_logp and batch.teacher_tokens"),
        ({"algorithm": GRPO_KL, "teacher": Teacher("x", top_tokens=2)}, r"top_tokens of Teacher"),
        (
            {"responses": StoredResponses("x"), "curriculum": Curriculum(drop_solved=0.5)},
            r"curriculum cannot act on stored",
        ),
        ({"replay": Replay(), "steps": 1, "optimizer": AdamW(1e-2)}, r"replay=.* cannot act: steps=1"),
        ({"algorithm": GRPO_KL, "reference": Reference(reset_every=9)}, r"reset_every=9 cannot act in steps=4"),
        (
            {"algorithm": GRPO_KL, "reference": Reference(reset_every=1), "updates_per_rollout": 1},
            r"is the policy itself at every update",
        ),
        ({"staleness": 4}, r"staleness=4 with steps=4: every rollout would be the first policy's"),
        ({"algorithm": replace(LITE_PPO, advantage=GDPO((1.0, 1.0)))}, r"GDPO.weights=\(1.0, 1.0\) for 1 rewards"),
        (
            {"algorithm": replace(LITE_PPO, advantage=GDPO((1.0, 1.0))), "reward": Reward((Accuracy(2.0),))},
            r"Accuracy\(weight=2.0\).weight cannot act: GDPO\(.*\) has weights of its own",
        ),
        (  # the filter looks at the total, so the weight acts
            {
                "algorithm": replace(LITE_PPO, advantage=GDPO((1.0, 1.0)), filters=(ZeroVariance(),)),
                "reward": Reward((Accuracy(2.0),)),
            },
            r"GDPO.weights=\(1.0, 1.0\) for 1 rewards",
        ),
        (
            {"reward_model": RewardModel("x"), "reward": Reward((Accuracy(2.0),))},
            r"reward=.* cannot act: the reward model's score replaces it",
        ),
        ({"responses": StoredResponses("x"), "staleness": 1}, r"staleness cannot act on stored responses"),
        ({"task": NoDemonstrations(), "mixture": Mixture(8, 28)}, r"warm_start needs demonstrations"),
    ],
)
def test_what_cannot_act_is_refused(changes: dict, message: str):
    base = load_experiment(str(ROOT / FILE))[1]
    with pytest.raises(ValueError, match=message):
        replace(base, **changes)


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (replace(DIRECT_PREFERENCE, advantage=Normalize()), r"Pairwise reads no advantage, so Normalize\(.*cannot act"),
        (replace(DIRECT_PREFERENCE, aggregate=TokenMean()), r"Pairwise with TokenMean"),
        (replace(REWARD_MODEL, value_aggregate=TokenMean()), r"BradleyTerry with TokenMean"),
        (
            replace(PPO, value_loss=algorithms.BradleyTerry(), value_aggregate=algorithms.SequenceSum()),
            r"BradleyTerry beside Whiten: the advantage needs values that predict returns",
        ),
        (replace(PPO, advantage=Whiten(Normalize())), r"ValueLoss beside Whiten: nothing reads the critic's values"),
        (
            replace(LITE_PPO, regularizers=(EntropyBonus(math.inf),)),
            r"EntropyBonus.coefficient=inf: it must be a finite",
        ),
        (replace(LITE_PPO, filters=(RewardAtLeast(math.nan),)), r"RewardAtLeast.threshold=nan"),
        (replace(GRPO_KL, filters=(ZeroVariance(counts=False),)), r"ZeroVariance.counts=False cannot act"),
        (
            replace(ON_POLICY_DISTILLATION, shaping=(SoftOverlong(8, 4),)),
            r"SoftOverlong shapes a reward that ReverseKL",
        ),
        (
            replace(LITE_PPO, advantage=RewardToGo(outcome=RLOO()), shaping=(WhitenRewards(),)),
            r"WhitenRewards changes the reward at the last token",
        ),
        (
            replace(LITE_PPO, shaping=(RepetitionPenalty(n=40),)),
            r"RepetitionPenalty.n=40 cannot act on responses of at",
        ),
    ],
)
def test_incompatible_components_are_refused(algorithm: algorithms.Algorithm, message: str):
    made = frozenset({"ref_logp", "kl_baseline", "value", "returns"})
    with pytest.raises(ValueError, match=message):
        algorithm.check(RunShape(8, 4, 2, extra_fields=made, max_tokens=16))


def test_a_correction_needs_a_sampler_that_differs():
    with pytest.raises(ValueError, match=r"ImportanceWeight cannot act where the sampler is the policy itself"):
        replace(EVERYTHING, staleness=0, replay=None)
    assert replace(EVERYTHING, staleness=0, replay=None, sampling=replace(EVERYTHING.sampling, top_k=3))
