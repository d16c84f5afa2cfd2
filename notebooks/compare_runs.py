# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Compare the candidates of a report, and its runs in MLflow
#
# Reads a finished report folder and the tracking database beside it; changes neither. Without parameters it takes the
# newest report of the quick start (`make demo` makes it). Another one:
#
#     POTSTILL_REPORT=work/NAME/report-KEY POTSTILL_TRACKING_URI=sqlite:////absolute/mlflow.db jupyter lab

# %%
import json
import os
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from potstill.pipeline import newest
from potstill.tracking import default_uri, open_tracking, without_password

root = next(each for each in (Path.cwd(), *Path.cwd().parents) if (each / "pyproject.toml").is_file())
given = os.environ.get("POTSTILL_REPORT")
folder = Path(given).resolve() if given else newest(root / "work" / "quickstart", "report")
tracking_uri = os.environ.get("POTSTILL_TRACKING_URI") or default_uri(folder.parent.parent)
report = json.loads((folder / "report.json").read_text())
print(f"{folder.name}, made by `{report['command']}` on {report['created']}")
print(report["headline"]["title"])
print(f"gate: {'passed' if report['gate']['passed'] else 'REFUSED'}: {'; '.join(report['gate']['reasons'])}")

# %% [markdown]
# ## Candidates
#
# Quality is measured on gold, agreement on the teacher's answers: two numbers, never one. Latency was taken as the
# column `engine` says, so it compares only between candidates that were asked in the same way.

# %%
candidates = report["candidates"]


def with_interval(score):
    return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]" if score else "-"


table = pd.DataFrame(
    {
        name: {
            "rows": each["rows"],
            "quality": with_interval(each["quality"]),
            "agreement": with_interval(each["agreement"]),
            "valid answers": f"{each['valid_rate']:.1%}",
            "p50 ms": each["latency_ms"]["p50"],
            "size MB": each["size_bytes"] and each["size_bytes"] / 1e6,
            "engine": each["engine"],
        }
        for name, each in candidates.items()
    }
)
table.transpose()

# %%
side = "quality" if report["gate"]["basis"] == "quality" else "agreement"
shown = {name: each[side] for name, each in candidates.items() if each[side]}
figure, axes = plt.subplots(figsize=(8, 0.6 * len(shown) + 1))
for place, score in enumerate(reversed(shown.values())):
    axes.plot([score["low"], score["high"]], [place, place], linewidth=3, color="tab:blue", alpha=0.5)
    axes.plot(score["value"], place, "o", color="tab:blue")
axes.set_yticks(range(len(shown)), list(reversed(shown)))
axes.set_xlabel(f"{report['metric']} ({side}), with its {1 - report['settings']['alpha']:.0%} interval")
axes.grid(axis="x", alpha=0.3)
figure.tight_layout()

# %% [markdown]
# ## Comparisons
#
# Intervals of candidates may overlap and the paired difference still be clear: rows are the same for both, so the
# verdict is read here.

# %%
columns = ["candidate", "baseline", "difference", "low", "high", "margin", "verdict", "n", "wins", "losses", "reason"]
pd.DataFrame(report["comparisons"], columns=columns)

# %% [markdown]
# ## Where the file that ships and the teacher part
#
# How often each of the two is right where they disagree, then the rows. `report.html` shows them with their messages.

# %%
student, teacher = report["gate"]["candidate"], "teacher"
predictions = pd.read_parquet(folder / "predictions.parquet")
answers = predictions.pivot(index="id", columns="candidate", values="text")
truth = predictions.drop_duplicates("id").set_index("id")[["gold", "teacher"]].rename(columns={"teacher": "by teacher"})
rows = answers[[student]].join(truth)
parted = rows[rows["by teacher"].notna() & (rows[student].str.strip() != rows["by teacher"])]
print(f"{len(parted):,} of {len(rows):,} rows ({len(parted) / len(rows):.1%})")
right = pd.DataFrame(
    {
        "student right": parted[student].str.strip() == parted["gold"],
        "teacher right": parted["by teacher"] == parted["gold"],
    }
)
right.value_counts().rename("rows").reset_index()

# %%
parted.join(right).sort_index().head(20)

# %% [markdown]
# ## The runs in MLflow, side by side

# %%
if tracking_uri.startswith("sqlite:///") and not Path(tracking_uri.removeprefix("sqlite:///")).is_file():
    raise FileNotFoundError(f"{tracking_uri}: no such database; run the recipe without --no-track, or name another")
open_tracking(tracking_uri)

import mlflow  # noqa: E402 (open_tracking first switches its telemetry off)

print(f"{without_password(tracking_uri)}: experiment {report['name']}; `make ui` opens it in a browser")
runs = mlflow.search_runs(experiment_names=[report["name"]])
wanted = {
    "tags.stage": "stage",
    "tags.mlflow.runName": "run",
    "status": "status",
    "start_time": "started",
    "end_time": "ended",
    "tags.mlflow.source.name": "command",
    "tags.potstill.digest": "digest",
}
runs.reindex(columns=list(wanted)).rename(columns=wanted).sort_values("started", ignore_index=True)

# %%
names = [f"{side}.{report['metric']}", f"{side}.low", f"{side}.high", "latency_p50_ms", "valid_rate"]
judged = runs[runs["tags.stage"] == "candidate"] if "tags.stage" in runs else runs
judged = judged.reindex(columns=["tags.potstill.candidate", "start_time", *(f"metrics.{name}" for name in names)])
judged.rename(columns=lambda name: name.removeprefix("metrics.").removeprefix("tags.potstill."))
