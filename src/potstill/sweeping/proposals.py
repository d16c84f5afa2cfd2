"""What to try next, what to give up, what mattered: optuna's TPE, percentile pruner and PED-ANOVA.

Each is asked as a pure function of the trials so far, in a study in memory: a sampler's random state is not kept on
disk, and a sweep that was killed must propose what it would have proposed.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .rows import Metric, Row
from .settings import Scalar, Space
from .spaces import combinations, holds, rounded

if TYPE_CHECKING:
    import optuna

STARTUP = (
    5  # trials drawn at random before the sampler models anything; fixed, so that more trials change no earlier one
)
ATTEMPTS = 20  # draws before a space counts as exhausted
KEPT_PERCENT = 75.0  # a trial is given up when it is behind these of the others at the same evaluation
PRUNED_AFTER = 1  # index of the evaluation from which on: 0 is before training
FEWEST_TO_PRUNE = 4
FEWEST_FOR_IMPORTANCE = 6

Spaces = Mapping[str, Space]


def distributions(spaces: Spaces) -> dict[str, Any]:
    """optuna's distribution of each key."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, Any] = {}
    for key, space in spaces.items():
        if space.choice is not None:
            found[key] = CategoricalDistribution(space.choice)
        else:
            low, high = space.ends
            log = space.log is not None
            found[key] = (
                IntDistribution(int(low), int(high), log=log)
                if space.whole
                else FloatDistribution(float(low), float(high), log=log)
            )
    return found


def in_space(spaces: Spaces, row: Row) -> bool:
    """Whether a row's values are a point of the search space (the recipe's own may lie outside)."""
    return all(holds(space, row.values[key]) for key, space in spaces.items())


def view(spaces: Spaces, rows: Sequence[Row], metric: Metric, sampler: Any = None) -> optuna.Study:
    """A study in memory with what ended by its settings: crashed trials say nothing of them and are left out."""
    import optuna
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize" if metric == "score" else "minimize", sampler=sampler)
    for row in rows:
        if row.state in ("running", "failed") or not in_space(spaces, row):
            continue
        value = row.value(metric)
        study.add_trial(
            create_trial(
                state=TrialState.PRUNED if value is None else TrialState.COMPLETE,
                value=value,
                params=dict(row.values),
                distributions=distributions(spaces),
                intermediate_values=dict(enumerate(row.curve)),
            )
        )
    return study


def propose(spaces: Spaces, rows: Sequence[Row], metric: Metric, seed: int) -> dict[str, Scalar] | None:
    """Values that no trial has had, None when there are none left."""
    from optuna.samplers import TPESampler

    tried = [dict(row.values) for row in rows]
    for attempt in range(ATTEMPTS):
        draw = (seed * 1_000_003 + len(rows) * 1_009 + attempt) % 2**32
        sampler = TPESampler(n_startup_trials=STARTUP, seed=draw)
        drawn = view(spaces, rows, metric, sampler).ask(distributions(spaces)).params
        values = {key: rounded(space, drawn[key]) for key, space in spaces.items()}
        if values not in tried:
            return values
    return next((each for each in combinations(spaces) or () if each not in tried), None)


def hopeless(curve: Sequence[float], spaces: Spaces, rows: Sequence[Row], metric: Metric) -> bool:
    """Whether a running trial is behind three quarters of the others at its latest evaluation.

    Evaluations are compared by their number, that is by the share of training done, since lengths may differ.
    """
    from optuna.pruners import PercentilePruner
    from optuna.trial import TrialState, create_trial

    pruner = PercentilePruner(
        KEPT_PERCENT, n_startup_trials=FEWEST_TO_PRUNE, n_warmup_steps=PRUNED_AFTER, n_min_trials=FEWEST_TO_PRUNE
    )
    running = create_trial(state=TrialState.RUNNING, intermediate_values=dict(enumerate(curve)))
    return bool(curve) and pruner.prune(view(spaces, rows, metric), running)


def importances(spaces: Spaces, rows: Sequence[Row], metric: Metric) -> dict[str, float]:
    """Share of the metric's variation that each key explains (PED-ANOVA); empty for too few trials to say."""
    import optuna

    study = view(spaces, rows, metric)
    done = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    if len(done) < FEWEST_FOR_IMPORTANCE or len(spaces) < 2 or len({each.value for each in done}) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = optuna.importance.get_param_importances(study)
    return {key: round(float(share), 4) for key, share in found.items()}
