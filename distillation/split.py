"""Train, validation and test, divided before anything is learnt, never through a conversation or a near-duplicate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from potstill.errors import RecipeError
from potstill.records import Json

from .describe import RECORDED
from .duplicates import components, link

Split = Literal["train", "validation", "test"]
TRAIN, VALIDATION, TEST = 0, 1, 2
TWIN = 3
TWIN_OF_TEST = "twin of a test row (same conversation, user or near-duplicate)"


def record_newest(rows: Any, active: Any, newest: Mapping[Split, float]) -> None:
    """Write the newest rows into `recorded`: the test's share first, then validation's, all older ones to training.

    Rows of one time stay together on the newer side. Raises RecipeError when the log gives no times.
    """
    import numpy as np

    times = rows["time"]
    known = active & ~np.isnan(times)
    if not known.any():
        raise RecipeError(
            ["distill.split: newest needs times, and no exchange of the log has one; give a share instead"]
        )
    rows["recorded"][active] = RECORDED["train"]
    ranked = np.sort(times[known])
    taken, bound = 0.0, np.inf
    for name in ("test", "validation"):
        if name in newest:
            taken += newest[name]
            least = ranked[min(len(ranked) - 1, round(len(ranked) * (1 - taken)))]
            rows["recorded"][known & (times >= least) & (times < bound)] = RECORDED[name]
            bound = least


def divide(rows: Any, clusters: Any, groups: list[Any], active: Any, *, test: float, validation: float) -> Any:
    """The place of every active row (TRAIN, VALIDATION, TEST or TWIN); shape (rows,), int8, -1 for the others.

    A group is what hangs together through conversations, users, near-duplicates and the recipe's own group keys.
    A recorded split wins; the rest goes by the share of its group. Where a recorded split divides a group, its rows
    outside the test split are left out, so that no test row has a twin in training.
    """
    import numpy as np

    keys = [rows["conversation"], rows["user"], clusters.astype(np.uint64) + 1, *groups]
    group = components(len(rows), [link(np.where(active, each, 0)) for each in keys])
    recorded, share = rows["recorded"], _shares(rows, group, active)
    wishes = {name: _any(group, active & (recorded == code)) for name, code in RECORDED.items()}
    place = np.full(len(rows), TRAIN, np.int8)
    named = wishes["test"] | wishes["validation"] | wishes["train"]
    to_test = ~named & (share < test)
    only_train = wishes["train"] & ~wishes["validation"]
    to_validation = wishes["validation"] | (~wishes["train"] & (share < test + validation))
    to_validation |= only_train & (share < validation)  # a log that records train and test gets validation from train
    place[to_validation] = VALIDATION
    place[to_test] = TEST
    place[wishes["test"]] = TWIN
    place[wishes["test"] & (recorded == RECORDED["test"])] = TEST
    place[~active] = -1
    return place


def _any(group: Any, marked: Any) -> Any:
    """For each row whether any row of its group is marked."""
    import numpy as np

    has = np.zeros(len(group), bool)
    has[group[marked]] = True
    return has[group]


def _shares(rows: Any, group: Any, active: Any) -> Any:
    """The place in [0, 1) of each row's group: that of its conversation with the smallest hash."""
    import numpy as np

    order = np.lexsort((rows["conversation"], group))
    order = order[active[order]]
    first = np.ones(len(order), bool)
    first[1:] = group[order][1:] != group[order][:-1]
    share = np.zeros(len(group))
    share[group[order][first]] = rows["share"][order][first]
    return share[group]


def leakage(rows: Any, clusters: Any, groups: list[Any], place: Any) -> Json:
    """What any two splits share, by conversation, user, cluster and group key: all zeros, or the run fails."""
    import numpy as np

    keys = {"conversations": rows["conversation"], "users": rows["user"], "clusters": clusters.astype(np.uint64) + 1}
    keys |= {f"groups[{at}]": each for at, each in enumerate(groups)}
    splits = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
    report: Json = {}
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        for what, values in keys.items():
            one, other = (values[(place == splits[each]) & (values != 0)] for each in (a, b))
            report[f"{what} in {a} and {b}"] = len(np.intersect1d(one, other))
    return report
