"""Prepacked layers compute what plain ones do, and are left out where they cannot."""

import copy
import platform

import pytest
import torch
from made_models import lively

from safetylib.study import generate, models, prepacked
from safetylib.study.tiny import FAMILIES, tiny_model

works_here = pytest.mark.skipif(
    not prepacked._works(torch.bfloat16),
    reason="this build of torch, or this processor, does not multiply such weights",
)


def linear_layers(model):
    return [type(module) for module in model.modules() if "Linear" in type(module).__name__]


@works_here
@pytest.mark.parametrize("rows", [1, 3, 64, 200])
@pytest.mark.parametrize("bias", [True, False])
def test_a_prepacked_layer_gives_the_same_numbers_to_the_bit(rows, bias):
    generator = torch.Generator().manual_seed(rows)
    linear = torch.nn.Linear(96, 160, bias=bias).to(torch.bfloat16)
    inputs = torch.randn(rows, 1, 96, generator=generator).to(torch.bfloat16)
    with torch.inference_mode():
        found, expected = prepacked.PrepackedLinear(linear)(inputs), linear(inputs)
    assert torch.equal(found, expected) and found.shape == (rows, 1, 160) and found.abs().max() > 0.1


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not torch.backends.mkldnn.is_available(), reason="oneDNN serves x86 processors"
)
def test_where_onednn_is_layers_are_prepacked_so_that_the_tests_here_cannot_all_skip_themselves():
    assert prepacked._works(torch.float32)


def test_looking_whether_it_works_draws_from_nobodys_random_numbers():
    prepacked._works.cache_clear()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    prepacked._works(torch.bfloat16)
    assert torch.equal(torch.rand(3), expected)


@works_here
@pytest.mark.parametrize("family", FAMILIES)
def test_every_architecture_answers_the_same_when_prepacked(family):
    model, _ = lively(family)
    packed = models.for_inference(model)
    assert set(linear_layers(packed)) == {prepacked.PrepackedLinear}
    assert set(linear_layers(model)) == {torch.nn.Linear}, "the model itself can still be trained"
    prompts = [[1, 10, 11, *range(30, 30 + length)] for length in (3, 17, 9)]
    _, _, wanted = generate.prefill(model, prompts, [range(len(prompt)) for prompt in prompts])
    _, _, found = generate.prefill(packed, prompts, [range(len(prompt)) for prompt in prompts])
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
    answers = generate.answer(packed, prompts, 24, -1)
    assert answers == generate.answer(model, prompts, 24, -1)
    assert len({tuple(answer.tokens) for answer in answers}) == len(prompts)


@works_here
def test_what_is_not_a_linear_layer_is_shared_and_not_copied():
    model, _ = tiny_model("llama", torch.bfloat16)
    packed = models.for_inference(model)
    assert packed.get_input_embeddings().weight is model.get_input_embeddings().weight
    assert packed.dtype == model.dtype and packed.device == model.device
    assert {id(one) for one in packed.parameters()} < {id(one) for one in model.parameters()}


@pytest.mark.parametrize("error", [AttributeError, NotImplementedError, RuntimeError])
def test_a_torch_without_the_operators_keeps_its_plain_layers(monkeypatch, error):
    def missing(*_):
        raise error

    prepacked._works.cache_clear()
    monkeypatch.setattr(prepacked.PrepackedLinear, "forward", missing)
    model, _ = tiny_model("llama", torch.bfloat16)
    before = copy.deepcopy(model)
    try:
        assert set(linear_layers(prepacked.prepack(model))) == {torch.nn.Linear}
        assert all(torch.equal(one, other) for one, other in zip(model.parameters(), before.parameters(), strict=True))
    finally:
        prepacked._works.cache_clear()


WRONG = {
    "nothing": lambda whole, self, inputs: whole(self, inputs) * 0,
    "inputs in another order": lambda whole, self, inputs: whole(self, inputs.flip(-1)),
    "outputs in another order": lambda whole, self, inputs: whole(self, inputs).flip(-1),
    "large batches": lambda whole, self, inputs: whole(self, inputs) + (len(inputs) > 64),
    "no bias": lambda whole, self, inputs: whole(self, inputs) - self.bias,
}


@works_here
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_operators_that_compute_something_else_are_not_used(monkeypatch, wrong):
    prepacked._works.cache_clear()
    whole = prepacked.PrepackedLinear.forward
    monkeypatch.setattr(prepacked.PrepackedLinear, "forward", lambda self, inputs: wrong(whole, self, inputs))
    try:
        assert not prepacked._works(torch.bfloat16)
    finally:
        prepacked._works.cache_clear()


def test_other_layers_than_plain_linear_ones_stay():
    class Scaled(torch.nn.Linear):
        pass

    model = torch.nn.Sequential(Scaled(4, 4), torch.nn.Linear(4, 4).to("meta"))
    assert linear_layers(prepacked.prepack(model)) == [torch.nn.Linear]
    assert type(model[0]) is Scaled
