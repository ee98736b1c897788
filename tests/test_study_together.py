"""Members that answer together give the answers that each gives by itself."""

from dataclasses import replace

import pytest
import torch
from made_models import lively

from safetylib.study import generate, models
from safetylib.study.presets import Lora, preset
from safetylib.study.tiny import FAMILIES
from safetylib.study.together import Ensemble

LORA = replace(preset("tiny").recipe.lora, rank=4, alpha=8)
PROMPTS = [[1, 10, 11, *range(30, 30 + length)] for length in (3, 17, 9, 1)]


def saved(base, folder, count, lora=LORA):
    """Adapters that change what the base says, each in its own way."""
    folders = [folder / f"{lora.rank}-{lora.alpha}-{seed}" for seed in range(count)]
    for seed, into in enumerate(folders):
        adapted = models.with_adapters(base, lora, seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in adapted.named_parameters():
                if "lora_B" in name:
                    weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
        adapted.save_pretrained(into)
        models.remove_adapters(adapted)
    return folders


def apart(base, folders, limit, eos):
    return [generate.answer(models.merged(base, folder), PROMPTS, limit, eos) for folder in folders]


@pytest.mark.parametrize("family", FAMILIES)
def test_members_answer_together_as_each_does_alone(family, tmp_path):
    base, _ = lively(family)
    folders = saved(base, tmp_path, 3)
    together = Ensemble(base, folders).answer(PROMPTS, 20, -1)
    assert together == apart(base, folders, 20, -1)
    assert len({tuple(answers[0].tokens) for answers in together}) == 3, "the members differ"


def test_rows_that_end_early_leave_the_others_their_members(tmp_path):
    base, _ = lively("llama")
    folders = saved(base, tmp_path, 3)
    untold = [token for answers in apart(base, folders, 20, -1) for answer in answers for token in answer.tokens]
    # A token that some answers hold, soon or late, and others never do.
    for eos in sorted(set(untold), key=untold.count, reverse=True):
        expected = apart(base, folders, 20, eos)
        ended = [answer.ended for answers in expected for answer in answers]
        lengths = {len(answer.tokens) for answers in expected for answer in answers}
        if any(ended) and not all(ended) and len(lengths) > 3:
            break
    assert any(ended) and not all(ended) and len(lengths) > 3
    assert Ensemble(base, folders).answer(PROMPTS, 20, eos) == expected


def test_a_batch_holds_no_more_rows_than_the_model_can(tmp_path, monkeypatch):
    base, _ = lively("llama")
    folders = saved(base, tmp_path, 2)
    ensemble, seen = Ensemble(base, folders), []
    expected = ensemble.answer(PROMPTS, 6, -1)
    monkeypatch.setattr(generate, "most_rows", lambda _: 4)
    original = generate.extend
    monkeypatch.setattr(
        generate,
        "extend",
        lambda model, batches, *rest: (
            seen.extend(len(batch.responses) for batch in batches) or original(model, batches, *rest)
        ),
    )
    assert ensemble.answer(PROMPTS, 6, -1) == expected
    assert seen == [4, 4]


def test_the_base_is_left_as_it_was(tmp_path):
    base, _ = lively("llama")
    folders = saved(base, tmp_path, 2)
    before = generate.answer(base, PROMPTS, 8, -1)
    layers = [type(module) for module in base.modules()]
    Ensemble(base, folders).answer(PROMPTS, 8, -1)
    assert [type(module) for module in base.modules()] == layers
    assert generate.answer(base, PROMPTS, 8, -1) == before


@pytest.mark.parametrize("other", [replace(LORA, rank=2), replace(LORA, alpha=4), Lora(4, 8, ".*q_proj")])
def test_adapters_that_do_not_fit_together_are_refused(tmp_path, other):
    base, _ = lively("llama")
    one, two = saved(base, tmp_path / "one", 1), saved(base, tmp_path / "other", 1, other)
    with pytest.raises(ValueError, match="one rank, scale and set of layers"):
        Ensemble(base, one + two)
    with pytest.raises(ValueError, match="need adapters"):
        Ensemble(base, [])
