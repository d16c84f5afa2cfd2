"""Export: the merge against PEFT, verification and its refusals, and the stage on a tiny model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export import merge, run, verify
from potstill import chat, models
from potstill.completers import Completion
from potstill.contract import Contract
from potstill.dataset import write_examples
from potstill.engine import Engine
from potstill.errors import DamagedInput, ManifestMismatch, ParityMismatch, PotstillError
from potstill.gguf_file import read_gguf_metadata
from potstill.intervals import wilson
from potstill.manifest import write_manifest
from potstill.records import Example, Json
from potstill.stage import Shared
from potstill.tasks import task_from
from tests.stages.tiny_llama import QUESTIONS, gguf_of, tiny_base

# One token each, so that a grammar over characters and a tree over tokens leave the same choice to a random model.
TASK: Json = {"kind": "classification", "labels": ["A", "B", "C"]}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> models.Base:
    return tiny_base(tmp_path_factory.mktemp("tiny") / "base")


# Merging


@given(
    out=st.integers(1, 9),
    into=st.integers(1, 9),
    rank=st.integers(1, 4),
    scale=st.floats(-4, 4),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_merging_adds_scale_times_b_a_and_nothing_with_zero_b(
    out: int, into: int, rank: int, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(out, into, generator=generator).bfloat16()
    down, up = torch.randn(rank, into, generator=generator), torch.randn(out, rank, generator=generator)
    weights = {"w": base, "untouched": base}
    merged = merge.MergedWeights(weights, {"w": merge.Delta(down, up, scale)})
    wanted = base.double() + scale * (up.double() @ down.double())
    torch.testing.assert_close(merged["w"].double(), wanted, atol=1e-4, rtol=1e-5)
    assert merged["untouched"] is base
    assert torch.equal(merge.MergedWeights(weights, {"w": merge.Delta(down, up * 0, scale)})["w"], base.float())


def save_adapter(base: models.Base, folder: Path, seed: int = 3, **changes: Any) -> Any:
    """A PEFT adapter with random B, saved; returns the float32 model that wears it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(
        **{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **changes}
    )
    model = get_peft_model(models.load_float(base.path, dtype="float32"), config)
    for name, values in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(values, std=0.2)
        if "magnitude" in name:
            values.data *= torch.rand_like(values) + 0.5
    model.save_pretrained(str(folder))
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers\.1\.mlp\.up_proj": 32, "v_proj": 1}},
        {"target_modules": ["q_proj", "v_proj"]},
        {"use_dora": True},
        {"use_dora": True, "use_rslora": True, "rank_pattern": {"q_proj": 2}},
    ],
    ids=["plain", "rank-stabilised", "patterns", "two modules", "magnitudes", "magnitudes, rank-stabilised"],
)
def test_merging_gives_what_peft_gives(tiny: models.Base, tmp_path: Path, changes: Json) -> None:
    wanted = save_adapter(tiny, tmp_path, **changes).merge_and_unload().state_dict()
    merged = merge.MergedWeights(merge.FolderWeights(tiny.path), merge.read_adapter(tmp_path))
    for name, weight in merged.items():
        torch.testing.assert_close(weight.float(), wanted[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("changes", [{"lora_bias": True}, {"modules_to_save": ["lm_head"]}, {"bias": "lora_only"}])
def test_an_adapter_that_is_more_than_lora_is_refused(tiny: models.Base, tmp_path: Path, changes: Json) -> None:
    config = {"peft_type": "LORA", "lora_alpha": 8, "bias": "none", **changes}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(PotstillError, match=next(iter(changes))):
        merge.read_adapter(tmp_path)


def test_an_adapter_whose_magnitudes_are_gone_is_refused(tiny: models.Base, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_adapter(tiny, tmp_path, use_dora=True)
    file = tmp_path / "adapter_model.safetensors"
    save_file({name: each for name, each in load_file(file).items() if "magnitude" not in name}, file)
    with pytest.raises(DamagedInput, match="magnitudes of"):
        merge.read_adapter(tmp_path)


def test_an_adapter_of_another_base_is_refused(tiny: models.Base, tmp_path: Path) -> None:
    save_adapter(tiny, tmp_path)
    other = tiny_base(tmp_path / "other", intermediate_size=160)
    merged = merge.MergedWeights(merge.FolderWeights(other.path), merge.read_adapter(tmp_path))
    with pytest.raises(DamagedInput, match="trained on"):
        dict(merged)
    with pytest.raises(DamagedInput, match="does not hold"):
        merge.MergedWeights({}, merge.read_adapter(tmp_path))


# Verification


def completions(*texts: str) -> list[Completion]:
    return [Completion(str(at), text) for at, text in enumerate(texts)]


def example(at: int, text: str = "fine") -> Example:
    messages = [{"role": "user", "content": text}]
    return Example(f"r{at}", f"c{at}", messages, messages, "A", "A", "A")


def test_equal_means_equal_values_and_invalid_on_both_sides_is_counted_apart() -> None:
    found = verify.compare(
        completions("A", " b\n", "what", "C", "A"),
        completions("A", "B", "ever", "A", "nonsense"),
        [example(at) for at in range(5)],
        task_from(TASK),
    )
    assert (found.rows, found.equal, found.both_invalid) == (5, 3, 1)
    assert [each["id"] for each in found.differing] == ["r3", "r4"]
    assert found.low < found.share == 0.6 < found.high


@pytest.mark.parametrize(
    ("rows", "differing", "refused"), [(5, 1, False), (64, 6, False), (64, 20, True), (1000, 80, True)]
)
def test_a_file_is_refused_only_when_chance_cannot_explain_it(rows: int, differing: int, refused: bool) -> None:
    low, high = wilson(rows - differing, rows)
    agreement = verify.Agreement(rows, rows - differing, 1 - differing / rows, low, high, 0, [{}] * differing)
    if not refused:
        verify.refuse_other_answers("gguf-q8_0", agreement, 0.05)
        return
    with pytest.raises(PotstillError, match=f"{differing} of {rows} answers differ"):
        verify.refuse_other_answers("gguf-q8_0", agreement, 0.05)


# The stage


class Setting:
    """A dataset and a random adapter of the tiny base, as distil and train would leave them."""

    def __init__(self, base: models.Base, folder: Path) -> None:
        self.base, self.folder = base, folder
        self.tokenizer = chat.load_tokenizer(base.path)
        self.tokenizer.chat_template = chat.CHATML
        self.rows = [example(at, f"message {at}: {text}  {at}") for at, text in enumerate(QUESTIONS)]
        self.contract = Contract(
            task=TASK,
            chat_template=chat.CHATML,
            stop=["<|im_end|>"],
            prompt_rule={"drops": [], "strips": []},
            max_tokens=8,
            window=256,
            golden=[chat.golden(self.tokenizer, each.messages, each.tools) for each in self.rows[:4]],
        )
        write_examples(folder / "dataset" / "validation.parquet", self.rows)
        write_manifest(folder / "dataset", "dataset", settings_passed={}, settings_used={}, inputs=[], facts={})
        adapter = folder / "adapter"
        save_adapter(base, adapter / "adapter")
        self.tokenizer.save_pretrained(adapter / "tokenizer")
        self.write_adapter(base.digest)
        self.shared = Shared("tiny", TASK, str(base.path), folder / "work" / "tiny", "sqlite://")
        self.upstream: Any = {"dataset": folder / "dataset", "adapter": adapter}

    def write_adapter(self, base_digest: str) -> None:
        adapter = self.folder / "adapter"
        self.contract.write(adapter)
        facts = {"base": {"spec": str(self.base.path), "digest": base_digest}, "training": {}}
        write_manifest(adapter, "adapter", settings_passed={}, settings_used={}, inputs=[], facts=facts)


@pytest.fixture
def setting(tiny: models.Base, tmp_path: Path) -> Setting:
    return Setting(tiny, tmp_path)


def test_the_stage_writes_verified_files_with_the_contract(setting: Setting, tmp_path: Path) -> None:
    out = tmp_path / "artifact"
    out.mkdir()
    settings = run.Settings(formats=("gguf-f16", "gguf-q8_0"), max_mismatch_share=0.2)
    facts = run.main(settings, setting.shared, setting.upstream, out)
    assert sorted(each.name for each in out.iterdir()) == [
        "NOTICE.txt", "bom.json", "contract.json", "model-f16.gguf", "model-q8_0.gguf", "profile.json",
        "verification.json",
    ]  # fmt: skip
    assert Contract.read(out) == setting.contract
    for name, entry in facts["formats"].items():
        assert read_gguf_metadata(out / entry["file"])["tokenizer.chat_template"] == chat.CHATML
        assert entry["size_bytes"] == (out / entry["file"]).stat().st_size
        assert facts["verification"][name]["rows"] == len(QUESTIONS)
        assert facts["verification"][name]["prompts_differing"] == 0
    assert facts["verification"]["gguf-f16"]["share"] >= 0.9
    assert facts["verification"]["gguf-f16"]["divergence"] == {"reference": "gguf-f16"}
    shown = json.loads((out / "verification.json").read_text())
    for name in facts["formats"]:
        assert shown[name]["speed"] == facts["verification"][name]["speed"]
        assert facts["verification"][name]["speed"]["decode_tokens_per_s"] > 0
    base_file = read_gguf_metadata(Path(facts["base_gguf"]))
    assert base_file["tokenizer.chat_template"] == chat.load_tokenizer(setting.base.path).chat_template
    json.dumps(facts)


def test_coarse_files_are_weighed_by_training_rows_and_measured_against_16_bits(
    setting: Setting, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tiny model's rows (64, 128) divide into no block of 256, so that every matrix has its second choice."""
    write_examples(setting.folder / "dataset" / "train.parquet", setting.rows)
    out = tmp_path / "artifact"
    out.mkdir()
    settings = run.Settings(formats=("gguf-q4_k_m", "gguf-q6_k"), max_mismatch_share=1.0, importance_rows=8)
    facts = run.main(settings, setting.shared, setting.upstream, out)
    assert sorted(each.name for each in out.glob("*") if each.suffix in (".gguf", ".json")) == [
        "bom.json", "contract.json", "model-q4_k_m.gguf", "model-q6_k.gguf", "profile.json", "verification.json",
    ]  # fmt: skip
    coarse, fine = facts["formats"]["gguf-q4_k_m"], facts["formats"]["gguf-q6_k"]
    assert coarse["fallbacks"]["blk.1.attn_q.weight"] == {"wanted": "Q4_K", "written": "Q5_0", "row": 64}
    assert (coarse["importance_rows"], fine["weighted"]) == (8, 0)  # Q6_K's second choice is Q8_0, which takes none
    assert coarse["weighted"] == coarse["tensors"]["Q5_0"] > 0
    said = capsys.readouterr().err
    assert "attn_q.weight (2) is Q5_0 instead of Q4_K: a row of 64 does not divide into its blocks" in said
    answers = {name: facts["verification"][name]["divergence"]["answer"] for name in facts["formats"]}
    assert answers["gguf-q4_k_m"]["kl_mean"] > answers["gguf-q6_k"]["kl_mean"] > 0
    assert answers["gguf-q4_k_m"]["rows"] == len(QUESTIONS)
    assert 0.0 <= answers["gguf-q4_k_m"]["same_top"] <= 1.0


def test_importance_is_the_mean_square_of_what_each_matrix_is_given(setting: Setting) -> None:
    """Seen on the merged weights by hand: the first layer's queries are given the normalised embeddings."""
    from export.importance import column_importance, tokens_of
    from export.write import source_of

    write_examples(setting.folder / "dataset" / "train.parquet", setting.rows)
    source = source_of(setting.base, setting.upstream, setting.contract, "tiny", importance_rows=3)
    found = column_importance(source, 3)
    weights = source.weights
    assert set(found) <= set(weights) | {"lm_head.weight"}
    tokens = [token for at in (0, 6, 13) for token in tokens_of(setting.tokenizer, setting.rows[at], 256)]
    given = weights["model.embed_tokens.weight"][tokens].float()
    scaled = given * torch.rsqrt(given.square().mean(-1, keepdim=True) + 1e-6)
    wanted = (scaled * weights["model.layers.0.input_layernorm.weight"].float()).square().mean(0).numpy()
    assert found["model.layers.0.self_attn.q_proj.weight"] == pytest.approx(wanted, rel=0.02)
    assert (found["model.embed_tokens.weight"] == found["lm_head.weight"]).all()


def test_what_is_kept_of_training_is_all_in_16_bits_and_nothing_in_the_bases_own_file(
    setting: Setting, tmp_path: Path
) -> None:
    from export.kept import update_kept
    from export.write import source_of, write_gguf_file

    source = source_of(setting.base, setting.upstream, setting.contract, "tiny")
    write_gguf_file(source, tmp_path / "f16.gguf", "f16")
    assert update_kept(tmp_path / "f16.gguf", source) == pytest.approx(1.0, abs=0.01)
    assert update_kept(gguf_of(setting.base, tmp_path / "base.gguf"), source) == pytest.approx(0.0, abs=0.01)


def test_every_format_has_an_entry() -> None:
    from typing import get_args

    from export.formats import FORMATS, FormatName

    assert set(FORMATS) == set(get_args(FormatName))
    assert len({spec.path for spec in FORMATS.values()}) == len(FORMATS)


def test_a_file_that_answers_otherwise_is_refused_and_its_rows_are_kept(setting: Setting, tmp_path: Path) -> None:
    """The file is made of the base alone, so it is a good GGUF of another model."""
    file = gguf_of(setting.base, tmp_path / "model-f16.gguf", template=chat.CHATML)
    with pytest.raises(PotstillError, match="answers differ from the adapter's"):
        verify.verify_files(
            {"gguf-f16": file},
            setting.base.path,
            setting.upstream["adapter"],
            setting.contract,
            setting.rows,
            0.05,
            tmp_path,
        )
    assert json.loads((tmp_path / "verification.json").read_text())["gguf-f16"]["differing"]


def test_another_template_is_refused_naming_where_it_parts(setting: Setting, tmp_path: Path) -> None:
    file = gguf_of(setting.base, tmp_path / "m.gguf", template=chat.CHATML.replace("<|im_end|>\\n", "<|im_end|>"))
    with pytest.raises(ParityMismatch, match="chat template at character"):
        verify.check_template(file, setting.contract)


def test_other_golden_tokens_are_refused_naming_the_first(setting: Setting, tmp_path: Path) -> None:
    file = gguf_of(setting.base, tmp_path / "m.gguf", template=chat.CHATML)
    first = setting.contract.golden[0]
    changed = replace(setting.contract, golden=[replace(first, token_ids=[*first.token_ids[:-1], 7])])
    with Engine.start(file, parallel=1, context=256) as engine:
        verify.check_golden(engine, setting.contract)
        with pytest.raises(ParityMismatch, match=f"first difference at token {len(first.token_ids) - 1}"):
            verify.check_golden(engine, changed)


def test_an_adapter_trained_on_another_base_is_refused(setting: Setting, tmp_path: Path) -> None:
    setting.write_adapter("0" * 64)
    with pytest.raises(ManifestMismatch, match="train again"):
        run.main(run.Settings(), setting.shared, setting.upstream, tmp_path)


def test_rows_are_spread_over_the_split(setting: Setting) -> None:
    rows = run.verification_rows(setting.upstream["dataset"], 4)
    assert [row.id for row in rows] == ["r0", "r5", "r10", "r15"]
    assert len(run.verification_rows(setting.upstream["dataset"], 64)) == len(QUESTIONS)
