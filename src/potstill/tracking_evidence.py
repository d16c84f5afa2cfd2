"""What reviewers look at in MLflow beside figures: sample answers side by side, and the internalised prompt."""

from __future__ import annotations

import json
from pathlib import Path

from potstill.manifest import sha256_json
from potstill.prompt import PromptRule
from potstill.records import Json
from potstill.tracking import Tracking, client, model_name
from potstill.tracking_journal import patiently

SAMPLE = "sample_predictions.json"
SAMPLED_ROWS = 100  # half of them, at most, where candidates differ
RULE = "potstill.prompt_rule"  # the tag of a prompt version: the digest of its rule
INPUT = "{{input}}"  # how MLflow writes a variable


def log_sample(tracking: Tracking, run_id: str, report: Path) -> None:
    """A table on the run: a row a held-out row, with gold, teacher and every candidate's answer. Logged once."""
    path = report / "predictions.parquet"
    api = client(tracking)
    if not path.is_file() or SAMPLE in api.get_run(run_id).data.tags.get("mlflow.loggedArtifacts", ""):
        return
    if table := sample_table(path):
        api.log_table(run_id, table, SAMPLE)


def sample_table(path: Path) -> dict[str, list[str]]:
    """Columns by name: rows where candidates differ first, in the order of the file; empty without rows."""
    import pyarrow.parquet as pq

    rows: dict[str, dict[str, str]] = {}
    candidates: list[str] = []
    for each in pq.read_table(path, columns=["id", "candidate", "text", "gold", "teacher"]).to_pylist():
        known = {name: each[name] or "" for name in ("id", "gold", "teacher")}
        row = rows.setdefault(each["id"], known)
        name = f"answer: {each['candidate']}"
        row[name] = each["text"] or ""
        if name not in candidates:
            candidates.append(name)
    split = [row for row in rows.values() if len({row.get(name) for name in candidates}) > 1]
    alike = [row for row in rows.values() if len({row.get(name) for name in candidates}) <= 1]
    chosen = split[: max(SAMPLED_ROWS // 2, SAMPLED_ROWS - len(alike))]
    chosen += alike[: SAMPLED_ROWS - len(chosen)]
    columns = ("id", "gold", "teacher", *candidates) if rows else ()
    return {name: [row.get(name, "") for row in chosen] for name in columns}


def prompt_messages(rule: PromptRule) -> list[dict[str, str]]:
    """The instructions that a rule leaves out, as messages: what the teacher was told and the student knows unsaid."""
    messages = [{"role": each.role, "content": each.text} for each in rule.drops]
    messages += [{"role": each.role, "content": f"{each.prefix}{INPUT}{each.suffix}"} for each in rule.strips]
    if all(each["role"] != "user" for each in messages):
        messages.append({"role": "user", "content": INPUT})
    return messages


def record_prompt(tracking: Tracking, recipe: str, rule_json: Json) -> str | None:
    """The address (`prompts:/NAME/3`) of these instructions in MLflow's prompt registry; one version for each rule.

    None where the prompt is kept: then the student is told what each request says, and nothing stands.
    """
    rule = PromptRule.from_json(rule_json)
    if not rule.drops and not rule.strips:
        return None
    api = client(tracking)
    name, digest = f"{model_name(recipe)}.prompt", sha256_json(rule_json)
    wanted = f"name = '{name}' and tags.`mlflow.prompt.is_prompt` = 'true'"
    known = patiently(lambda: api.search_model_versions(wanted, max_results=1000))
    for each in known:
        if each.tags.get(RULE) == digest:
            return f"prompts:/{name}/{each.version}"
    made = api.register_prompt(
        name, prompt_messages(rule), commit_message="instructions that the student knows unsaid", tags={RULE: digest}
    )
    return f"prompts:/{name}/{made.version}"


def link_prompt(tracking: Tracking, address: str, *, run_id: str, model_id: str) -> None:
    """Show a prompt version on a run and on a logged model."""
    name, _, number = address.removeprefix("prompts:/").rpartition("/")
    api = client(tracking)
    api.link_prompt_version_to_run(run_id, address)
    api.link_prompt_version_to_model(name, number, model_id)


def rule_of(dataset: Path) -> Json:
    """The prompt rule that a dataset's manifest carries; the empty one where it carries none."""
    facts = json.loads((dataset / "manifest.json").read_text()).get("facts", {})
    found: Json = facts.get("prompt_rule") or {}
    return found
