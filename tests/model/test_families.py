"""Every family of base LLMs: engine, training, LoRA, saving and RoPE as its own class has them.

A new family is one line of `FAMILIES`.

Tiny random weights from the config classes; nothing is downloaded.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from model_assets import BASE, save_base
from tiny_runs import WINDOW_S, D, ask, features_of, sentences, windows
from transformers import AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList

from revisionllm.engine.dense import DenseEngine, span_grammar
from revisionllm.engine.reference import answer_one
from revisionllm.engine.segments import SegmentEngine
from revisionllm.errors import UserError
from revisionllm.grounding.levels import Question
from revisionllm.model.base import FAMILIES as READ
from revisionllm.model.base import cast_llm, load_base, load_tokenizer, meta_llm
from revisionllm.model.config import AdapterConfig, RunConfig
from revisionllm.model.llama import GroundingModel, build_adapter
from revisionllm.model.lora import load_lora, merge_lora, new_lora, save_lora

SIZES = {
    "vocab_size": 512,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# name -> config class and what sets the family apart
FAMILIES = {
    "Llama 2": ("LlamaConfig", {"num_key_value_heads": 4}),
    "Llama 3": ("LlamaConfig", {"tie_word_embeddings": True, "rope": LLAMA_3_ROPE}),
    "Qwen 2.5": ("Qwen2Config", {"tie_word_embeddings": True}),
    "Qwen 3": ("Qwen3Config", {"head_dim": 16}),
    "Mistral": ("MistralConfig", {"sliding_window": None}),
    "SmolLM 3": ("SmolLM3Config", {"num_hidden_layers": 4}),
}
FRAMES = 24


def llm_of(family: str, seed: int = 0):
    """A random LLM of a family; its biases and norms are no zeros and ones."""
    torch.manual_seed(seed)
    name, changes = FAMILIES[family]
    settings = SIZES | changes
    rope = settings.pop("rope", None)
    if rope:
        newer = int(transformers.__version__.split(".")[0]) >= 5
        settings["rope_parameters" if newer else "rope_scaling"] = rope
        settings |= {} if newer else {"rope_theta": rope["rope_theta"]}
    llm = AutoModelForCausalLM.from_config(getattr(transformers, name)(**settings))
    with torch.no_grad():
        for parameter_name, parameter in llm.named_parameters():
            if parameter_name.endswith("bias") or "norm" in parameter_name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return llm.eval()


def run_of(family: str, *, adapter: str = "linear", seed: int = 0) -> GroundingModel:
    llm = llm_of(family, seed)
    options = {"num_text_layers": 1, "num_layers": 1, "num_heads": 2, "ffn_dim": 32}
    config = AdapterConfig(
        adapter,
        D,
        llm.config.hidden_size,
        output="frames" if adapter == "linear" else "segment",
        options={} if adapter == "linear" else options,
    )
    long = {"stage": "long", "question": "video", "num_segments": 8, "segment_stride_s": 2.4}
    run = RunConfig(
        adapter=config,
        frames_per_window=FRAMES,
        window_s=WINDOW_S,
        stride_s=6.0,
        feature_fps=2.0,
        **({} if adapter == "linear" else long),
    )
    torch.manual_seed(seed + 1)
    return GroundingModel(llm, build_adapter(config).eval(), load_tokenizer(str(BASE)), run)


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


class Allowed(LogitsProcessor):
    """A grammar, for `generate`."""

    def __init__(self, grammar) -> None:
        self.grammar, self.state = grammar, grammar.start

    def __call__(self, input_ids, scores):
        if input_ids.shape[1]:
            self.state = self.grammar.advance(self.state, int(input_ids[0, -1]))
        masked = torch.full_like(scores, -torch.inf)
        allowed = torch.from_numpy(self.grammar.allowed(self.state))
        masked[:, allowed] = scores[:, allowed]
        return masked


def test_engine_equals_generate_under_the_grammar(family):
    model = run_of(family)
    texts, film = sentences(5), windows(4)
    questions = [Question(q, (w,)) for q in range(5) for w in film]
    grammar = span_grammar(model)
    for question, answer in zip(
        questions, ask(DenseEngine(model, explore=1.0), questions, texts), strict=True
    ):
        frames, sentence = features_of(question.window), texts[question.query]
        text, tokens, presence, entropy = answer_one(model, grammar, frames, sentence)
        assert answer.answer == text
        assert answer.presence == pytest.approx(presence, abs=1e-4)
        assert answer.entropy == pytest.approx(entropy, abs=1e-4)
        before, after = model.prompt_pieces(model.question(sentence))
        made = model.generate(
            torch.tensor([[*before, -200, *after]]),
            torch.from_numpy(frames)[None],
            logits_processor=LogitsProcessorList([Allowed(grammar)]),
        )
        assert made.token_ids[0].tolist() == tokens


def test_segment_engine_equals_the_reference(family):
    from revisionllm.engine.reference import answer_segments
    from revisionllm.engine.segments import segment_grammar

    model = run_of(family, adapter="clip")
    rng = np.random.default_rng(3)
    texts = sentences(3)
    words = [rng.standard_normal((4, D)).astype(np.float32) for _ in texts]
    questions = [Question(q, tuple(windows(6))) for q in range(3)]
    grammar = segment_grammar(model, 6)
    answers = ask(SegmentEngine(model), questions, texts, words=words)
    for question, answer in zip(questions, answers, strict=True):
        shown = np.stack([features_of(w) for w in question.windows])
        query = question.query
        text, _, presence, _ = answer_segments(model, grammar, shown, words[query], texts[query])
        assert answer.answer == text
        assert answer.presence == pytest.approx(presence, abs=1e-4)


def test_packed_training_equals_separate_samples(family):
    from revisionllm.train.collator import PackedCollator, padded_rows
    from revisionllm.train.losses import packed_losses

    model = run_of(family)
    collator = PackedCollator(model.tokenizer)
    asked = [(model.question(text), "From 03 to 11.") for text in sentences(4)]
    asked[2] = asked[2][0], "Not Present"
    frames = torch.from_numpy(features_of(windows(1)[0]))[None]
    packed = packed_losses(
        model,
        {
            "images": frames,
            "before_ids": torch.tensor(collator.before),
            "shared_ids": torch.tensor(collator.shared),
            **padded_rows([collator.pack(asked, FRAMES)]),
        },
    )
    from revisionllm.model.prompts import training_ids

    for loss, (question, answer) in zip(packed, asked, strict=True):
        ids, labels = training_ids(model.tokenizer, question, answer)
        alone = model(torch.tensor([ids]), frames, torch.tensor([labels])).loss
        torch.testing.assert_close(loss, alone, rtol=1e-5, atol=1e-5)
    packed.mean().backward()
    assert any(p.grad is not None and p.grad.any() for p in model.projector.parameters())


def test_merged_lora_equals_the_unmerged_one(family, tmp_path):
    ids = torch.tensor([[1, 5, 6, 7, 8]])
    llm = llm_of(family)
    linear = {n for n, m in llm.named_modules() if isinstance(m, torch.nn.Linear)} - {"lm_head"}
    lora = new_lora(llm, rank=2)
    assert {n.split(".lora_A")[0] for n, _ in llm.named_parameters() if ".lora_A" in n} == linear
    torch.manual_seed(5)
    for name, parameter in llm.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        apart = llm.eval()(ids).logits
        save_lora(lora, tmp_path / "lora")
        merged = merge_lora(load_lora(llm_of(family), tmp_path / "lora"))
        torch.testing.assert_close(merged(ids).logits, apart, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(llm_of(family)(ids).logits, apart, atol=1e-3)


@torch.no_grad()
def test_saved_bases_load_equal_and_keep_their_frequencies(family, tmp_path):
    ids = torch.tensor([[1, 5, 6, 7, 8]])
    llm = llm_of(family)
    save_base(llm, tmp_path / "base")
    loaded = load_base(str(tmp_path / "base"), dtype=torch.float32)
    torch.testing.assert_close(loaded(ids).logits, llm(ids).logits)
    assert {n: p.shape for n, p in meta_llm(str(tmp_path / "base")).named_parameters()} == {
        n: p.shape for n, p in llm.named_parameters()
    }
    before = loaded.model.rotary_emb.inv_freq.clone()
    cast_llm(loaded, torch.bfloat16)
    assert loaded.model.rotary_emb.inv_freq.equal(before)
    assert loaded.model.rotary_emb.inv_freq.dtype == torch.float32


def test_every_family_that_is_read_is_tested():
    assert {llm_of(name).config.model_type for name in FAMILIES} == set(READ)


def test_a_sliding_window_is_refused(tmp_path):
    save_base(llm_of("Mistral"), tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"sliding_window": null', '"sliding_window": 64'))
    with pytest.raises(UserError, match="last 64 tokens"):
        load_base(str(tmp_path), dtype=torch.float32)
