"""Warnings derived from a run's own metrics: overfitting, a misleading reward, wasted compute.

A check is a pure function of the RL steps recorded so far. All checks run at every evaluation and at the end, so a
resumed run finds the same as an uninterrupted one. A finding is no verdict: it names an observation and a remedy.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np

from rl_llm.rewards.worker import Status
from rl_llm.runs import curves
from rl_llm.runs.curves import WINDOW_STEPS, AccuracyPoint, Columns, Sampled

# Standard errors that count as a difference. A finding needs CERTAIN (3 in 100,000 by chance), because it is tested at
# every evaluation, against the best of many. LIKELY is enough for evidence against one.
CERTAIN, LIKELY = 4.0, 2.0
FALL = 0.10  # of accuracy from its best; smaller falls are normal while a policy learns
GAP = 0.20  # in accuracy, training minus validation
SHORTEST = 3  # RL steps in an average, if a run has no more
RISE = 0.25  # of the reward, in standard deviations of a response's reward at the start
MASTERED = 0.90  # accuracy that leaves little to gain
GROWTH = 2.0  # factor in response length at the same accuracy
TRUNCATED = 0.25  # of responses
ENTROPY = 0.01  # nats per token, below which a policy repeats itself
ALIKE = 0.5  # of groups whose responses all have one reward
NO_SIGNAL = 0.95  # of the same groups
UNGRADED = 0.01  # of the responses of a run


@dataclass(frozen=True)
class Finding:
    """A warning raised after `step` RL steps, counted from 1 as in its `text`, which has the numbers and a remedy."""

    name: str
    step: int
    text: str


def overfitting(steps: Columns, sampled: Sampled) -> str | None:
    """Validation accuracy fell from its best, or stayed far below training accuracy, which did not fall.

    This happens with few training problems, while the training reward keeps improving. It also happens if training
    problems are easier than validation problems; the numbers cannot tell these apart. A curriculum excuses a wide gap.
    """
    points = curves.validation_accuracies(steps, sampled)
    if not (sampled.own and points):
        return None
    best, now = max(points, key=lambda point: point.share), points[-1]
    training, memorized = _training_beside(steps, sampled, points, now), _memorized(steps, sampled)
    wide = training.share - now.share >= GAP and _apart(training, points, sampled, CERTAIN)
    if not memorized and (curves.difficulty_moves(steps) or not wide):
        return None
    course = f"fell from {best.share:.3f} (RL step {best.steps}) to" if memorized else "is"
    return (
        f"accuracy on validation problems {course} {now.share:.3f}, on training problems it is {training.share:.3f}: "
        "training problems are memorized, or are too easy. Train on more and more varied problems (train_problems), "
        f"stop earlier, or stay close to the start (KLPenalty). {_best_checkpoint(steps, sampled, best)}"
    )


def accuracy_lost(steps: Columns, sampled: Sampled) -> str | None:
    """Accuracy fell from its best on training problems too: the policy is damaged, not specialised."""
    points = curves.accuracies(steps, sampled)
    if not _fallen(points) or _memorized(steps, sampled):
        return None
    best, now = max(points, key=lambda point: point.share), points[-1]
    return (
        f"accuracy fell from {best.share:.3f} (RL step {best.steps}) to {now.share:.3f}: the policy is getting worse. "
        "Try a smaller learning rate, fewer updates per rollout or a tighter clip, and use the checkpoint from before. "
        + _best_checkpoint(steps, sampled, best)
    )


def reward_misleads(steps: Columns, sampled: Sampled) -> str | None:
    """The reward of training responses rose but their accuracy did not: the reward does not measure the goal.

    Compares with the start, or, if accuracy rose with the reward at first, with its best. Both numbers are of the same
    responses, so only a curriculum excuses this. Above MASTERED a reward may turn to brevity, say, if accuracy stays.
    """
    needed = {"reward/mean", "reward/accuracy"}
    if not (sampled.own and sampled.rewarded) or curves.difficulty_moves(steps) or not needed <= set(steps):
        return None
    reward, right = steps["reward/mean"], steps["reward/accuracy"]
    unit = curves.finite_mean(steps["reward/std"][:WINDOW_STEPS])
    for end, width, errors in _spans(steps, sampled):
        rise, rise_error = curves.change(reward, end, width)
        gain, gain_error = curves.change(right, end, width)
        fell = gain < -LIKELY * gain_error
        risen = rise > errors * rise_error and rise >= RISE * unit
        if risen and gain <= LIKELY * gain_error and (fell or curves.finite_mean(right[-width:]) < MASTERED):
            break
    else:
        return None
    parts = [name for name in sorted(steps) if name.startswith("component/") and name != "component/accuracy"]
    moved = [(name.removeprefix("component/"), *curves.change(steps[name], end, width)) for name in parts]
    listed = ", ".join(f"{name} by {by:+.3f}" for name, by, noise in moved if abs(by) > LIKELY * noise)
    before, course = curves.finite_mean(right[end - width : end]), "fell" if fell else "did not follow"
    return (
        f"from the {width} RL steps up to {end} to the last {width}, the reward rose by {rise:.3f} while accuracy "
        f"{course} ({gain:+.3f}, from {before:.3f}): something else is being rewarded"
        + (f", components moved: {listed}" if listed else "")
        + ". Look at samples.jsonl, give accuracy more weight, or drop the component"
    )


def _spans(steps: Columns, sampled: Sampled) -> Iterator[tuple[int, int, float]]:
    """(last step, width) of the windows to compare the last steps with, and the errors by which the reward must rise.

    Fewer errors are enough if accuracy has certainly fallen.
    """
    points, count = curves.accuracies(steps, sampled), len(steps["step"])
    if count >= 2 * WINDOW_STEPS:
        yield WINDOW_STEPS, WINDOW_STEPS, CERTAIN
    if _fallen(points) and not _memorized(steps, sampled):
        best = max(points, key=lambda point: point.share).steps
        width = min(WINDOW_STEPS, best, count - best)
        if width >= SHORTEST:
            yield best, width, LIKELY


def length_runs_away(steps: Columns, sampled: Sampled) -> str | None:
    """Responses doubled in length since accuracy first reached its present value (within its error)."""
    points, length = curves.accuracies(steps, sampled), steps.get("response/length", np.empty(0))
    if not sampled.own or len(points) < 2:
        return None
    now = points[-1]
    gains = ((point, *now.difference(point)) for point in points)
    first = next(point for point, gain, error in gains if gain <= LIKELY * error)
    before, after = (curves.finite_mean(length[max(0, one.steps - WINDOW_STEPS) : one.steps]) for one in (first, now))
    if not after >= GROWTH * before:
        return None
    return (
        f"responses grew from {before:.0f} to {after:.0f} tokens since RL step {first.steps}, and accuracy is no "
        f"better ({first.share:.3f} then, {now.share:.3f} now): the extra tokens gain nothing. Penalise length "
        "(SoftOverlong), or average the loss so that it does not favour long wrong responses (FixedLength)"
    )


def truncation(steps: Columns, sampled: Sampled) -> str | None:
    """Many responses are truncated: they cost much, earn little, teach to stop early. A widening limit excuses this."""
    share = curves.recent_mean(steps, "response/truncated")
    limits = steps.get("curriculum/max_tokens", np.empty(0))[-WINDOW_STEPS:]
    if not (sampled.own and share > TRUNCATED) or len(set(limits.tolist())) > 1:
        return None
    return (
        f"{share:.0%} of responses were truncated in the last {WINDOW_STEPS} steps: raise sampling.max_tokens, or mask "
        "truncated responses or penalise them (Overlong, SoftOverlong)"
    )


def exploration_ended(steps: Columns, sampled: Sampled) -> str | None:
    """Entropy is near zero and most groups agree while many responses are wrong.

    A policy that always says the same finds nothing better: accuracy is bought with entropy (arXiv 2505.22617).
    """
    entropy, right = curves.recent_mean(steps, "policy/entropy"), curves.recent_mean(steps, "reward/accuracy")
    alike = curves.recent_mean(steps, "reward/zero_variance_groups")
    if not (sampled.own and entropy < ENTROPY and right < MASTERED and alike >= ALIKE):
        return None
    return (
        f"entropy is down to {entropy:.4f} nats per token and {alike:.0%} of groups agree, at an accuracy of "
        f"{right:.3f}: the policy no longer explores. Raise the upper clip bound (Clip.high) or add an "
        "EntropyBonus, from an earlier checkpoint or another seed"
    )


def no_signal(steps: Columns, sampled: Sampled) -> str | None:
    """In nearly all groups all rewards are equal: the rollout teaches nothing, as problems are too hard or solved."""
    alike = curves.recent_mean(steps, "reward/zero_variance_groups")
    right = curves.recent_mean(steps, "reward/accuracy")
    if not (sampled.own and sampled.rewarded and alike >= NO_SIGNAL):
        return None
    advice = (
        "The problems are solved: stop here, use harder ones, or drop the solved ones (Curriculum.drop_solved)"
        if right >= MASTERED
        else "Use easier problems or begin with them (Curriculum.difficulty), sample more per prompt, or warm up longer"
    )
    return (
        f"in {alike:.0%} of groups of the last {WINDOW_STEPS} steps all responses have the same reward, at an accuracy "
        f"of {right:.3f}: there is nothing to learn from them. {advice}"
    )


def updates_skipped(steps: Columns, sampled: Sampled) -> str | None:
    """Updates were skipped because gradients were not finite: one may be an accident, more are a wrong setting."""
    skipped = steps.get("update/skipped", np.empty(0))
    count = int(np.nansum(skipped > 0))
    if count == 0:
        return None
    return (
        f"updates were skipped in {count} of {len(skipped)} steps because their gradients were not finite. Try a "
        "smaller learning rate, or float32"
    )


def ungraded(steps: Columns, sampled: Sampled) -> str | None:
    """More than 1 % of the responses could not be graded: nothing was learned from them, whatever they were."""
    counts = {name: float(np.nansum(steps.get(f"grading/{name}", 0.0))) for name in get_args(Status)}
    failed = {name: count for name, count in counts.items() if name != "ok" and count}
    share = sum(failed.values()) / max(sum(counts.values()), 1.0)
    if not share > UNGRADED:
        return None
    listed = ", ".join(f"{name} {count:.0f}" for name, count in failed.items())
    return (
        f"{share:.1%} of the responses could not be graded ({listed}) and were left out. Their texts and the reasons "
        'are in samples.jsonl ("when": "ungraded"). Mend the verifier or the reward, or raise grading.time_limit'
    )


CHECKS: tuple[Callable[[Columns, Sampled], str | None], ...] = (
    overfitting,
    accuracy_lost,
    reward_misleads,
    length_runs_away,
    truncation,
    exploration_ended,
    no_signal,
    updates_skipped,
    ungraded,
)


def find(lines: Sequence[Mapping[str, Any]], sampled: Sampled) -> list[Finding]:
    """The findings after these lines of metrics.jsonl (`read_metrics`)."""
    return _find(curves.columns(lines), sampled)


def find_all(lines: Sequence[Mapping[str, Any]], sampled: Sampled) -> list[Finding]:
    """All findings of a run, each once, as first reported."""
    steps = curves.columns(lines)
    found: dict[str, Finding] = {}
    evaluated = {point.steps for point in curves.validation_accuracies(steps, sampled)}
    for end in sorted(evaluated | {len(steps["step"])}):
        for finding in _find({name: values[:end] for name, values in steps.items()}, sampled):
            found.setdefault(finding.name, finding)
    return list(found.values())


def _find(steps: Columns, sampled: Sampled) -> list[Finding]:
    texts = ((check.__name__, check(steps, sampled)) for check in CHECKS if len(steps["step"]))
    return [Finding(name, len(steps["step"]), text) for name, text in texts if text is not None]


def _best_checkpoint(steps: Columns, sampled: Sampled, best: AccuracyPoint) -> str:
    """The place of the best checkpoint, or the field that keeps it."""
    if not sampled.keeps_best:
        return "The best one is kept with checkpointing.keep_best=True and evaluation.every"
    step = int(steps["step"][best.steps - 1])
    counted = "" if step == best.steps else f" (step {step} with the warm start)"
    named = f"The checkpoint of RL step {best.steps}{counted} has the best validation accuracy"
    return f"{named}: rl-llm export RUN --step {step}"


def _fallen(points: Sequence[AccuracyPoint]) -> bool:
    if len(points) < 2:
        return False
    fall, error = max(points, key=lambda point: point.share).difference(points[-1])
    return fall >= FALL and fall > CERTAIN * error


def _memorized(steps: Columns, sampled: Sampled) -> bool:
    """Whether validation accuracy fell from its best while training accuracy did not fall and is above it."""
    points = curves.validation_accuracies(steps, sampled)
    if not (sampled.own and _fallen(points)):
        return False
    best = max(points, key=lambda point: point.share)
    training = _training_beside(steps, sampled, points, points[-1])
    risen, error = training.difference(_training_beside(steps, sampled, points, best))
    return risen >= -LIKELY * error and _apart(training, points, sampled, LIKELY)


def _training_beside(
    steps: Columns, sampled: Sampled, points: Sequence[AccuracyPoint], point: AccuracyPoint
) -> AccuracyPoint:
    """Training accuracy since the evaluation before `point`; in a fast collapse, older steps show another policy."""
    earlier = [one.steps for one in points if one.steps < point.steps]
    return curves.training_accuracy(steps, sampled, point.steps, since=max(earlier, default=0))


def _apart(training: AccuracyPoint, points: Sequence[AccuracyPoint], sampled: Sampled, errors: float) -> bool:
    """Whether training accuracy exceeds the last validation accuracy by `errors` standard errors, the one before by 1.

    Both are compared because a policy that has just collapsed on all problems was still good in between.
    """
    problems = (replace(point, trials=sampled.prompts) for point in points[-2:])  # each problem is one trial
    gaps = [training.difference(point) for point in problems]
    return gaps[-1][0] >= errors * gaps[-1][1] and all(gap > error for gap, error in gaps)
