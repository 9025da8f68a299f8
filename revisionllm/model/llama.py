"""The model: frame features, an adapter, and an LLM that answers questions about them in text.

`GroundingModel` holds the parts and ties them together through public library interfaces only; the
LLM is unchanged from transformers (https://arxiv.org/abs/2411.14901, section 3).

Legend: B batch, S segments, F frames of a window, L words of a query, D feature dim, N visual
tokens, P positions of a prompt, M positions after the splice, V vocabulary, H LLM width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import CausalLMOutput

from revisionllm.constants import IGNORE_INDEX
from revisionllm.formats.questions import question_text
from revisionllm.model import prompts
from revisionllm.model.clip_adapter import ClipAdapter
from revisionllm.model.config import AdapterConfig, RunConfig
from revisionllm.model.projector import FrameProjector
from revisionllm.model.splice import Spliced, splice

Images = Tensor | Sequence[Tensor | Sequence[Tensor]]


@dataclass
class Generation:
    """Greedy answers: token ids [B, steps] (pad after EOS), texts, and raw logits [B, steps, V]."""

    token_ids: Tensor
    texts: list[str]
    logits: Tensor | None


def build_adapter(config: AdapterConfig) -> FrameProjector | ClipAdapter:
    """The adapter that a run's config names, freshly initialised."""
    if config.kind == "linear":
        return FrameProjector(config.feature_dim, config.hidden_size, **config.options)
    return ClipAdapter(
        config.feature_dim, config.hidden_size, text_width=config.text_width, **config.options
    )


class GroundingModel(nn.Module):
    """LLM, adapter and tokenizer of one run.

    Attributes:
        llm: a causal LM of transformers; where LoRA is attached, its layers sit inside it.
        projector: the adapter, `FrameProjector` or `ClipAdapter`.
        tokenizer: of the base.
        config: the run's config.
        merged_lora: folders of the LoRAs that are merged into `llm`, in order.
        lora: the peft wrapper around `llm` while LoRA is attached and not merged, else None.
    """

    def __init__(
        self,
        llm: PreTrainedModel,
        projector: FrameProjector | ClipAdapter,
        tokenizer: PreTrainedTokenizerBase,
        config: RunConfig,
    ) -> None:
        super().__init__()
        self.llm = llm
        self.projector = projector
        self.tokenizer = tokenizer
        self.config = config
        self.merged_lora: list[str] = []
        # in a tuple, so that its parameters are not registered twice
        self._peft: tuple[PeftModel, ...] = ()

    @property
    def lora(self) -> PeftModel | None:
        """The `peft.PeftModel` whose LoRA layers are in `llm`, or None."""
        return self._peft[0] if self._peft else None

    def attach_lora(self, peft_model: PeftModel) -> None:
        """Remember the LoRA that `new_lora` or `load_lora` put into `llm`."""
        self._peft = (peft_model,)

    @property
    def device(self) -> torch.device:
        return self.llm.device

    @property
    def max_length(self) -> int:
        """Longest sequence the LLM was made for, in positions."""
        return self.llm.config.max_position_embeddings

    def set_trainable(self, *, adapter: bool, lora: bool) -> None:
        """Say what training moves; the base itself is always frozen."""
        self.projector.requires_grad_(adapter)
        for name, parameter in self.llm.named_parameters():
            parameter.requires_grad_(lora and ".lora_" in name)

    def prompt_pieces(self, question: str) -> tuple[list[int], list[int]]:
        """Token ids before and after `<video>` in the prompt of a question."""
        return prompts.prompt_pieces(self.tokenizer, question, self.config.prompt_template)

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of an answer as they follow the prompt, without EOS."""
        return prompts.encode_answer(self.tokenizer, answer, self.config.prompt_template)

    def question(self, sentence: str) -> str:
        """The question about a sentence in this run's wording."""
        return question_text(sentence, self.config.question)

    def embed_frames(
        self,
        features: Tensor,
        query_features: Tensor | None = None,
        query_mask: Tensor | None = None,
        *,
        output: str | None = None,
        placed: bool = True,
    ) -> Tensor:
        """Frame features to visual tokens.

        Args:
            features: [B, F, D]; a clip adapter also takes segments [B, S, F, D].
            query_features: [B, L, D] word features, for a clip adapter.
            query_mask: [B, L], nonzero where a word is.
            output: what a clip adapter gives: segment, frames or all; None: the run's own.
            placed: segments stand in the prompt as given here; False leaves
                `ClipAdapter.place` to the caller.

        Returns:
            [B, N, H]: F tokens, or what `ClipAdapter.forward` says.

        Raises:
            ValueError: a clip adapter without query features, or an `alternate` run without
            `output`.
        """
        like = next(self.projector.parameters())
        features = features.to(like)
        if isinstance(self.projector, FrameProjector):
            return self.projector(features)
        output = output or self.config.adapter.output
        if query_features is None or output == "alternate":
            raise ValueError(
                "a clip adapter needs the query's word features, and with the output 'alternate'"
                " every batch must say 'segment' or 'frames'"
            )
        query_mask = None if query_mask is None else query_mask.to(like.device)
        tokens = self.projector(features, query_features.to(like), query_mask, output=output)
        return self.projector.place(tokens) if placed and output == "segment" else tokens

    def splice_prompts(
        self,
        input_ids: Tensor,
        images: Images,
        *,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        query_features: Tensor | None = None,
        query_mask: Tensor | None = None,
        adapter_output: str | None = None,
        padding_side: str = "right",
    ) -> Spliced:
        """Embed prompts and videos and put them together; arguments as in `forward`."""
        visuals = self._embed_rows(images, query_features, query_mask, adapter_output)
        return splice(
            input_ids,
            visuals,
            self.llm.get_input_embeddings(),
            attention_mask=attention_mask,
            labels=labels,
            padding_side=padding_side,
            max_length=self.max_length,
        )

    def forward(
        self,
        input_ids: Tensor,
        images: Images,
        labels: Tensor | None = None,
        attention_mask: Tensor | None = None,
        query_features: Tensor | None = None,
        query_mask: Tensor | None = None,
        adapter_output: str | None = None,
    ) -> CausalLMOutput:
        """One pass over a batch; the loss with labels, the logits without.

        Args:
            input_ids: [B, P], `VIDEO_TOKEN_ID` where videos go, right-padded.
            images: features [B, F, D] or [B, S, F, D], one video per row; or per row a [F, D] or
                [S, F, D] of its own length, or a list of these for a prompt with several videos.
            labels: [B, P], `IGNORE_INDEX` where not supervised.
            attention_mask: [B, P], nonzero for real tokens; None: all are.
            query_features: [B, L, D] word features, for a clip adapter.
            query_mask: [B, L], nonzero where a word is.
            adapter_output: segment, frames or all, for a clip adapter; None: the run's own.

        Returns:
            With labels `loss`, the mean cross-entropy over supervised tokens; the LM head runs at
            those positions alone. Without labels `logits` [B, M, V].
        """
        batch = self.splice_prompts(
            input_ids,
            images,
            attention_mask=attention_mask,
            labels=labels,
            query_features=query_features,
            query_mask=query_mask,
            adapter_output=adapter_output,
        )
        hidden_BMH = self.llm.model(
            inputs_embeds=batch.inputs_embeds,
            attention_mask=batch.attention_mask.long(),
            position_ids=batch.position_ids,
            use_cache=False,
        ).last_hidden_state
        if labels is None:
            return CausalLMOutput(logits=self.llm.lm_head(hidden_BMH))
        targets = batch.labels[:, 1:]
        supervised = targets != IGNORE_INDEX
        logits = self.llm.lm_head(hidden_BMH[:, :-1][supervised])
        return CausalLMOutput(loss=cross_entropy(logits.float(), targets[supervised]))

    @torch.inference_mode()
    def generate(
        self,
        input_ids: Tensor,
        images: Images,
        *,
        attention_mask: Tensor | None = None,
        query_features: Tensor | None = None,
        query_mask: Tensor | None = None,
        adapter_output: str | None = None,
        max_new_tokens: int = 24,
        logits_processor: LogitsProcessorList | None = None,
        return_logits: bool = False,
    ) -> Generation:
        """Greedy answers, one query at a time or in a batch: the plain reference of the engine.

        Args:
            max_new_tokens: stop after this many.
            logits_processor: for decoding under a grammar.
            return_logits: keep the raw logits of each step (before `logits_processor`).
            (others): as in `forward`.
        """
        batch = self.splice_prompts(
            input_ids,
            images,
            attention_mask=attention_mask,
            query_features=query_features,
            query_mask=query_mask,
            adapter_output=adapter_output,
            padding_side="left",  # new tokens are appended on the right
        )
        result = self.llm.generate(
            inputs_embeds=batch.inputs_embeds,
            attention_mask=batch.attention_mask.long(),
            logits_processor=logits_processor,
            generation_config=GenerationConfig(
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
                return_dict_in_generate=True,
                output_logits=return_logits,
            ),
        )
        texts = self.tokenizer.batch_decode(result.sequences, skip_special_tokens=True)
        logits = torch.stack(result.logits, dim=1) if return_logits else None
        return Generation(result.sequences, [text.strip() for text in texts], logits)

    def _embed_rows(
        self, images: Images, text: Tensor | None, mask: Tensor | None, output: str | None
    ) -> list[list[Tensor]]:
        """Visual tokens [N, H] of each video of each row."""
        if isinstance(images, Tensor):
            return [[tokens] for tokens in self.embed_frames(images, text, mask, output=output)]
        rows = []
        for row, videos in enumerate(images):
            videos = [videos] if isinstance(videos, Tensor) else videos
            row_text = None if text is None else text[row : row + 1]
            row_mask = None if mask is None else mask[row : row + 1]
            rows.append(
                [self.embed_frames(v[None], row_text, row_mask, output=output)[0] for v in videos]
            )
        return rows
