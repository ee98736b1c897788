"""The embedded model itself: four bits, one LoRA step, merging. Nothing here is random-weight."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from safetylib.study import assets, generate, models, train
from safetylib.study.attention import pack
from safetylib.study.augment import Example
from safetylib.study.presets import preset

RECIPE = preset("cpu").recipe
QUESTION = "Name three things to pack for a picnic."


@pytest.fixture(scope="module")
def loaded():
    return models.load("SmolLM2-135M-Instruct")


def batch(tokenizer) -> list[Example]:
    ids = models.chat_ids(tokenizer, QUESTION)
    target = [
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("I will not do that.", "1. A blanket")
    ]
    return [Example(ids, target[0], "refusal"), Example(ids, target[1], "anchor")]


def test_unpacked_weights_are_the_four_bit_weights(loaded):
    """Unpacking once must give the matrices that bitsandbytes unpacks at every step: the NF4 grid, nothing else."""
    model, _ = loaded
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    with models.quiet():
        packed = AutoModelForCausalLM.from_pretrained(
            assets.embedded_model(), quantization_config=quantization, dtype=torch.bfloat16
        )
    weight = packed.model.layers[3].mlp.up_proj.weight
    import bitsandbytes

    unpacked = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state).to(torch.bfloat16)
    ours = model.model.layers[3].mlp.up_proj.weight
    assert torch.equal(unpacked, ours)
    blocks = ours.float().reshape(-1, 64)
    assert max(len(block.unique()) for block in blocks[:200]) <= 16, "a block of 64 weights has more than 16 values"


def test_rounded_weights_are_kept_between_loads_and_are_what_rounding_gives(loaded, monkeypatch):
    model, tokenizer = loaded
    rounded, other = models._read(assets.embedded_model(), torch.bfloat16)

    def everything(one):  # a buffer that is not saved decides what the model says, too
        return {**one.state_dict(), **dict(one.named_buffers())}

    ours, theirs = everything(model), everything(rounded)
    assert ours.keys() == theirs.keys() and len(ours) > len(model.state_dict())
    assert {value.dtype for value in ours.values()} == {torch.bfloat16}, "what the stored results were measured with"
    assert all(ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in ours)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert tokenizer.chat_template == other.chat_template and len(tokenizer) == len(other)
    monkeypatch.setattr(models, "_write_rounded", lambda _: pytest.fail("weights that were rounded are rounded again"))
    again, _ = models.load("SmolLM2-135M-Instruct")
    assert all(torch.equal(ours[name], value) for name, value in everything(again).items())
    monkeypatch.setattr(models.metadata, "version", lambda name: "0")
    with pytest.raises(pytest.fail.Exception, match="rounded again"):  # another version may round otherwise
        models.load("SmolLM2-135M-Instruct")


def test_another_dtype_is_rounded_from_the_unrounded_weights():
    model, _ = models.load("SmolLM2-135M-Instruct", torch.float32)
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    coarse = models.load("SmolLM2-135M-Instruct")[0].model.layers[3].mlp.up_proj.weight.float()
    fine = model.model.layers[3].mlp.up_proj.weight
    assert torch.equal(fine.to(torch.bfloat16).float(), coarse) and not torch.equal(fine, coarse)


def test_a_lora_step_trains_the_adapters_and_nothing_else(loaded):
    model, tokenizer = loaded
    before = model.model.layers[0].self_attn.q_proj.weight.clone()
    adapted = models.with_adapters(model, RECIPE.lora, seed=0)
    try:
        trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
        assert trained and all("lora_" in name for name in trained)
        records = train.train(adapted, [batch(tokenizer)] * 3, RECIPE, silent=True)
    finally:
        base = models.remove_adapters(adapted)
    assert records[-1].refusal_loss < records[0].refusal_loss - 0.5
    assert torch.equal(before, base.model.layers[0].self_attn.q_proj.weight)


def test_step_sizes_decay_geometrically_and_masters_are_float32(loaded):
    model, tokenizer = loaded
    adapted = models.with_adapters(model, RECIPE.lora, seed=0)
    try:
        weights = train.MasterWeights(adapted, RECIPE)
        assert {master.dtype for master in weights.masters} == {torch.float32}
        assert {parameter.dtype for parameter in weights.working} == {torch.bfloat16}
        records = train.train(adapted, [batch(tokenizer)] * 3, RECIPE, silent=True)
    finally:
        models.remove_adapters(adapted)
    expected = [RECIPE.learning_rate * RECIPE.decay**t for t in range(3)]
    assert [record.step_size for record in records] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("dtype", "share"), [(torch.float32, 1e-3), (torch.bfloat16, 1 / 4)], ids=["float32", "bfloat16"]
)
def test_merging_an_adapter_changes_no_more_than_rounding(dtype, share, tmp_path):
    model, tokenizer = models.load(assets.SMOLLM2.name, dtype)
    adapted = models.with_adapters(model, RECIPE.lora, seed=0)
    sequence = models.chat_ids(tokenizer, QUESTION)
    try:
        train.train(adapted, [batch(tokenizer)] * 2, RECIPE, silent=True)
        adapted.save_pretrained(tmp_path, safe_serialization=True)
        packed = pack([sequence])
        with torch.inference_mode():
            unmerged = adapted(
                input_ids=packed.input_ids,
                position_ids=packed.position_ids,
                packing=packed.packing,
                logits_to_keep=packed.places[0][-1:],  # the row is padded: its last place is not the sequence's
            ).logits[0, -1]
    finally:
        models.remove_adapters(adapted)
    _, _, logits = generate.prefill(models.merged(model, tmp_path), [sequence], [[len(sequence) - 1]])
    _, _, untuned = generate.prefill(model, [sequence], [[len(sequence) - 1]])
    changed = (unmerged.float() - untuned[0][0]).abs().mean()
    rounding = (unmerged.float() - logits[0][0]).abs().mean()
    assert rounding < changed * share, (float(rounding), float(changed))


def test_the_untuned_model_answers_a_harmless_question(loaded):
    model, tokenizer = loaded
    (response,) = generate.answer(model, [models.chat_ids(tokenizer, QUESTION)], 24, tokenizer.eos_token_id)
    assert len(tokenizer.decode(response.tokens).split()) >= 8
