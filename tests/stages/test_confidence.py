"""The confidence of a label is the probability that the model itself gives it, whichever engine answers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from potstill import chat
from potstill.completers import Completion, CompletionRequest
from potstill.completers.openai_form import chat_body, read_chat
from potstill.completers.transformers import TransformersCompleter
from potstill.records import Json
from potstill.tasks.base import Constraint

LABELS = ("colour", "city", "bees make honey")


def asked(at: int, text: str) -> CompletionRequest:
    constraint = Constraint("choices", choices=LABELS)
    return CompletionRequest(f"r{at}", [{"role": "user", "content": text}], constraint=constraint, logprobs=True)


def test_a_batch_tells_the_probability_of_each_label_and_its_end(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from tests.stages.tiny_llama import tiny_base

    base = tiny_base(tmp_path / "base").path
    completer = TransformersCompleter(base, None, base)
    requests = [asked(at, text) for at, text in enumerate(["Name a fruit.", "Who wrote Hamlet and when?", "Hi"])]
    for request, found in zip(requests, completer.complete(requests), strict=True):
        prompt = chat.encode(completer._tokenizer, chat.render(completer._tokenizer, request.messages))
        answer = chat.encode(completer._tokenizer, found.text)
        end = completer._tokenizer.convert_tokens_to_ids(chat.end_of_turn(completer._tokenizer))
        with torch.inference_mode():
            logits = completer._model(input_ids=torch.tensor([[*prompt, *answer, end]])).logits[0].float()
        each = torch.log_softmax(logits, -1)
        total = sum(float(each[len(prompt) - 1 + at, token]) for at, token in enumerate([*answer, end]))
        assert found.confidence == pytest.approx(math.exp(total), rel=0.2)  # bfloat16, and a batch beside one row
        assert 0 < found.confidence < 1
    [silent] = completer.complete([CompletionRequest("r", requests[0].messages, constraint=requests[0].constraint)])
    assert silent.confidence is None


def answered(logprobs: object) -> Completion:
    data: Json = {"choices": [{"message": {"role": "assistant", "content": "city"}, "logprobs": logprobs}]}
    return read_chat(asked(0, "x"), data, 1.0)


def test_the_confidence_of_a_server_is_the_product_of_its_tokens() -> None:
    assert chat_body(asked(0, "x"), "m", "llama_cpp")["logprobs"] is True
    found = answered({"content": [{"logprob": math.log(0.5)}, {"logprob": math.log(0.8)}]})
    assert found.confidence == pytest.approx(0.4)
    assert answered({"content": [{"logprob": -3.4e38}, {"logprob": -3.4e38}]}).confidence == 0.0


@pytest.mark.parametrize(
    "logprobs", [None, {}, {"content": []}, {"content": None}, {"content": [{"token": "x"}, {"logprob": -1.0}]}, []]
)
def test_a_server_that_sends_no_probabilities_leaves_the_confidence_unknown(logprobs: object) -> None:
    found = answered(logprobs)
    assert found.error is None
    assert found.confidence is None
