"""The study on disk: an optuna study in SQLite, one insert when a trial begins and one state change when it ends.

A trial that was running when the sweep was killed is the same trial afterwards: its settings were stored with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from .proposals import Spaces, distributions, in_space
from .rows import Metric, Row
from .settings import Scalar

ROW = "potstill.row"


class Study:
    """Rows of one sweep in `study.db`; optuna's own tools can read it."""

    def __init__(self, folder: Path, name: str, spaces: Spaces, metric: Metric) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        folder.mkdir(parents=True, exist_ok=True)
        self.spaces, self.metric = spaces, metric
        self._study = optuna.create_study(
            storage=f"sqlite:///{folder / 'study.db'}",
            study_name=name,
            load_if_exists=True,
            direction="maximize" if metric == "score" else "minimize",
            sampler=optuna.samplers.RandomSampler(),  # never asked: proposals come from `propose`
            pruner=optuna.pruners.NopPruner(),
        )

    def rows(self) -> list[Row]:
        """Every trial, in order."""
        from optuna.trial import TrialState

        found = []
        for trial in self._study.get_trials(deepcopy=False):
            row = Row(**trial.user_attrs[ROW])
            # killed between storing the figures and ending the trial: not ended
            found.append(Row(row.number, row.values, default=row.default) if trial.state == TrialState.RUNNING else row)
        return found

    def begin(self, values: Mapping[str, Scalar], *, default: bool = False) -> Row:
        """A new running trial, stored whole in one transaction."""
        from optuna.trial import TrialState, create_trial

        row = Row(len(self._study.get_trials(deepcopy=False)), dict(values), default=default)
        inside = in_space(self.spaces, row)  # optuna refuses values outside; such a trial has none there
        self._study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=dict(values) if inside else {},
                distributions=distributions(self.spaces) if inside else {},
                user_attrs={ROW: asdict(row)},
            )
        )
        return row

    def end(self, row: Row) -> None:
        """Store a trial's figures, then its end."""
        import optuna
        from optuna.trial import TrialState

        stored = self._study.get_trials(deepcopy=False)[row.number]
        trial = optuna.trial.Trial(self._study, stored._trial_id)
        trial.set_user_attr(ROW, asdict(row))
        for at, value in enumerate(row.curve):
            if at not in stored.intermediate_values:
                trial.report(value, at)
        state = {"done": TrialState.COMPLETE, "failed": TrialState.FAIL}.get(row.state, TrialState.PRUNED)
        self._study.tell(row.number, row.value(self.metric), state=state)
