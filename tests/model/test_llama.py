"""`GroundingModel`: the plain LLM without a video; independent of padding and companions."""

from __future__ import annotations

import pytest
import torch
from model_assets import BASE, tiny_llm
from transformers import LogitsProcessor, LogitsProcessorList

from revisionllm.constants import IGNORE_INDEX, VIDEO_TOKEN_ID
from revisionllm.model.base import load_tokenizer
from revisionllm.model.config import AdapterConfig, RunConfig
from revisionllm.model.llama import GroundingModel, build_adapter

D = 16
LONG = [1, 5, 6, VIDEO_TOKEN_ID, 7, 8, 9, 10]
SHORT = [1, 11, VIDEO_TOKEN_ID, 12]


def build(kind="linear", output="frames", **llm_changes):
    llm = tiny_llm(**llm_changes)
    adapter = AdapterConfig(kind, D, llm.config.hidden_size, output)
    config = RunConfig(adapter=adapter, frames_per_window=6)
    return GroundingModel(llm, build_adapter(adapter).eval(), load_tokenizer(str(BASE)), config)


@pytest.fixture(scope="module")
def model():
    return build()


def batch():
    """Two prompts of different length, right-padded, and their videos."""
    ids = torch.tensor([LONG, SHORT + [0] * 4])
    mask = torch.tensor([[1] * 8, [1] * 4 + [0] * 4])
    return ids, mask, torch.randn(2, 6, D, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_without_a_video_logits_equal_the_llm(model):
    ids = torch.tensor([[1, 5, 6, 7], [1, 8, 9, 10]])
    assert torch.equal(model(ids, torch.zeros(2, 6, D)).logits, model.llm(input_ids=ids).logits)


@torch.no_grad()
def test_padding_and_companions_do_not_change_logits(model):
    ids, mask, images = batch()
    together = model(ids, images, attention_mask=mask).logits
    alone = model(torch.tensor([SHORT]), images[1:]).logits
    torch.testing.assert_close(together[1, : 3 + 6], alone[0], atol=1e-5, rtol=0)


def test_padding_and_companions_do_not_change_answers(model):
    ids, mask, images = batch()
    settings = {"max_new_tokens": 6, "return_logits": True}
    together = model.generate(ids, images, attention_mask=mask, **settings)
    for row, prompt in enumerate((LONG, SHORT)):
        alone = model.generate(torch.tensor([prompt]), images[row : row + 1], **settings)
        steps = alone.token_ids.shape[1]
        assert torch.equal(together.token_ids[row, :steps], alone.token_ids[0])
        torch.testing.assert_close(together.logits[row, :steps], alone.logits[0], atol=1e-5, rtol=0)


def test_loss_equals_the_llms_own(model):
    ids, mask, images = batch()
    labels = ids.masked_fill(ids < 7, IGNORE_INDEX).masked_fill(mask == 0, IGNORE_INDEX)
    spliced = model.splice_prompts(ids, images, attention_mask=mask, labels=labels)
    wanted = model.llm(
        inputs_embeds=spliced.inputs_embeds,
        attention_mask=spliced.attention_mask.long(),
        labels=spliced.labels,
    ).loss
    found = model(ids, images, labels=labels, attention_mask=mask).loss
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


@torch.no_grad()
def test_videos_of_different_length_and_several_per_prompt(model):
    _, _, images = batch()
    ids = torch.tensor([[1, VIDEO_TOKEN_ID, 5, VIDEO_TOKEN_ID], [1, VIDEO_TOKEN_ID, 6, 7]])
    found = model.splice_prompts(ids, [[images[0], images[1, :2]], images[1, :3]])
    tokens = model.embed_frames(images)
    assert torch.equal(found.inputs_embeds[0, 1:7], model.embed_frames(images[:1])[0])
    torch.testing.assert_close(found.inputs_embeds[0, 8:], tokens[1, :2])
    torch.testing.assert_close(found.inputs_embeds[1, 1:4], tokens[1, :3])
    assert found.attention_mask.sum(1).tolist() == [10, 6]


@torch.no_grad()
def test_segments_and_output_kinds_through_the_model():
    model = build("clip", "segment")
    segments = torch.randn(2, 3, 6, D)
    words = {"query_features": torch.randn(2, 4, D), "query_mask": torch.ones(2, 4)}
    ids = torch.tensor([SHORT, SHORT])
    assert model(ids, segments, **words).logits.shape == (2, 3 + 3, 512)
    assert model(ids, segments[:, 0], **words).logits.shape == (2, 3 + 1, 512)
    frames = model(ids, segments[:, 0], adapter_output="frames", **words)
    assert frames.logits.shape == (2, 3 + 6, 512)
    one_by_one = model.splice_prompts(ids, list(segments), **words).inputs_embeds
    together = model.splice_prompts(ids, segments, **words).inputs_embeds
    torch.testing.assert_close(one_by_one, together, atol=1e-5, rtol=0)


def test_clip_adapter_asks_for_words_and_alternate_for_a_kind():
    segments = torch.randn(1, 3, 6, D)
    with pytest.raises(ValueError, match="word features"):
        build("clip", "segment").embed_frames(segments)
    with pytest.raises(ValueError, match="every batch must say"):
        build("clip", "alternate").embed_frames(segments, torch.randn(1, 4, D))


def test_too_long_a_prompt_is_reported(capsys):
    model = build(max_position_embeddings=8)
    model.splice_prompts(torch.tensor([LONG]), torch.randn(1, 6, D))
    assert "cut from 13 to 8 positions" in capsys.readouterr().err


def test_generate_takes_a_grammar(model):
    class OnlySeven(LogitsProcessor):
        def __call__(self, input_ids, scores):
            allowed = torch.full_like(scores, float("-inf"))
            allowed[:, 7] = 0
            return allowed

    found = model.generate(
        torch.tensor([SHORT]),
        torch.randn(1, 6, D),
        max_new_tokens=3,
        logits_processor=LogitsProcessorList([OnlySeven()]),
        return_logits=True,
    )
    assert found.token_ids.tolist() == [[7, 7, 7]]
    assert found.logits.isfinite().all()  # the raw ones, before the grammar


def test_prompt_pieces_and_question_follow_the_run(model):
    question = model.question("A dog.")
    assert question == "During which frames can we see a dog?"
    before, after = model.prompt_pieces(question)
    assert before[0] == 1 and after[:2] == [459, 13]
    model.config.question = "video"
    assert model.question("A dog.") == "During which video can we see a dog?"
    model.config.question = "frames"
