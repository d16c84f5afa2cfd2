"""The script that MLflow runs when a version is loaded by `mlflow.pyfunc.load_model` (a model from code, no pickle).

A copy of it lies in every version beside MLmodel; tracking_pyfunc puts it there. It needs `potstill[serve]` where it is
loaded. Importing it does nothing but tell MLflow which object answers.
"""

from __future__ import annotations

from typing import Any


def tell_mlflow() -> None:
    import warnings

    from mlflow.models import set_model
    from mlflow.pyfunc.model import PythonModel

    with warnings.catch_warnings():  # puts showwarning back too; MLflow sets filters of its own in there
        warnings.showwarning = lambda *_, **__: None  # that type hints are missing: see predict

        class Student(PythonModel):
            """The folder is `context.artifacts["artifact"]`; `context.model_config` holds what CONFIG names."""

            def load_context(self, context: Any) -> None:
                from pathlib import Path

                from potstill.pyfunc import LocalStudent
                from potstill.serving.settings import ServeSettings

                config = {key: value for key, value in context.model_config.items() if value is not None}
                digest = config.pop("artifact_digest")
                settings = ServeSettings.model_validate(config)
                self.student = LocalStudent(Path(context.artifacts["artifact"]), settings, digest=digest)

            # No type hints on the input: MLflow would read them as a schema and refuse the other forms.
            def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
                from potstill.pyfunc_rows import requests_of, table_of

                answers = self.student.answer(requests_of(model_input))
                return table_of(
                    answers, getattr(model_input, "index", None) if hasattr(model_input, "columns") else None
                )

            def predict_stream(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
                from dataclasses import asdict

                from potstill.errors import RecipeError
                from potstill.pyfunc_rows import requests_of

                requests = requests_of(model_input)
                if len(requests) != 1:
                    raise RecipeError(
                        [f"predict_stream: found {len(requests)} rows, expected 1; use predict for several"]
                    )
                for piece in self.student.stream(requests[0]):
                    yield {"delta": piece} if isinstance(piece, str) else asdict(piece)

    set_model(Student())


tell_mlflow()
