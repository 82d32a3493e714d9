"""What a run's own numbers say against it: overfitting, a reward that misleads, compute that runs away.

A test is a pure function of the RL steps recorded so far. All are made at every evaluation and at the end, so a run
that is resumed finds what an unbroken one finds. A finding is no verdict: it says what was seen, and what may be done.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rl_llm.runs.curves import (
    WINDOW,
    Accuracy,
    Columns,
    Sampled,
    change,
    columns,
    mean,
    measured,
    moving,
    recent,
    trained,
    validations,
)

SURE, LIKELY = 4.0, 2.0
"""Standard errors that make a difference. A finding needs SURE, which chance passes three times in 100,000: it compares
with the best of many evaluations, and is looked for again at each. LIKELY is enough for what speaks against one.
"""
FALL = 0.10  # of accuracy from its best; smaller ones come and go as a policy learns
GAP = 0.20  # of accuracy, from training to validation
SHORTEST = 3  # RL steps that are averaged, where a run has no more
RISE = 0.25  # of the reward, in standard deviations of a response's reward at the start
MASTERED = 0.90  # accuracy above which there is little left to gain, so that a policy may rest
GROWTH = 2.0  # of responses at the same accuracy
TRUNCATED = 0.25  # of responses
ENTROPY = 0.01  # nats per token, below which a policy repeats itself
ALIKE = 0.5  # of groups whose responses all have one reward
NO_SIGNAL = 0.95  # of the same


@dataclass(frozen=True)
class Finding:
    """What was found, by which `step` of the run, and in words with the numbers and a way out."""

    name: str
    step: int
    text: str


def overfitting(steps: Columns, sampled: Sampled) -> str | None:
    """Validation accuracy has fallen from its best while training accuracy has not, or it never came near it: what is
    learned of the training problems does not carry over.

    A policy that is trained on few problems goes this way; the training reward alone looks better and better. So does
    one that is trained on a pool of easier problems than those of validation: how much easier they are, the numbers
    cannot tell. A curriculum excuses a wide gap.
    """
    points = validations(steps, sampled)
    if not (sampled.own and points):
        return None
    best, now = max(points, key=lambda point: point.share), points[-1]
    training, forgotten = _beside(steps, sampled, points, now), _forgotten(steps, sampled)
    wide = training.share - now.share >= GAP and _apart(training, points, sampled, SURE)
    if not forgotten and (moving(steps) or not wide):
        return None
    course = f"fell from {best.share:.3f} (RL step {best.steps}) to" if forgotten else "is"
    return (
        f"accuracy on validation problems {course} {now.share:.3f}, on training problems it is {training.share:.3f}: "
        "they are learned by heart, or are too easy. Train on more and more varied problems (train_problems), stop "
        "earlier, or keep close to the start (KLPenalty)"
    )


def accuracy_lost(steps: Columns, sampled: Sampled) -> str | None:
    """Accuracy has fallen from its best, on training problems too: the policy has been damaged, not specialised.

    Judged by validation accuracy where there is any, or else by that of training, unless a curriculum moves it.
    """
    points = measured(steps, sampled)
    if not _fallen(points) or _forgotten(steps, sampled):
        return None
    best, now = max(points, key=lambda point: point.share), points[-1]
    return (
        f"accuracy fell from {best.share:.3f} (RL step {best.steps}) to {now.share:.3f}: the policy is getting worse. "
        "Try a smaller learning rate, fewer updates per rollout or a tighter clip, and take the checkpoint from before"
    )


def reward_misleads(steps: Columns, sampled: Sampled) -> str | None:
    """The reward of training responses has risen while their accuracy has not, or has even fallen: what is rewarded is
    not what is wanted. Since the start; or, where accuracy rose with it at first, since that was best.

    Both are of the same responses, so a curriculum of moving difficulty alone excuses. Where nearly all are right
    already, a reward may go on to other things (brevity, say) as long as accuracy stays.
    """
    if not (sampled.own and sampled.rewarded) or moving(steps) or not {"reward/mean", "reward/accuracy"} <= set(steps):
        return None
    reward, right, unit = steps["reward/mean"], steps["reward/accuracy"], mean(steps["reward/std"][:WINDOW])
    for end, width, errors in _spans(steps, sampled):
        rise, error = change(reward, end, width)
        gain, of_gain = change(right, end, width)
        fell = gain < -LIKELY * of_gain
        risen = rise > errors * error and rise >= RISE * unit
        if risen and gain <= LIKELY * of_gain and (fell or mean(right[-width:]) < MASTERED):
            break
    else:
        return None
    parts = [name for name in sorted(steps) if name.startswith("component/") and name != "component/accuracy"]
    moved = [(name.removeprefix("component/"), *change(steps[name], end, width)) for name in parts]
    named = [f"{name} by {by:+.3f}" for name, by, noise in moved if abs(by) > LIKELY * noise]
    return (
        f"the reward rose by {rise:.3f}, from the {width} RL steps up to {end} to the last {width}, while accuracy "
        f"{'fell' if fell else 'did not follow'} ({gain:+.3f}, from {mean(right[end - width : end]):.3f}): something "
        "else is being rewarded"
        + (f", components moved: {', '.join(named)}" if named else "")
        + ". Look at samples.jsonl, weigh accuracy more, or drop the component"
    )


def _spans(steps: Columns, sampled: Sampled) -> Iterator[tuple[int, int, float]]:
    """Up to which step, and over how many, to average what the last steps are compared with, and by how many errors the
    reward is to have risen: less have to do where it is sure that accuracy fell.
    """
    points, count = measured(steps, sampled), len(steps["step"])
    if count >= 2 * WINDOW:
        yield WINDOW, WINDOW, SURE
    if _fallen(points) and not _forgotten(steps, sampled):
        best = max(points, key=lambda point: point.share).steps
        width = min(WINDOW, best, count - best)
        if width >= SHORTEST:
            yield best, width, LIKELY


def length_runs_away(steps: Columns, sampled: Sampled) -> str | None:
    """Responses have grown to twice what they were when accuracy was first as high as it is now (within its error):
    tokens, and with them money, that buy nothing.
    """
    points, length = measured(steps, sampled), steps.get("response/length", np.empty(0))
    if not sampled.own or len(points) < 2:
        return None
    now = points[-1]
    first = next(point for point in points if _no_better(now, point))
    before, after = (mean(length[max(0, point.steps - WINDOW) : point.steps]) for point in (first, now))
    if not after >= GROWTH * before:
        return None
    return (
        f"responses grew from {before:.0f} to {after:.0f} tokens since RL step {first.steps}, and accuracy is no "
        f"better ({first.share:.3f} then, {now.share:.3f} now): the tokens buy nothing. Penalise length "
        "(SoftOverlong), or average the loss so that it does not favour long wrong responses (FixedLength)"
    )


def truncation(steps: Columns, sampled: Sampled) -> str | None:
    """More than a quarter of the responses do not come to an end: they cost the most and mostly earn nothing, and what
    is learned from them is to stop, not to reason. While a curriculum widens the limit, that is its intention.
    """
    share = recent(steps, "response/truncated")
    limits = steps.get("curriculum/max_tokens", np.empty(0))[-WINDOW:]
    if not (sampled.own and share > TRUNCATED) or len(set(limits.tolist())) > 1:
        return None
    return (
        f"{share:.0%} of responses were cut off in the last {WINDOW} steps: raise sampling.max_tokens, or leave what "
        "is cut off out of the loss or penalise it (Overlong, SoftOverlong)"
    )


def exploration_ended(steps: Columns, sampled: Sampled) -> str | None:
    """Entropy is near zero and most groups agree with themselves while much is still wrong: a policy that always says
    the same cannot find anything better (arXiv 2505.22617: accuracy is bought with entropy, and ends with it).
    """
    entropy, right = recent(steps, "policy/entropy"), recent(steps, "reward/accuracy")
    alike = recent(steps, "reward/zero_variance_groups")
    if not (sampled.own and entropy < ENTROPY and right < MASTERED and alike >= ALIKE):
        return None
    return (
        f"entropy is down to {entropy:.4f} nats per token and {alike:.0%} of groups agree, at an accuracy of "
        f"{right:.3f}: the policy no longer explores. Raise the upper clip bound (Clip.high) or add an "
        "EntropyBonus, from an earlier checkpoint or another seed"
    )


def no_signal(steps: Columns, sampled: Sampled) -> str | None:
    """In nearly all groups all responses have one reward: relative to their group they are worth nothing, so they cost
    a rollout and teach nothing. The problems are too hard, or solved.
    """
    alike, right = recent(steps, "reward/zero_variance_groups"), recent(steps, "reward/accuracy")
    if not (sampled.own and sampled.rewarded and alike >= NO_SIGNAL):
        return None
    advice = (
        "they are solved: stop here, take harder ones or leave the solved ones out (Curriculum.drop_solved)"
        if right >= MASTERED
        else "take easier ones or begin with them (Curriculum.difficulty), sample more per prompt, or warm up longer"
    )
    return (
        f"in {alike:.0%} of groups of the last {WINDOW} steps all responses have the same reward, at an accuracy of "
        f"{right:.3f}, and there is nothing to learn from them. Of the problems: {advice}"
    )


def updates_skipped(steps: Columns, sampled: Sampled) -> str | None:
    """Updates whose gradients were not finite, which were left out: one is an accident, more are a wrong setting."""
    skipped = steps.get("update/skipped", np.empty(0))
    count = int(np.nansum(skipped > 0))
    if count == 0:
        return None
    return (
        f"in {count} of {len(skipped)} steps updates were skipped, as their gradients were not finite. Try a smaller "
        "learning rate, or float32"
    )


TESTS: tuple[Callable[[Columns, Sampled], str | None], ...] = (
    overfitting,
    accuracy_lost,
    reward_misleads,
    length_runs_away,
    truncation,
    exploration_ended,
    no_signal,
    updates_skipped,
)


def find(lines: Sequence[Mapping[str, Any]], sampled: Sampled) -> list[Finding]:
    """What there is to say after these lines of metrics.jsonl (`read_metrics`)."""
    return _find(columns(lines), sampled)


def find_all(lines: Sequence[Mapping[str, Any]], sampled: Sampled) -> list[Finding]:
    """Every finding once, as at the first evaluation, or else at the end, by which there was one: what `find` said
    while the lines were written.
    """
    steps = columns(lines)
    found: dict[str, Finding] = {}
    evaluated = {point.steps for point in validations(steps, sampled)}
    for end in sorted(evaluated | {len(steps["step"])}):
        for finding in _find({name: values[:end] for name, values in steps.items()}, sampled):
            found.setdefault(finding.name, finding)
    return list(found.values())


def _find(steps: Columns, sampled: Sampled) -> list[Finding]:
    texts = ((test.__name__, test(steps, sampled)) for test in TESTS if len(steps["step"]))
    return [Finding(name, int(steps["step"][-1]), text) for name, text in texts if text is not None]


def _fallen(points: Sequence[Accuracy]) -> bool:
    if len(points) < 2:
        return False
    fall, error = max(points, key=lambda point: point.share).less(points[-1])
    return fall >= FALL and fall > SURE * error


def _forgotten(steps: Columns, sampled: Sampled) -> bool:
    """Whether validation accuracy has fallen from its best, and training accuracy has not and stands above it."""
    points = validations(steps, sampled)
    if not (sampled.own and _fallen(points)):
        return False
    best = max(points, key=lambda point: point.share)
    training = _beside(steps, sampled, points, points[-1])
    risen, error = training.less(_beside(steps, sampled, points, best))
    return risen >= -LIKELY * error and _apart(training, points, sampled, LIKELY)


def _beside(steps: Columns, sampled: Sampled, points: Sequence[Accuracy], point: Accuracy) -> Accuracy:
    """Training accuracy since the evaluation before this one: that of earlier steps is of another policy, where it
    collapses fast.
    """
    earlier = [one.steps for one in points if one.steps < point.steps]
    return trained(steps, sampled, point.steps, since=max(earlier, default=0))


def _apart(training: Accuracy, points: Sequence[Accuracy], sampled: Sampled, errors: float) -> bool:
    """Whether training accuracy, of the steps between the last two evaluations, is above that of the last by so many
    errors, and by one above the other: a policy that has just got worse on all problems was still as good in between.
    """
    problems = (replace(point, trials=sampled.prompts) for point in points[-2:])  # other ones: each of them counts once
    gaps = [training.less(point) for point in problems]
    return gaps[-1][0] >= errors * gaps[-1][1] and all(gap > error for gap, error in gaps)


def _no_better(now: Accuracy, then: Accuracy) -> bool:
    gain, error = now.less(then)
    return gain <= LIKELY * error
