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
# # Where and how the file that ships goes wrong
#
# Reads a finished report folder and changes nothing. `report.html` has the same rows with their prompts; here they can
# be cut otherwise. Without a parameter it takes the newest report of the quick start (`make demo` makes it). Another:
#
#     POTSTILL_REPORT=work/NAME/report-KEY jupyter lab

# %%
import json
import os
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from potstill.intervals import wilson
from potstill.pipeline import newest

root = next(each for each in (Path.cwd(), *Path.cwd().parents) if (each / "pyproject.toml").is_file())
given = os.environ.get("POTSTILL_REPORT")
folder = Path(given).resolve() if given else newest(root / "work" / "quickstart", "report")
report = json.loads((folder / "report.json").read_text())
student, baseline = report["gate"]["candidate"], report["gate"]["baseline"]
alpha = report["settings"]["alpha"]
print(f"{folder.name}, made by `{report['command']}` on {report['created']}")
print(report["headline"]["title"])

# %% [markdown]
# ## One row a held-out row
#
# A row is right when its answer as a whole is, by gold; without gold, when it is the teacher's answer.

# %%
RIGHT = ("correct", "exact")
basis = report["gate"]["basis"]
predictions = pd.read_parquet(folder / "predictions.parquet")


def right(text):
    found = json.loads(text)
    return next((bool(found[each] >= 1) for each in RIGHT if each in found), None)


predictions["right"] = predictions[basis].map(right)
predictions["reference"] = predictions["gold"] if basis == "quality" else predictions["teacher"]
rows = predictions[predictions["candidate"] == student].set_index("id")
rows = rows[rows["right"].notna()].copy()
rows["right"] = rows["right"].astype(bool)
theirs = predictions[predictions["candidate"] == baseline].set_index("id")["right"]
rows[f"{baseline} right"] = theirs.reindex(rows.index)
print(f"{len(rows):,} rows judged by {basis}; {int((~rows['right']).sum()):,} wrong ({1 - rows['right'].mean():.1%})")


def with_interval(group):
    wrong, n = int((~group).sum()), len(group)
    low, high = wilson(wrong, n, alpha) if n else (0.0, 1.0)
    return pd.Series({"rows": n, "wrong": wrong, "share": wrong / n if n else None, "low": low, "high": high})


# %% [markdown]
# ## Errors that the baseline makes too, and those that are the student's own
#
# What both get wrong may be hard or wrongly labelled; what only the student gets wrong, training can mend.

# %%
pd.crosstab(
    rows["right"].map({True: "student right", False: "student wrong"}),
    rows[f"{baseline} right"].map({True: f"{baseline} right", False: f"{baseline} wrong"}).fillna("not judged"),
    margins=True,
)

# %% [markdown]
# ## By kind of mistake
#
# An invalid answer never reaches a service; a valid wrong one does.

# %%
wrong = rows[~rows["right"]]
kinds = wrong["reason"].where(~wrong["valid"], "valid, but wrong").fillna("invalid")
kinds.str.slice(0, 90).value_counts().rename("rows").to_frame().head(15)

# %% [markdown]
# ## By what should have been answered
#
# Wilson's intervals: a reference with five rows shows nothing by itself. The dashed line is the error rate overall.

# %%
by_reference = rows.groupby("reference")["right"].apply(with_interval).unstack()
by_reference = by_reference[by_reference["rows"] >= 5].sort_values("share", ascending=False)
worst = by_reference.head(15)
figure, axes = plt.subplots(figsize=(8, 0.32 * max(1, len(worst)) + 1))
for place, (_, each) in enumerate(worst[::-1].iterrows()):
    axes.plot([each["low"], each["high"]], [place, place], linewidth=3, color="tab:red", alpha=0.4)
    axes.plot(each["share"], place, "o", color="tab:red")
axes.set_yticks(range(len(worst)), [str(name)[:50] for name in worst.index[::-1]])
axes.axvline(1 - rows["right"].mean(), color="grey", linewidth=1, linestyle="--")
axes.set_xlabel(f"share wrong, with its {1 - alpha:.0%} interval")
axes.grid(axis="x", alpha=0.3)
figure.tight_layout()

# %%
worst.round(3)

# %% [markdown]
# ## The commonest mistakes

# %%
named = wrong.assign(
    answered=wrong["text"].str.strip().str.slice(0, 80), own=wrong[f"{baseline} right"].fillna(False).astype(bool)
)
mistakes = named.groupby(["reference", "answered"]).agg(rows=("right", "size"), baseline_has_it_right=("own", "sum"))
mistakes.sort_values("rows", ascending=False).head(20)

# %% [markdown]
# ## By length
#
# Rows in five groups of equal size by the tokens of their prompt.

# %%
lengths = rows["prompt_tokens"].astype("float64")
if lengths.notna().any():
    group = pd.qcut(lengths.rank(method="first"), min(5, len(rows)), labels=False)
    by_length = rows.groupby(group)["right"].apply(with_interval).unstack()
    by_length.insert(0, "tokens, at most", lengths.groupby(group).max())
else:
    by_length = pd.DataFrame({"note": ["the engine gave no token counts"]})
by_length.round(3)

# %% [markdown]
# ## By confidence
#
# Where answers carry one: does the student know when it does not know? The share that is right among the surest.

# %%
sure = rows["confidence"].astype("float64") if "confidence" in rows else pd.Series(dtype="float64")
if sure.notna().any():
    order = sure.sort_values(ascending=False).index
    curve = rows.loc[order, "right"].expanding().mean()
    held = pd.DataFrame({"answered": [0.5, 0.7, 0.8, 0.9, 0.95, 1.0]})
    held["right"] = [curve.iloc[max(0, round(share * len(curve)) - 1)] for share in held["answered"]]
else:
    held = pd.DataFrame({"note": ["no confidence came with these answers"]})
held.round(3)

# %% [markdown]
# ## Rows to read
#
# The student's own mistakes first: the baseline has them right.

# %%
pd.set_option("display.max_colwidth", 120)
reading = wrong.assign(own=wrong[f"{baseline} right"].fillna(False).astype(bool)).sort_values("own", ascending=False)
reading[["reference", "text", "teacher", "reason", "own"]].head(25)
