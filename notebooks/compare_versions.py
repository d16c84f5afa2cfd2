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
# # Compare versions of a model
#
# Each version stands on a report, and each report on held-out rows. Versions are comparable where they answered the
# same rows: those are paired here, and a difference is given with its interval as a report gives it. Reads the version
# and report folders of a recipe; changes nothing. Without parameters it takes the quick start's. Others, in any order:
#
#     POTSTILL_REPORTS=work/NAME/report-ONE:work/NAME/report-TWO jupyter lab

# %%
import json
import os
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from potstill.intervals import Resampling, decide, paired_difference
from potstill.manifest import MANIFEST, read_manifest
from potstill.tasks import task_from

root = next(each for each in (Path.cwd(), *Path.cwd().parents) if (each / "pyproject.toml").is_file())
given = os.environ.get("POTSTILL_REPORTS")
work = root / "work" / "quickstart"
found = [Path(each).resolve() for each in given.split(":")] if given else list(work.glob("report-*"))
folders = sorted(
    (each for each in found if (each / MANIFEST).is_file()), key=lambda each: read_manifest(each, verify=False).created
)
if not folders:
    raise FileNotFoundError(f"no finished report in {work}; make one (`make demo`) or name some in POTSTILL_REPORTS")
reports = {each.name: json.loads((each / "report.json").read_text()) for each in folders}
print(f"{len(folders)} reports: {', '.join(reports)}")

# %% [markdown]
# ## Versions and their reports

# %%
versions = {}
for path in sorted({folder.parent for folder in folders}):
    for file in path.glob("version-*/version.json"):
        version = json.loads(file.read_text())
        versions.setdefault(version.get("lineage", {}).get("report"), []).append(version)


def score(entry):
    return f"{entry['value']:.1%} [{entry['low']:.1%}, {entry['high']:.1%}]" if entry else "-"


table = pd.DataFrame(
    {
        folder.name: {
            "version": ", ".join(
                f"{each['model']} {each['version']} ({', '.join(each['aliases']) or 'no alias'})"
                for each in versions.get(read_manifest(folder, verify=False).digest, [])
            ),
            "made": report["created"][:16],
            "dataset": report["dataset"]["digest"][:10],
            "rows": report["rows"]["evaluated"],
            "judged": report["gate"]["candidate"],
            "quality": score(report["candidates"][report["gate"]["candidate"]]["quality"]),
            "agreement": score(report["candidates"][report["gate"]["candidate"]]["agreement"]),
            "gate": "passed" if report["gate"]["passed"] else "refused",
            "p50 ms": report["candidates"][report["gate"]["candidate"]]["latency_ms"]["p50"],
            "size MB": (report["candidates"][report["gate"]["candidate"]]["size_bytes"] or 0) / 1e6,
        }
        for folder, report in zip(folders, reports.values(), strict=True)
    }
)
table.transpose()

# %% [markdown]
# ## What differs in how they were made

# %%
made = pd.DataFrame(
    {
        name: {
            **{f"{each['what']} digest": each["digest"][:12] for each in report["lineage"]},
            **{f"evaluate.{key}": json.dumps(value) for key, value in report["settings"].items()},
            **{f"training.{key}": value for key, value in report.get("trained_on", {}).get("settings", {}).items()},
            "command": report["command"],
        }
        for name, report in reports.items()
    }
)
made[made.apply(lambda row: row.astype(str).nunique() > 1, axis=1)] if len(reports) > 1 else made

# %% [markdown]
# ## Paired differences
#
# The judged file of each report against that of the oldest, on the rows that both answered, judged by gold where both
# have it and else by agreement with the teacher. The margin is that of the newer report. Nobody fixed this comparison
# before looking: it is for orientation, a promotion rests on the report's own gate.

# %%
PAIRED = ("id", "conversation", "quality", "agreement", "text", "gold", "teacher")


def answers(folder, report):
    table = pd.read_parquet(folder / "predictions.parquet")
    return table.loc[table["candidate"] == report["gate"]["candidate"], list(PAIRED)].set_index("id")


judged = {name: answers(folder, reports[name]) for folder, name in zip(folders, reports, strict=True)}
first, *later = judged
task = task_from(read_manifest(folders[0], verify=False).settings_used["task"])
lines = []
for name in later:
    both = judged[first].add_suffix(" old").join(judged[name], how="inner")
    report = reports[name]
    how = Resampling(report["settings"]["alpha"], report["settings"]["resamples"], report["seed"])
    bases = [report["gate"]["basis"], reports[first]["gate"]["basis"]]
    basis = "quality" if bases == ["quality", "quality"] else "agreement"
    old, new = (both[column].map(json.loads) for column in (f"{basis} old", basis))
    known = (old.map(bool) & new.map(bool)).to_numpy()
    difference = paired_difference(
        task.metrics[0], list(new[known]), list(old[known]), list(both["conversation"][known]), how
    )
    if difference is None:
        lines.append({"report": name, "against": first, "verdict": "no row in common"})
        continue
    decision = decide(difference, report["settings"]["margin"], how.alpha)
    lines.append(
        {
            "report": name, "against": first, "basis": basis, "difference": difference.value, "low": difference.low,
            "high": difference.high, "rows": difference.n, "wins": difference.wins, "losses": difference.losses,
            "verdict": decision.verdict,
        }
    )  # fmt: skip
differences = pd.DataFrame(lines)
differences.round(4)

# %%
shown = differences.dropna(subset=["difference"]) if "difference" in differences else differences
figure, axes = plt.subplots(figsize=(8, 0.6 * max(1, len(shown)) + 1))
for place, (_, line) in enumerate(shown.iterrows()):
    axes.plot([100 * line["low"], 100 * line["high"]], [place, place], linewidth=3, color="tab:blue", alpha=0.5)
    axes.plot(100 * line["difference"], place, "o", color="tab:blue")
axes.axvline(0, color="grey", linewidth=1)
axes.axvline(-100 * reports[list(reports)[-1]]["settings"]["margin"], color="tab:red", linewidth=1, linestyle="--")
axes.set_yticks(range(len(shown)), list(shown["report"]) if len(shown) else [])
axes.set_xlabel(f"points against {first}; dashed: the margin")
axes.grid(axis="x", alpha=0.3)
figure.tight_layout()

# %% [markdown]
# ## Rows that changed sides
#
# Right before and wrong now is what a user would notice.

# %%
RIGHT = ("correct", "exact")


def right(text):
    found = json.loads(text)
    return next((found[each] >= 1 for each in RIGHT if each in found), None)


newest_one = list(judged)[-1]
both = judged[first].add_suffix(" old").join(judged[newest_one], how="inner") if later else judged[first].head(0)
sides = pd.DataFrame(
    {
        "gold": both["gold"],
        "then": both["text old"] if later else None,
        "now": both["text"],
        "was right": both["quality old"].map(right) if later else None,
        "is right": both["quality"].map(right),
    }
)
changed = sides[sides["was right"] != sides["is right"]]
print(f"{len(changed):,} of {len(sides):,} rows changed sides")
changed.sort_values("was right", ascending=False).head(20)
