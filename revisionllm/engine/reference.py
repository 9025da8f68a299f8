"""The plain way: one query, one window, one forward pass over the whole sequence per token.

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
    before, after = model.prompt_pieces(model.question(sentence))
    embed = model.llm.get_input_embeddings()
    visual = model.embed_frames(torch.from_numpy(np.asarray(features, np.float32))[None])
    state, tokens, entropies, presence = grammar.start, [], [], 0.0
    while not grammar.is_final(state):
        ids = torch.tensor([after + tokens])
        embeds = torch.cat([embed(torch.tensor([before])), visual, embed(ids)], 1)
        logits = model.llm(inputs_embeds=embeds, use_cache=False).logits[0, -1].float().numpy()
        allowed = grammar.allowed(state)
        if len(allowed) > 1:
            entropies.append(float(scores.token_entropy(logits, allowed)))
        if state == grammar.decision and grammar.absent_token is not None:
            presence = scores.presence(logits, allowed, grammar.absent_token)
        tokens.append(int(allowed[logits[allowed].argmax()]))
        state = grammar.advance(state, tokens[-1])
    return grammar.text(state), tokens, presence, scores.answer_entropy(entropies).mean
