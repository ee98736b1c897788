"""Every architecture goes the study's whole way at small size; names, sizes and dtypes are what is said of them."""

import json
import shutil
import warnings
from contextlib import nullcontext
from dataclasses import replace
from fnmatch import fnmatch
from types import SimpleNamespace

import pytest
import torch
from made_models import lively
from peft import PeftModel
from test_study_attention import CASES, alone, assert_close, packed_logits, prefilled, with_reference
from test_study_generate import alone as greedy
from test_study_generate import plain
from transformers import AutoConfig, AutoModelForCausalLM

from safetylib.study import generate, hub, memory, models, train
from safetylib.study.augment import Example
from safetylib.study.presets import GROUPS, PRESETS, preset
from safetylib.study.registry import MODELS, Shape
from safetylib.study.results import Results
from safetylib.study.tiny import FAMILIES, byte_tokenizer
from safetylib.study.units import Study

CUDA = torch.device("cuda")
TINY = PRESETS["tiny"]
LORA = TINY.recipe.lora


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    """The tiny model saved as people save models; those of base models' families without a chat template."""
    into = tmp_path_factory.mktemp(family)
    model, tokenizer = lively(family, chat=family in ("llama", "qwen2", "gemma3_text"))
    model.save_pretrained(into)
    tokenizer.save_pretrained(into)
    return into


@pytest.fixture(scope="module")
def packed_in_four_bits(folder):
    """The model as a GPU holds it, 4-bit weights left packed (here on the CPU)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "device", lambda: CUDA)
        model, tokenizer = models.load(str(folder), torch.float32)
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.support_avx512bf16_for_cpu = False  # else a CPU packs them anew at the first pass; a GPU never does
    return model, tokenizer


# --- shared-prefix attention and decoding, architecture by architecture -----------------------------------------------


@pytest.fixture(scope="module")
def pair(family):
    return with_reference(lively(family)[0])


@torch.inference_mode()
def test_packed_attention_equals_transformers_own(pair):
    for sequences in CASES.values():
        for got, sequence in zip(packed_logits(pair.model, sequences), sequences, strict=True):
            assert_close(got, alone(pair.reference, sequence), 1e-4)


@torch.inference_mode()
def test_what_is_read_on_after_a_shared_beginning_equals_transformers_own(pair, monkeypatch):
    monkeypatch.setattr(generate, "READ_TOKENS", 80)  # two at a time
    texts = [[*range(20, 50), *range(60 + own, 60 + 2 * own)] for own in (1, 9, 4, 10, 2)]
    found = {
        index: row
        for batch, rows in generate.next_logits(pair.model, texts)
        for index, row in zip(batch, rows, strict=True)
    }
    assert sorted(found) == list(range(5))
    for index, text in enumerate(texts):
        assert_close(found[index], alone(pair.reference, text)[-1], 1e-4)


@torch.inference_mode()
def test_decoding_from_branches_equals_recomputing(pair):
    text = [*range(20, 50)]
    packed, store = prefilled(pair.model, [text, text[:16]])
    cache = store.branch([packed.places[0], packed.places[1][:9]])
    texts = [text, text[:9]]
    for token in (60, 70):
        texts = [[*one, token] for one in texts]
        for got, one in zip(generate.advance(pair.model, cache, [token] * 2), texts, strict=True):
            assert_close(got, alone(pair.reference, one)[-1], 1e-4)


def test_greedy_texts_are_identical(pair):
    prompts = [[1, 10, 11, *range(30, 30 + length)] for length in (3, 17, 30)]
    expected = [greedy(pair.reference, prompt, 24, -1) for prompt in prompts]
    assert [plain(found) for found in generate.answer(pair.model, prompts, 24, -1)] == expected
    trunks = [tokens for tokens, _ in expected]
    found = generate.depth_responses(pair.model, prompts, trunks, (0, 7, 15), 6, 0, -1, lambda _: False)
    for row, prompt in enumerate(prompts):
        changed = [*trunks[row][:7], 99, *trunks[row][8:]]
        off = generate.depth_responses(pair.model, [prompt], [changed], (9,), 6, 0, -1, lambda _: False)
        assert plain(off[0, 9]) == greedy(pair.reference, prompt + changed[:9], 6, -1)
        assert found[row, 7].tokens == trunks[row][7:13]


# --- the whole study, in four bits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["as on a CPU", "packed, as on a GPU"])
def test_the_whole_study_runs_on_every_architecture(folder, packed_in_four_bits, weights, tmp_path, monkeypatch):
    if weights == "packed, as on a GPU":
        monkeypatch.setattr(models, "load", lambda name: packed_in_four_bits)
    recipe = replace(TINY.recipe, steps=2)
    plan = replace(TINY, model=str(folder), judge=str(folder), arms=("base", "cyclic"), seeds=(0,), recipe=recipe)
    study = Study(plan, tmp_path, silent=True, per_set=1)
    packed = any(type(module).__name__ == "Linear4bit" for module in study.base.modules())
    assert packed is (weights != "as on a CPU")
    study.run()
    study.write_tables(tmp_path / "tables")
    results = Results(tmp_path / "tables")
    assert len(results.outcomes) == 2 * (3 + 1 + 1 + 1) and study.left_out == {}
    assert results.outcomes["unscored"].dropna().astype(str).eq("False").any(), "the judge rates"
    assert results.training[["refusal_loss", "anchor_loss"]].gt(0).all(axis=None) and len(results.training) == 2


def test_loaded_weights_are_rounded_to_four_bits(folder):
    model, tokenizer = models.load(str(folder), torch.float32)
    weight = model.model.layers[0].self_attn.q_proj.weight
    assert max(len(block.unique()) for block in weight.reshape(-1, 64)) <= 16
    assert not any(module.p for module in model.modules() if isinstance(module, torch.nn.Dropout))
    assert len(tokenizer.apply_chat_template([{"role": "user", "content": "a"}], return_dict=True)["input_ids"]) > 1


def test_adapters_sit_on_every_linear_layer_but_the_output(family, folder):
    model, _ = models.load(str(folder), torch.float32)
    shape = Shape.of(model.config)
    adapted = models.with_adapters(model, LORA, seed=0)
    named = {name.rsplit(".", 1)[-1] for name in adapted.peft_config["default"].target_modules}
    assert all(named == set(known.targets) for known in MODELS.values() if known.family == family)
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert trained == shape.adapters(LORA.rank)


def batch():
    refusal = Example([*range(20, 33), 7, 8], [40, 41, 42, 0], "refusal")
    return [refusal, Example([*range(20, 33), 9], [50, 51, 52], "anchor")]


def trained(model, recipe=TINY.recipe, optimiser=torch.optim.AdamW):
    """What three steps made of the adapters' second matrices, which start at zero, as one vector; and the records."""
    adapted = models.with_adapters(model, LORA, seed=0)
    try:
        records = train.train(adapted, [batch()] * recipe.steps, recipe, silent=True, optimiser=optimiser)
        parameters = [parameter for name, parameter in adapted.named_parameters() if "lora_B" in name]
        return torch.cat([parameter.detach().float().flatten() for parameter in parameters]), records
    finally:
        models.remove_adapters(adapted)


def test_packed_weights_train_and_merge_like_unpacked_ones(folder, packed_in_four_bits, tmp_path):
    """What a GPU does: the adapter learns on packed weights, and is merged into an unpacked copy, not rounded away."""
    packed, _ = packed_in_four_bits
    assert any(type(module).__name__ == "Linear4bit" for module in packed.modules())
    dense, _ = models.load(str(folder), torch.float32)
    on_packed, records = trained(packed)
    on_dense, expected = trained(dense)
    assert [r.refusal_loss for r in records] == pytest.approx([r.refusal_loss for r in expected], abs=1e-3)
    assert records[-1].refusal_loss < records[0].refusal_loss - 0.05
    assert torch.nn.functional.cosine_similarity(on_packed, on_dense, 0) > 0.99
    adapted = models.with_adapters(packed, LORA, seed=0)
    train.train(adapted, [batch()] * 3, TINY.recipe, silent=True)
    adapted.save_pretrained(tmp_path)
    models.remove_adapters(adapted)
    merged = models.merged(packed, tmp_path)
    assert not any(type(module).__name__ == "Linear4bit" for module in merged.modules())
    sequences = CASES["a shared prefix, different lengths"]
    with torch.inference_mode():
        unmerged = PeftModel.from_pretrained(packed, tmp_path, autocast_adapter_dtype=False).eval()
        for got, wanted in zip(packed_logits(merged, sequences), packed_logits(unmerged, sequences), strict=True):
            assert_close(got, wanted, 1e-4)
        unmerged.unload()


def test_recomputed_activations_give_the_same_training(family, monkeypatch):
    model, _ = lively(family)
    models.without_dropout(model)
    passes = []
    model.model.layers[0].self_attn.register_forward_hook(lambda *_: passes.append(1))
    kept, _ = trained(model)
    assert len(passes) == TINY.recipe.steps
    monkeypatch.setattr(train, "thrifty", lambda model, _: train.recomputing(model))
    again, _ = trained(model)
    assert len(passes) == 3 * TINY.recipe.steps, "each layer is computed twice"
    assert_close(again, kept)


@pytest.mark.parametrize(("on", "fits", "again"), [("cuda", True, 0), ("cuda", False, 1), ("cpu", False, 0)])
def test_activations_are_recomputed_on_a_gpu_that_could_not_keep_them(monkeypatch, on, fits, again):
    calls, asked = [], []
    model = SimpleNamespace(device=torch.device(on), config=lively("llama")[0].config, dtype=torch.float16)
    monkeypatch.setattr(memory, "free", lambda device: 12.0)
    monkeypatch.setattr(memory, "fits", lambda *of: asked.append(of) or fits)
    monkeypatch.setattr(train, "recomputing", lambda model: calls.append(model) or nullcontext())
    with train.thrifty(model, TINY.recipe):
        assert len(calls) == again
    if on == "cuda":
        assert asked == [(Shape.of(model.config), TINY.recipe, 2, 12.0)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_packed_weights_keep_adapters_and_copies_in_the_compute_dtype(folder, monkeypatch, tmp_path, dtype):
    """As on a GPU: what is computed in is the dtype that was asked for, whatever peft and bitsandbytes would choose."""
    monkeypatch.setattr(models, "device", lambda: CUDA)
    model, _ = models.load(str(folder), dtype)
    linear = [module for module in model.modules() if type(module).__name__ == "Linear4bit"]
    assert linear and {module.compute_dtype for module in linear} == {dtype} and model.dtype == dtype
    adapted = models.with_adapters(model, LORA, seed=0)
    assert {one.dtype for one in adapted.parameters() if one.requires_grad} == {dtype}
    weights = train.MasterWeights(adapted, TINY.recipe)
    assert {one.dtype for one in weights.masters} == {torch.float32} and weights.scaled is (dtype == torch.float16)
    adapted.save_pretrained(tmp_path)
    models.remove_adapters(adapted)
    merged = models.merged(model, tmp_path)
    assert {one.dtype for one in merged.parameters()} == {dtype}


@pytest.mark.parametrize(("there", "rank", "expected"), [(True, "3", [3]), (False, "3", [])])
def test_every_process_of_a_launch_takes_its_own_gpu(monkeypatch, there, rank, expected):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    for name, value in (("LOCAL_RANK", rank), ("RANK", "7"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    assert models.process() == (7, 8) and taken == expected


def test_what_a_gpu_holds_in_reserve_counts_as_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda on: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda on: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda on: 20)
    assert memory.free(CUDA) == 130


# --- float16 ----------------------------------------------------------------------------------------------------------


def test_float16_training_follows_float32_training(family):
    model, _ = lively(family)
    models.without_dropout(model)
    exact, _ = trained(model)
    rough, records = trained(model.half())
    assert torch.nn.functional.cosine_similarity(exact, rough, 0) > 0.9
    assert records[-1].refusal_loss < records[0].refusal_loss


def test_a_scaled_loss_does_not_scale_the_update():
    """Plain SGD shows it; AdamW would forgive it."""
    model, _ = lively("llama")
    exact, _ = trained(model, optimiser=torch.optim.SGD)
    rough, _ = trained(model.half(), optimiser=torch.optim.SGD)
    assert float(rough.norm()) == pytest.approx(float(exact.norm()), rel=0.1) and exact.norm() > 0


def test_a_step_whose_gradients_overflow_is_done_again_with_a_smaller_scale(monkeypatch):
    model = lively("llama")[0].half()
    expected, records = trained(model)
    monkeypatch.setattr(train, "_FIRST_SCALE", 2.0**40)
    scales, backward = [], train.MasterWeights.backward
    monkeypatch.setattr(
        train.MasterWeights, "backward", lambda self, loss: scales.append(self.scale) or backward(self, loss)
    )
    found, again = trained(model)
    assert scales[0] == 2.0**40 and scales[-1] < 2.0**30 and len(scales) > len(records) == len(again)
    assert torch.nn.functional.cosine_similarity(expected, found, 0) > 0.9


def test_other_dtypes_are_not_scaled():
    adapted = models.with_adapters(lively("llama")[0].bfloat16(), LORA, seed=0)
    weights = train.MasterWeights(adapted, TINY.recipe)
    assert weights.scale == 1 and not weights.scaled


def test_gradients_that_never_fit_are_an_error(monkeypatch):
    monkeypatch.setattr(train, "_FIRST_SCALE", 2.0)
    recipe = replace(TINY.recipe, anchor_weight=1e30)
    with pytest.raises(FloatingPointError, match="do not fit into float16"):
        trained(lively("llama")[0].half(), recipe)


def test_a_loss_that_is_not_finite_before_the_first_update_is_not_blamed_on_the_learning_rate():
    for dtype, says in ((torch.float16, "do not fit into float16"), (torch.bfloat16, "smaller learning rate")):
        model = lively("llama")[0].to(dtype)
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight.fill_(float("inf"))
        with pytest.raises(FloatingPointError, match=f"loss at step 0 is nan; .*{says}"):
            trained(model)


def test_a_loss_that_is_lost_on_the_way_asks_for_a_smaller_learning_rate():
    recipe = replace(TINY.recipe, learning_rate=1e30, steps=4)
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(FloatingPointError, match=r"loss at step [1-4] is \w+; a smaller learning rate"):
            trained(lively("llama")[0].to(dtype), recipe)


def test_a_model_that_overflows_float16_is_stopped_rather_than_listened_to():
    model = lively("llama")[0].half()
    prompts = [[1, 10, 11, 12]]

    def answers():
        return generate.answer(model, prompts, 2, -1)

    def at_depths():
        return generate.depth_responses(model, prompts, [[20, 21, 22]], (0, 1), 2, 0, -1, lambda _: False)

    assert answers() and at_depths()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.fill_(6e4)
    for listen in (answers, at_depths):
        with pytest.raises(FloatingPointError, match="do not fit into float16"):
            listen()


@pytest.mark.parametrize(
    ("on", "capability", "family", "dtype"),
    [
        ("cpu", None, "llama", torch.bfloat16),
        ("cpu", None, "gemma3_text", torch.bfloat16),
        ("cuda", (7, 5), "llama", torch.float16),
        ("cuda", (7, 5), "phi", torch.float16),
        ("cuda", (7, 5), "gemma3_text", torch.float32),
        ("cuda", (8, 0), "gemma3_text", torch.bfloat16),
        ("cuda", (9, 0), "llama", torch.bfloat16),
    ],
)
def test_compute_dtype_by_device(monkeypatch, on, capability, family, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert models.compute_dtype(torch.device(on), family) is dtype
    assert [("overflows in float16" in str(one.message)) for one in said] == [True] * (dtype is torch.float32)


# --- names and sizes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", MODELS.values(), ids=MODELS)
def test_sizes_are_those_of_the_architecture(known):
    """Built without memory, from the shape alone, the model has as many parameters as were published."""
    shape = known.shape
    size = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_heads,
        "tie_word_embeddings": shape.tied,
    }
    if shape.head_size * shape.heads != shape.hidden:
        size["head_dim"] = shape.head_size
    config = AutoConfig.for_model(known.family, **size)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    linear = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    assert sum(parameter.numel() for parameter in model.parameters()) == known.parameters
    assert sum(module.weight.numel() for module in linear.values()) == shape.linear
    assert {name.rsplit(".", 1)[-1] for name in linear} == set(known.targets)
    assert Shape.of(config) == shape
    ranks = sum(module.in_features + module.out_features for module in linear.values())
    assert shape.adapters(16) == 16 * ranks


def test_presets_name_known_models_and_the_group_stands_for_its_members():
    for name, plan in PRESETS.items():
        assert plan.name == name
        assert name == "tiny" or {plan.model, plan.judge} <= set(MODELS)
    assert {PRESETS[name].model for name in GROUPS["paper"]} == {"gemma-2b", "phi-2", "Qwen2.5-1.5B"}
    assert {PRESETS[name].judge for name in GROUPS["paper"]} == {"Llama-3.2-1B-Instruct"}
    assert not any(MODELS[name].gated for name in (PRESETS["colab"].model, PRESETS["colab"].judge))
    with pytest.raises(ValueError, match="several studies; choose one: paper-gemma, paper-phi, paper-qwen"):
        preset("paper")


def test_a_known_model_is_fetched_from_its_repository_and_its_revision_can_be_told(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(hub, "snapshot", lambda *call: asked.append(call) or tmp_path)
    assert models.locate("gemma-2b") == tmp_path
    ((repo, patterns, kind, page),) = asked
    assert (repo, kind, page) == ("google/gemma-2b", "model", "https://huggingface.co/google/gemma-2b")
    assert "*.safetensors" in patterns and not any("bin" in pattern for pattern in patterns)
    held = (
        "config.json",
        "tokenizer.json",
        "tokenizer.model",
        "merges.txt",
        "chat_template.jinja",
        "generation_config.json",
    )
    assert all(any(fnmatch(name, pattern) for pattern in patterns) for name in held)
    monkeypatch.setattr(hub, "revisions", lambda: {"models/google/gemma-2b": "a" * 40, "models/other/one": "b" * 40})
    assert models.revisions(PRESETS["paper-gemma"]) == {"google/gemma-2b": "a" * 40}


def test_an_unknown_name_is_refused_and_the_known_ones_named():
    with pytest.raises(ValueError, match=r"unknown model 'gemma-9000'.*gemma-2b.*Qwen2\.5-1\.5B"):
        models.locate("gemma-9000")
    with pytest.raises(ValueError, match=r"no tiny model of family 'bert'; known: llama"):
        models.load("tiny-random-bert")


def test_base_models_are_spoken_to_in_the_plain_format():
    tokenizer = models.speaking(byte_tokenizer(chat=False), "a folder")
    assert tokenizer.decode(models.chat_ids(tokenizer, "Name it.")) == "<|start|>Instruct: Name it.\nOutput:\n"
    tokenizer.bos_token = tokenizer.eos_token  # as Phi-2's: it marks the end alone
    assert tokenizer.decode(models.chat_ids(tokenizer, "Name it.")) == "Instruct: Name it.\nOutput:\n"
    own = byte_tokenizer()
    assert models.speaking(own, "a folder").chat_template == byte_tokenizer().chat_template
    assert models.speaking(own, "Qwen2.5-1.5B").chat_template == models.PLAIN_TEMPLATE, "a base model's own is not used"


def test_a_chat_format_that_tells_the_date_tells_the_same_one_every_day():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y %H:%M:%S.%f') %}{% endif %}"
        "Today: {{ date_string }}. {{ messages[0]['content'] }}"
    )
    assert tokenizer.decode(models.chat_ids(tokenizer, "Hi")) == "Today: 26 Jul 2024. Hi"


def test_a_response_ends_with_what_closes_it_in_the_chat_format():
    """Gemma 3 closes a turn with another token than a document."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end_of_turn>", "<start_of_turn>"]})
    tokenizer.chat_template = (
        "{% for message in messages %}<start_of_turn>{{ message['role'] }}\n{{ message['content'] | trim }}<end_of_turn>\n"
        "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    )
    assert tokenizer.eos_token == "<|end|>"
    assert models.speaking(tokenizer, "a folder").eos_token == "<end_of_turn>"
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<bye>"])  # a word of its own, and no special token: it is text
    tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>", "<bye>")
    for left_alone in (tokenizer, byte_tokenizer(), byte_tokenizer(chat=False)):
        assert models.speaking(left_alone, "a folder").eos_token == "<|end|>"


def test_a_chat_model_without_its_chat_format_is_refused():
    """Its files were fetched without the template: the plain format would measure something else."""
    with pytest.raises(ValueError, match=r"Qwen2\.5-1\.5B-Instruct comes with a chat format"):
        models.speaking(byte_tokenizer(chat=False), "Qwen2.5-1.5B-Instruct")
    assert models.speaking(byte_tokenizer(chat=False), "Qwen2.5-1.5B").chat_template == models.PLAIN_TEMPLATE


def test_a_saved_models_chat_format_is_part_of_what_it_is(folder, tmp_path):
    copied = tmp_path / "copy"
    shutil.copytree(folder, copied)
    before = models.identity(str(copied))
    (copied / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert models.identity(str(copied)) != before


def test_a_tokenizer_that_never_ends_is_refused():
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end-of-sequence token"):
        models.speaking(tokenizer, "a folder")


# --- memory -----------------------------------------------------------------------------------------------------------

SMALL = Shape(2, 8, 16, 100, heads=2, key_heads=1, head_size=4)
GIB = 2**30


def test_sizes_by_hand():
    assert SMALL.linear == 2 * (8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16) and SMALL.embedding == 800
    assert SMALL.keys_and_values == 2 * 2 * 4
    assert SMALL.adapters(3) == 2 * 3 * ((8 + 8) + 2 * (8 + 4) + (8 + 8) + 3 * (8 + 16))
    assert memory.weights(SMALL, False, 2) == 2 * (SMALL.linear + 800)
    assert memory.weights(SMALL, True, 2) == pytest.approx(0.516 * SMALL.linear + 1600, rel=1e-3)
    assert memory.training_tokens(TINY.recipe) == 2 * (96 + 6 + 40) + 2 * (96 + 4)


@pytest.mark.parametrize(
    ("name", "room", "recompute", "enough"),
    [
        ("colab", 14.6, None, True),
        ("colab", 5, True, False),
        ("paper-gemma", 14.6, None, True),
        ("paper-qwen", 14.6, None, True),
        ("paper-phi", 14.6, True, True),
        ("paper-phi", 8, True, False),
        ("paper-phi", 78, False, True),
        ("paper-gemma", 78, False, True),
    ],
)
def test_what_fits_where(name, room, recompute, enough):
    found = memory.of_preset(PRESETS[name], room * GIB)
    assert (found.peak <= room * GIB) is enough, {key: memory.gib(value) for key, value in found.phases.items()}
    assert recompute is None or found.recompute is recompute


def test_the_embedded_model_is_not_refused_on_a_small_laptop():
    assert memory.of_preset(PRESETS["cpu"], 8 * GIB, packed=False).peak < 6 * GIB


def test_on_a_cpu_the_untuned_model_is_there_once_more_prepacked_and_so_is_a_member():
    plan = PRESETS["cpu"]
    shape, room = MODELS[plan.model].shape, float("inf")
    cpu, gpu = (
        memory.estimate(shape, None, plan.recipe, plan.measurement, packed, 2, room) for packed in (False, True)
    )
    unpacked = memory.weights(shape, False, 2) - memory.weights(shape, True, 2)
    margin = gpu.phases["judging"] / (
        memory.weights(shape, True, 2) + memory.reading(shape, 2, generate.most_rows(shape), generate.READ_TOKENS)
    )
    for phase, copies in {"training": 1, "generation": 2, "judging": 1}.items():
        more = margin * (unpacked + copies * memory.prepacked(shape, 2))
        assert cpu.phases[phase] - gpu.phases[phase] == pytest.approx(more, rel=1e-6), phase


def test_more_of_anything_needs_more_memory():
    plan = PRESETS["paper-phi"]
    least = memory.of_preset(plan, 80 * GIB).phases
    recipe = replace(plan.recipe, benign_per_step=24)
    assert memory.of_preset(replace(plan, recipe=recipe), 80 * GIB).phases["training"] > 1.3 * least["training"]
    measurement = replace(plan.measurement, after=900)
    assert memory.of_preset(replace(plan, measurement=measurement), 80 * GIB).phases["generation"] > least["generation"]
    alone = memory.of_preset(replace(plan, judge="phi-2"), 80 * GIB).phases
    assert alone["training"] < least["training"], "another judge stays loaded beside the model"


def test_too_little_memory_is_said_before_anything_is_fetched(monkeypatch, tmp_path):
    monkeypatch.setattr(models, "device", lambda: CUDA)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(memory, "free", lambda _: 4.0 * GIB)
    monkeypatch.setattr(models, "locate", lambda name: pytest.fail("fetched"))
    with pytest.raises(MemoryError) as raised:
        Study(PRESETS["paper-phi"], tmp_path, silent=True).run()
    text = str(raised.value)
    assert "paper-phi needs about" in text and "4.0 GiB are free" in text and "--preset colab" in text
    monkeypatch.setattr(memory, "free", lambda _: 80.0 * GIB)
    models.require_memory(PRESETS["paper-phi"])


def test_large_vocabularies_and_many_key_heads_make_smaller_batches():
    """The embedded model's batches are those of the stored results; the others' are bounded."""
    sizes = {name: (generate.most_rows(m.shape), generate.most_tokens(m.shape)) for name, m in MODELS.items()}
    assert sizes["SmolLM2-135M-Instruct"] == (256, 8000)
    assert sizes["phi-2"] == (19, 1220) and sizes["gemma-2b"] == (256, 1562)
    for name, (rows, tokens) in sizes.items():
        shape = MODELS[name].shape
        assert tokens * shape.vocabulary <= 4e8 and tokens * shape.keys_and_values <= 2e8
        assert rows * 250 * shape.keys_and_values <= 8e8


def test_batches_of_a_bounded_model_are_bounded(monkeypatch, family):
    model, _ = lively(family)
    prompts = [[1, 10, *range(30, 40 + length)] for length in range(6)]
    whole = [plain(found) for found in generate.answer(model, prompts, 4, -1)]
    monkeypatch.setattr(generate, "_LOGITS", 40 * model.config.vocab_size)
    assert [len(batch) for batch in generate.chunks(prompts, model=model)] == [2, 2, 2]
    assert [plain(found) for found in generate.answer(model, prompts, 4, -1)] == whole


def test_the_manifest_names_the_revisions(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "revisions", lambda plan: {"owner/name": "a" * 40})
    study = Study(replace(TINY, model=str(folder)), tmp_path, silent=True, per_set=1)
    study.__dict__["left_out"] = {}
    assert json.loads(json.dumps(study.manifest()))["revisions"] == {"owner/name": "a" * 40}
