"""The study of clipped tokens: which kind each id of a vocabulary is of, and what is counted by kind."""

import numpy as np
from peers.case import batch

from experiments.paper.t5_clipped_tokens import ClipByKind
from experiments.quickstart import TASK
from rl_llm.algorithms import Clip
from rl_llm.types import Batch

OF_THE_TASK = {
    "digit": ("0", "1", "2", "3", "4"),
    "sign": ("+", "=", ";"),
    "mark": ("<think>", "</think>", "<answer>", "</answer>"),
}
END, PAD = TASK.tokenizer.end_id, TASK.tokenizer.pad_id


def of(tokens: list[int], moved: list[int]) -> tuple[np.ndarray, Batch]:
    """The log-probabilities of a batch of one response that earned something, and the batch. The tokens at the places
    `moved` have become twice as likely.
    """
    mask = np.array([[token != PAD for token in tokens]], np.float32)
    old = np.full(mask.shape, -3.0, np.float32)
    fields = {"old_logp": old, "sampler_logp": old, "reward": np.ones(1, np.float32), "weight": mask}
    source = batch(mask, 1, advantage=mask, **fields).replace(tokens=np.array([tokens]))  # type: ignore[attr-defined]
    old = old.copy()
    old[0, moved] += np.log(2.0)
    return old, source


def test_tokens_of_the_task_are_counted_by_the_kind_of_their_symbol():
    ids = {text: TASK.tokenizer.encode(text) for texts in OF_THE_TASK.values() for text in texts}
    for kind, texts in OF_THE_TASK.items():
        for text in texts:
            logp, source = of([*ids[text], END, PAD, PAD], moved=[0, 1])
            loss, metrics = ClipByKind(0.2, 0.2)(logp, source)
            np.testing.assert_array_equal(loss, Clip(0.2, 0.2)(logp, source)[0])
            for name in OF_THE_TASK:
                share = 0.5 if name == kind else 0.0  # the end is of no kind, and padding is no token
                assert metrics[f"tokens/{name}"].result() == metrics[f"clipped/{name}"].result() == share, text
    logp, source = of([*ids["<answer>"], *ids["3"], *ids["4"], *ids["</answer>"], END], moved=[2])
    _, metrics = ClipByKind(0.2, 0.2)(logp, source)
    shares = {name: float(metric.result()) for name, metric in metrics.items() if "/" in name and "policy" not in name}
    assert shares == {
        **{"tokens/digit": np.float32(0.4), "tokens/sign": 0.0, "tokens/mark": np.float32(0.4)},
        **{"clipped/digit": np.float32(0.2), "clipped/sign": 0.0, "clipped/mark": 0.0},
    }
