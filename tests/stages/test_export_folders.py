"""Exported folders: they load in transformers, answer like the adapter, and are refused where they do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation import candidates
from export import folder, folder_activations, folder_quantise, folder_rounding, folder_verify, run, write
from export.merge import FolderWeights, student_weights
from potstill import chat, models
from potstill.dataset import write_examples
from potstill.errors import ParityMismatch, PotstillError, RecipeError
from potstill.manifest import read_manifest, write_manifest
from potstill.models import load_float
from potstill.records import Json
from potstill.serving.start import load_artifact
from potstill.trained import find_trained, load_trained
from tests.stages.test_export import QUESTIONS, TASK, Setting
from tests.stages.tiny_llama import tiny_base

FOLDERS = ("safetensors-bf16", "w4a16", "fp8")
PATHS = {"safetensors-bf16": "model-bf16", "w4a16": "model-w4a16", "fp8": "model-fp8"}


class Exported:
    """A setting with training rows, and its artifact with a GGUF and every folder."""

    def __init__(self, base: models.Base, place: Path) -> None:
        self.setting = Setting(base, place)
        write_examples(place / "dataset" / "train.parquet", self.setting.rows)
        self.folder = place / "artifact"
        self.folder.mkdir()
        settings = run.Settings(formats=("gguf-q8_0", *FOLDERS), max_mismatch_share=0.9)
        self.facts = run.main(settings, self.setting.shared, self.setting.upstream, self.folder)
        write_manifest(self.folder, "artifact", settings_passed={}, settings_used={}, inputs=[], facts=self.facts)

    @property
    def source(self) -> Any:
        return write.source_of(self.setting.base, self.setting.upstream, self.setting.contract, "tiny")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    place = tmp_path_factory.mktemp("folders")
    return Exported(tiny_base(place / "base", initializer_range=0.1), place)


def student_of(exported: Exported) -> Any:
    return load_trained(find_trained(exported.setting.upstream["adapter"], exported.setting.base.path)).eval()


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=torch.tensor([ids])).logits[0].float()
    return found


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_loads_in_transformers_and_is_verified_against_the_adapter(exported: Exported, name: str) -> None:
    entry = exported.facts["formats"][name]
    assert entry["file"] == PATHS[name]
    assert entry["engine"] == "transformers"
    verified = exported.facts["verification"][name]
    assert verified["rows"] == len(QUESTIONS)
    assert verified["prompts_differing"] == 0
    place = exported.folder / entry["file"]
    assert entry["size_bytes"] == sum(each.stat().st_size for each in place.iterdir())
    assert load_float(place).config.tie_word_embeddings
    lost = verified["divergence"]["answer"]
    assert lost["tokens"] == sum(len(each) for each in answers_in_tokens(exported))
    # Random weights are the hardest case; what rounding costs a trained student stands in docs.
    assert 0 <= lost["kl_mean"] < {"safetensors-bf16": 0.001, "fp8": 0.03, "w4a16": 0.06}[name]
    assert verified["share"] >= {"safetensors-bf16": 1.0, "fp8": 0.7, "w4a16": 0.7}[name]


def answers_in_tokens(exported: Exported) -> list[list[int]]:
    tokenizer = chat.load_tokenizer(exported.setting.upstream["adapter"] / "tokenizer")
    return [
        chat.prompt_and_completion(tokenizer, each.messages, each.tools, each.answer)[1]
        for each in exported.setting.rows
    ]


def test_the_bf16_folder_holds_the_merged_weights_and_the_embedding_once(exported: Exported) -> None:
    merged = student_weights(exported.setting.upstream["adapter"], exported.setting.base.path)
    held = FolderWeights(exported.folder / "model-bf16")
    assert set(held) == set(merged)
    assert "lm_head.weight" not in held
    assert all(torch.equal(held[name], merged[name].to(torch.bfloat16)) for name in merged)


def test_4_bit_weights_are_read_back_as_written_and_the_rest_is_untouched(exported: Exported) -> None:
    merged = student_weights(exported.setting.upstream["adapter"], exported.setting.base.path)
    place = exported.folder / "model-w4a16"
    config = json.loads((place / "config.json").read_text())["quantization_config"]
    scheme = config["config_groups"]["group_0"]
    assert config["quant_method"] == "compressed-tensors"
    assert config["format"] == "pack-quantized"
    assert scheme["targets"] == ["Linear"]
    assert (scheme["weights"]["num_bits"], scheme["weights"]["group_size"]) == (4, 64)
    held, entry = FolderWeights(place), exported.facts["formats"]["w4a16"]
    assert entry["group"] == 64
    assert entry["rounding_rows"] == len(QUESTIONS)
    loaded = load_float(place).eval()
    logits(loaded, [3, 4, 5])  # weights are unpacked at the first answer
    for name, weight in merged.items():
        module = name.removesuffix(".weight")
        if name in entry["unquantised"]:
            assert torch.equal(held[name], weight.to(torch.bfloat16))
            continue
        assert held[f"{module}.weight_packed"].shape == (weight.shape[0], weight.shape[1] // 8)
        step = held[f"{module}.weight_scale"].float().repeat_interleave(64, dim=1)
        found = loaded.get_parameter(name).float()
        whole = (found / step).round()
        assert torch.allclose(found, whole * step, rtol=0.01)  # what is read is a multiple of the scale, in bf16
        assert -8 <= float(whole.min()) <= float(whole.max()) <= 7
        assert float((found - weight.float()).norm() / weight.float().norm()) < 0.25
    assert set(entry["unquantised"]) == {name for name in merged if "_proj" not in name}
    assert entry["quantised"] == 14


def test_fp8_has_a_scale_a_row_and_dynamic_activations(exported: Exported) -> None:
    place = exported.folder / "model-fp8"
    config = json.loads((place / "config.json").read_text())["quantization_config"]
    scheme = config["config_groups"]["group_0"]
    assert config["format"] == "float-quantized"
    assert (scheme["weights"]["type"], scheme["weights"]["strategy"]) == ("float", "channel")
    assert (scheme["input_activations"]["dynamic"], scheme["input_activations"]["strategy"]) == (True, "token")
    held = FolderWeights(place)
    name = "model.layers.0.mlp.up_proj"
    assert held[f"{name}.weight"].dtype == torch.float8_e4m3fn
    assert held[f"{name}.weight_scale"].shape == (128, 1)
    merged = student_weights(exported.setting.upstream["adapter"], exported.setting.base.path)[f"{name}.weight"]
    back = held[f"{name}.weight"].float() * held[f"{name}.weight_scale"].float()
    assert float((back - merged).norm() / merged.norm()) < 0.04


def test_config_ends_answers_where_training_did_and_names_the_layout_for_older_loaders(exported: Exported) -> None:
    for path in PATHS.values():
        config = json.loads((exported.folder / path / "config.json").read_text())
        assert config["torch_dtype"] == config["dtype"] == "bfloat16"
        assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
        generation = json.loads((exported.folder / path / "generation_config.json").read_text())
        assert generation["eos_token_id"] == [2]
        assert not generation["do_sample"]
        assert generation["max_new_tokens"] == exported.setting.contract.max_tokens


def test_another_template_or_tokenizer_is_refused(exported: Exported, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "model-bf16"
    shutil.copytree(exported.folder / "model-bf16", copy)
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_end|>\\n", "<|im_end|>"))
    with pytest.raises(ParityMismatch, match="chat template at character"):
        folder_verify.check_parity(copy, exported.setting.contract)
    shutil.copyfile(exported.folder / "model-bf16" / "chat_template.jinja", template)
    data = json.loads((copy / "tokenizer.json").read_text())
    data["model"]["merges"] = []
    (copy / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(ParityMismatch, match="golden prompt 0"):
        folder_verify.check_parity(copy, exported.setting.contract)


def test_a_folder_of_another_model_is_refused_by_its_answers(exported: Exported, tmp_path: Path) -> None:
    from export import verify

    other = tmp_path / "model-bf16"
    source = exported.source
    unmerged = type(source)(**{**vars(source), "weights": FolderWeights(exported.setting.base.path)})
    folder.write_bf16(unmerged, other)
    with pytest.raises(PotstillError, match="answers differ from the adapter's"):
        verify.verify_files(
            {"safetensors-bf16": other}, exported.setting.base.path, exported.setting.upstream["adapter"],
            exported.setting.contract, exported.setting.rows, 0.05, tmp_path,
        )  # fmt: skip


def test_shards_are_named_indexed_and_load(exported: Exported, tmp_path: Path, monkeypatch: Any) -> None:
    written = folder.write_shards
    monkeypatch.setattr(folder, "write_shards", lambda tensors, out: written(tensors, out, shard_bytes=60_000))
    facts = folder.write_bf16(exported.source, tmp_path / "many")
    index = json.loads((tmp_path / "many" / folder.INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    assert facts["weight_files"] == len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert not list((tmp_path / "many").glob("part-*"))
    whole = load_float(exported.folder / "model-bf16").eval()
    assert torch.equal(logits(load_float(tmp_path / "many").eval(), [3, 4, 5]), logits(whole, [3, 4, 5]))


def test_an_output_matrix_of_its_own_stays_16_bit_and_is_listed(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base", tie_word_embeddings=False)
    setting = Setting(base, tmp_path)
    write_examples(tmp_path / "dataset" / "train.parquet", setting.rows)
    source = write.source_of(base, setting.upstream, setting.contract, "tiny")
    for name, written in {"w4a16": folder_quantise.write_w4a16, "fp8": folder_quantise.write_fp8}.items():
        facts = written(source, tmp_path / name)
        assert facts["unquantised"]["lm_head.weight"] == folder_quantise.OUTPUT
        config = json.loads((tmp_path / name / "config.json").read_text())["quantization_config"]
        assert config["ignore"] == ["lm_head"]
        assert FolderWeights(tmp_path / name)["lm_head.weight"].dtype == torch.bfloat16
        assert torch.isfinite(logits(load_float(tmp_path / name).eval(), [3, 4, 5])).all()


# Choosing groups and scales


@pytest.mark.parametrize(
    ("widths", "group", "left"),
    [((576, 1536), 64, 0), ((1024, 4096), 128, 0), ((64, 96), 32, 0), ((100, 256), 128, 1)],
)
def test_one_group_that_divides_all_rows_is_taken(widths: tuple[int, ...], group: int, left: int) -> None:
    weights = {f"l{at}.weight": torch.zeros(4, width) for at, width in enumerate(widths)}
    plan = folder_quantise.plan_groups(weights, frozenset(weights), folder_quantise.GROUPS)
    assert plan.group == group
    assert len(plan.left) == left
    assert plan.ignored() == [name.removesuffix(".weight") for name in plan.left]


def test_a_model_with_nothing_to_quantise_is_refused() -> None:
    with pytest.raises(PotstillError, match="export safetensors-bf16 instead"):
        folder_quantise.plan_groups({"l.weight": torch.zeros(4, 100)}, frozenset(["l.weight"]), (128, 64, 32))


def lost(weight: torch.Tensor, scale: torch.Tensor, group: int, importance: torch.Tensor) -> float:
    step = scale.float().repeat_interleave(group, dim=1)
    back = (weight / step).round().clamp(-8, 7) * step
    return float(((weight - back).square() * importance).sum())


def test_searched_scales_lose_less_than_the_largest_value_gives_and_least_where_it_matters() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 256, generator=generator) ** 3
    importance = torch.rand(256, generator=generator) ** 6
    even = torch.ones(256)
    plain = weight.unflatten(1, (-1, 64)).abs().amax(dim=2) / folder_rounding.INT4_MOST
    blind = folder_rounding.group_scales(weight, 64)
    seeing = folder_rounding.group_scales(weight, 64, importance)
    assert lost(weight, blind, 64, even) < 0.95 * lost(weight, plain, 64, even)
    assert lost(weight, seeing, 64, importance) < 0.9 * lost(weight, blind, 64, importance)
    zero = folder_rounding.group_scales(torch.zeros(4, 64), 64)
    assert bool((zero > 0).all())


def test_compensated_rounding_changes_a_layers_output_less_than_rounding_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 192, generator=generator)
    inputs = torch.randn(2000, 24, generator=generator) @ torch.randn(24, 192, generator=generator)  # columns go along
    moment = inputs.T @ inputs / len(inputs)
    scale = folder_rounding.group_scales(weight, 64, moment.diagonal())
    step = scale.float().repeat_interleave(64, dim=1)
    rounded = (weight / step).round().clamp(-8, 7) * step
    compensated = folder_rounding.compensated(weight, scale, 64, moment)
    whole = compensated / step
    assert torch.allclose(whole, whole.round(), atol=1e-4)
    assert -8 <= float(whole.round().min()) <= float(whole.round().max()) <= 7
    fresh = torch.randn(500, 192, generator=generator) * 0.01 + inputs[:500]

    def missed(other: torch.Tensor) -> float:
        return float((fresh @ (weight - other).T).square().mean())

    assert missed(compensated) < 0.2 * missed(rounded)
    with pytest.raises(PotstillError, match="not finite"):
        folder_rounding.compensated(weight, scale, 64, torch.full((192, 192), torch.nan))


def test_moments_are_those_of_what_comes_in_and_padding_does_not_count(exported: Exported) -> None:
    found = folder_activations.second_moments(exported.source, 64)
    model = student_of(exported)
    name = "model.layers.1.mlp.down_proj"
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0].float()))
    tokenizer = chat.load_tokenizer(exported.setting.upstream["adapter"] / "tokenizer")
    for row in exported.setting.rows:  # one by one: no padding
        prompt, answer = chat.prompt_and_completion(tokenizer, row.messages, row.tools, row.answer)
        logits(model, [*prompt, *answer])
    handle.remove()
    every = torch.cat(seen)
    wanted = every.T @ every / len(every)
    assert float((found[f"{name}.weight"] - wanted).norm() / wanted.norm()) < 0.02
    assert set(found) == {f"{n}.weight" for n, _ in model.named_modules() if n.endswith("_proj")}
    assert folder_activations.second_moments(exported.source, 0) == {}
    assert folder_activations.second_moments(exported.source, 64, most_bytes=1000) == {}


# Evaluated and served


def test_a_folder_is_a_candidate_answered_by_transformers(exported: Exported) -> None:
    manifest = read_manifest(exported.folder, "artifact")
    assert candidates.expand(["artifacts"], manifest) == [f"artifact:{name}" for name in ("gguf-q8_0", *FOLDERS)]
    upstream: Any = {**exported.setting.upstream, "artifact": exported.folder}
    rows = exported.setting.rows
    found = candidates.build(["artifact:w4a16"], rows, exported.setting.shared, upstream, 1)[0]
    assert found.engine == "transformers, batched"
    assert found.size_bytes == exported.facts["formats"]["w4a16"]["size_bytes"]
    task = exported.setting.contract.make_task()
    given = candidates.answers_of(
        found, rows, task=task, max_tokens=8, stop=["<|im_end|>"], dataset_digest="d", cache=exported.folder.parent
    )
    assert {each.text for each in given} <= set(TASK["labels"])
    assert all(each.error is None for each in given)


def changed(manifest: Any, name: str) -> Any:
    files = {**manifest.files, name: {**manifest.files[name], "sha256": "0" * 64}}
    return type(manifest)(**{**{key: getattr(manifest, key) for key in manifest.__slots__}, "files": files})


def test_a_candidate_is_another_when_any_file_of_its_folder_is(exported: Exported) -> None:
    manifest = read_manifest(exported.folder, "artifact")

    def digest(each: Any) -> str:
        return candidates._artifact("artifact:fp8", exported.folder, each, 256, 1).digest

    assert digest(manifest) != digest(changed(manifest, "model-fp8/config.json"))
    assert digest(manifest) == digest(changed(manifest, "model-w4a16/config.json"))


def test_the_server_takes_the_gguf_and_names_vllm_for_a_folder(exported: Exported, tmp_path: Path) -> None:
    assert load_artifact(exported.folder).format == "gguf-q8_0"
    with pytest.raises(RecipeError, match=r"w4a16 is a folder for vLLM.*vllm serve .*model-w4a16.*choose gguf-q8_0"):
        load_artifact(exported.folder, "w4a16")
    alone = tmp_path / "alone"
    (alone / "model-fp8").mkdir(parents=True)
    (alone / "model-fp8" / "config.json").write_text("{}")
    facts: Json = {"formats": {"fp8": {"file": "model-fp8", "engine": "transformers"}}}
    write_manifest(alone, "artifact", settings_passed={}, settings_used={}, inputs=[], facts=facts)
    with pytest.raises(RecipeError, match=r"fp8 is a folder for vLLM.*or export a gguf format too"):
        load_artifact(alone)
