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
# # Look into a dataset before anything is trained on it
#
# Reads a finished dataset folder: its manifest, the training and validation rows, and every row that was rejected
# with its reason. The sealed test split stays closed. Changes nothing. Without a parameter it takes the newest dataset
# of the quick start (`make demo` makes it). Another one:
#
#     POTSTILL_DATASET=work/NAME/dataset-KEY jupyter lab

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from potstill.dataset import read_examples
from potstill.manifest import read_manifest
from potstill.pipeline import newest

root = next(each for each in (Path.cwd(), *Path.cwd().parents) if (each / "pyproject.toml").is_file())
given = os.environ.get("POTSTILL_DATASET")
folder = Path(given).resolve() if given else newest(root / "work" / "quickstart", "dataset")
manifest = read_manifest(folder, "dataset", verify=False)
facts = manifest.facts
print(f"{folder.name}, digest {manifest.digest[:16]}, made by `{manifest.command}` on {manifest.created}")
for source in manifest.inputs:
    print(f"from {source.role}: {Path(source.path).name}, digest {source.digest[:16]}")

# %% [markdown]
# ## From the log to the rows
#
# How many rows each step left, and why the others went. Every rejected row is kept with its reason.

# %%
steps = pd.Series(facts.get("steps", {}), name="rows", dtype="int64")
steps.to_frame()

# %%
path = folder / "rejections.parquet"
rejected = pd.read_parquet(path) if path.is_file() else pd.DataFrame(columns=["id", "step", "reason", "row"])
reasons = pd.Series(facts.get("rejections", {}), name="rows", dtype="int64").sort_values(ascending=False)
print(f"{len(rejected):,} rejected rows")
reasons.to_frame()

# %% [markdown]
# One rejected row for each reason, as it stood in the log. A reason that throws away good rows shows here first.

# %%
pd.set_option("display.max_colwidth", 160)
rejected.drop_duplicates("step")[["step", "reason", "row"]].reset_index(drop=True)

# %% [markdown]
# ## The rows that are learnt
#
# `answer` is what the student learns: the teacher's answer, or the correction where somebody gave one.

# %%
rows = pd.concat(
    [
        pd.DataFrame(
            {
                "split": split,
                "id": each.id,
                "conversation": each.conversation,
                "prompt": str(each.messages[-1].get("content") or ""),
                "answer": each.answer,
                "teacher": each.teacher_answer,
                "corrected": each.corrected,
                "weight": each.weight,
                "stands_for": each.count,
            }
            for each in read_examples(folder, split)
        )
        for split in ("train", "validation")
        if (folder / f"{split}.parquet").is_file()
    ],
    ignore_index=True,
)
summary = rows.groupby("split", sort=False).agg(
    rows=("id", "size"),
    conversations=("conversation", "nunique"),
    answers=("answer", "nunique"),
    corrected=("corrected", "sum"),
    logged_rows=("stands_for", "sum"),
)
summary["teacher's own answer"] = (rows["answer"] == rows["teacher"]).groupby(rows["split"], sort=False).mean()
summary.round(3)

# %% [markdown]
# ### Answers
#
# The commonest and the rarest. A class with a handful of rows is learnt badly and judged worse.

# %%
counts = rows.groupby(["answer", "split"]).size().unstack(fill_value=0)
counts = counts.reindex(columns=["train", "validation"], fill_value=0).sort_values("train", ascending=False)
print(f"{len(counts):,} different answers; the rarest stands on {counts['train'].min():,} training rows")
counts if len(counts) <= 24 else pd.concat([counts.head(12), counts.tail(12)])

# %% [markdown]
# ### Lengths

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3))
for axes, column in ((left, "prompt"), (right, "answer")):
    for split, group in rows.groupby("split", sort=False):
        axes.hist(group[column].str.len(), bins=40, density=True, histtype="step", linewidth=1.5, label=split)
    axes.set_xlabel(f"characters of the {column}")
    axes.set_yticks([])
left.legend(frameon=False)
figure.tight_layout()

# %% [markdown]
# ## What could spoil the result
#
# Conversations, users or near-duplicates on both sides of a split would make the test easier than the world. And rows
# that a reader would call the same question, answered differently, cannot all be learnt.

# %%
pd.Series(facts.get("leakage", {}), name="shared", dtype="int64").to_frame()

# %%
prompts = rows["prompt"].str.casefold().str.split().str.join(" ")
same = rows.groupby(prompts)["answer"].agg(["nunique", "size", "unique"])
torn = same[same["nunique"] > 1].sort_values("size", ascending=False)
print(f"{len(torn):,} prompts with more than one answer")
torn.head(10)

# %% [markdown]
# Corrected rows: what the teacher said, and what somebody made of it.

# %%
rows.loc[rows["corrected"], ["prompt", "teacher", "answer"]].head(10).reset_index(drop=True)

# %% [markdown]
# ## A sample to read
#
# Twenty rows, the same ones each time. `potstill look` browses all of them.

# %%
rows.sample(min(20, len(rows)), random_state=0)[["split", "prompt", "answer"]].reset_index(drop=True)
