"""Answers that the log gives again and again to different prompts: canned text, from which nothing is learnt.

Only for free text (task kind `generation`): a label or a small JSON object is meant to come back. Only long answers:
"Yes." and "You are welcome!" are right answers to many questions.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from potstill.recipe import Section

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

KIND = "generation"  # the only task kind for which a repeated answer is suspicious


class Boilerplate(Section):
    """When an answer counts as canned: so many different prompts got it, and that many are such a share of all rows."""

    least_characters: Annotated[int, Field(ge=1)] = 40
    least_prompts: Annotated[int, Field(ge=2)] = 20
    least_share: Annotated[float, Field(ge=0, le=1)] = 0.001


def boilerplate_answers(
    answer_hashes: npt.NDArray[np.uint64],
    prompt_hashes: npt.NDArray[np.uint64],
    answer_lengths: npt.NDArray[np.integer],
    settings: Boilerplate,
) -> npt.NDArray[np.bool_]:
    """Where a row's answer is canned. Shapes (rows,); lengths in characters.

    An answer is counted once for each different prompt, so one question asked a thousand times makes no boilerplate.
    """
    import numpy as np

    least = max(settings.least_prompts, math.ceil(settings.least_share * len(answer_hashes)))
    canned = np.zeros(len(answer_hashes), dtype=bool)
    long = np.flatnonzero(np.asarray(answer_lengths) >= settings.least_characters)
    if len(long) < least:
        return canned
    _, answers, counts = np.unique(answer_hashes[long], return_inverse=True, return_counts=True)
    often = counts[answers] >= least  # rows that cannot reach the threshold need no look at their prompts
    long, answers = long[often], answers[often]
    order = np.lexsort((prompt_hashes[long], answers))
    by_answer, by_prompt = answers[order], prompt_hashes[long][order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = (by_answer[1:] != by_answer[:-1]) | (by_prompt[1:] != by_prompt[:-1])
    prompts = np.bincount(by_answer[first], minlength=len(counts))
    canned[long] = prompts[answers] >= least
    return canned
