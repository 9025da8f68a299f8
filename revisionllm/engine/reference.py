"""The plain way: one question, one forward pass over the whole sequence per token.

Slow on purpose; tests and benchmarks hold the engine against it.
"""

from __future__ import annotations

import numpy as np
import torch

from revisionllm.grounding import scores
from revisionllm.grounding.answers import AnswerGrammar
from revisionllm.model.llama import GroundingModel


@torch.inference_mode()
def answer_one(
    model: GroundingModel, grammar: AnswerGrammar, features: np.ndarray, sentence: str
) -> tuple[str, list[int], float, float]:
    """Greedy answer under the grammar about one window.

    Args:
        features: [F, D], the window's frames.

    Returns:
        text, token ids (end token included), presence, mean entropy of the open tokens (nats).
    """
    frames = torch.from_numpy(np.asarray(features, np.float32))[None].to(model.device)
    return _answer(model, grammar, model.embed_frames(frames), sentence)


@torch.inference_mode()
def answer_segments(
    model: GroundingModel,
    grammar: AnswerGrammar,
    features: np.ndarray,
    words: np.ndarray,
    sentence: str,
    *,
    repeat: int = 1,
) -> tuple[str, list[int], float, float]:
    """The same about segments: features [S, F, D], words [L, D], each segment shown `repeat` times.

    The adapter runs over every shown position.
    """
    shown = np.repeat(np.asarray(features, np.float32), repeat, axis=0)
    text = torch.from_numpy(np.asarray(words, np.float32))[None].to(model.device)
    tokens = model.embed_frames(
        torch.from_numpy(shown)[None].to(model.device), text, output="segment"
    )
    return _answer(model, grammar, tokens, sentence)


def _answer(model, grammar: AnswerGrammar, visual_1NH: torch.Tensor, sentence: str):
    before, after = model.prompt_pieces(model.question(sentence))
    embed = model.llm.get_input_embeddings()
    state, tokens, entropies, presence = grammar.start, [], [], 1.0
    while not grammar.is_final(state):
        front = embed(torch.tensor([before], device=model.device))
        back = embed(torch.tensor([after + tokens], device=model.device))
        embeds = torch.cat([front, visual_1NH.to(front), back], 1)
        logits = model.llm(inputs_embeds=embeds, use_cache=False).logits[0, -1].float().cpu()
        logits = logits.numpy()
        allowed = grammar.allowed(state)
        if len(allowed) > 1:
            entropies.append(float(scores.token_entropy(logits, allowed)))
        if state == grammar.decision and grammar.absent_token is not None:
            presence = scores.presence(logits, allowed, grammar.absent_token)
        tokens.append(int(allowed[logits[allowed].argmax()]))
        state = grammar.advance(state, tokens[-1])
    return grammar.text(state), tokens, presence, scores.mean_entropy(entropies)
