"""A video-LLM in this process: any folder that transformers loads for images and text.

https://huggingface.co/docs/transformers/main/en/model_doc/auto, `AutoModelForImageTextToText`.
"""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Sequence
from pathlib import Path

from revisionllm.engine.foreign import Prompt, Reply
from revisionllm.errors import UserError, reading
from revisionllm.files import read_json
from revisionllm.model.base import check_loading, dtype_argument
from revisionllm.model.devices import choose_attention, choose_device, choose_dtype
from revisionllm.model.hub import SAFE, local, missing

BATCH = 4  # windows; less where they do not fit


def model_kind(place: str) -> str:
    """What a folder's model is called, for choosing a profile: its name and its `model_type`.

    Raises:
        UserError: no model there.
    """
    folder = Path(local(place))
    if not (folder / "config.json").is_file():
        raise UserError(f"{missing(place, 'model')}: no config.json there; vlm: names its folder")
    return f"{place} {read_json(folder / 'config.json', kind=dict).get('model_type', '')}"


class VlmAsker:
    """Asks a model of this process, several prompts at a time; see `foreign.Asker`.

    Args:
        place: folder, or `hf:owner/name`.
        device: auto, cpu, cuda, cuda:1 ...; dtype and attention follow from it, as for our own.

    Raises:
        UserError: no such model there, one without pictures, or with weights missing.
    """

    in_flight = 2  # the next windows' pictures are read while the model runs

    def __init__(self, place: str, *, device: str = "auto", batch: int = BATCH) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

        folder, self.name, self.batch = local(place), f"vlm:{place}", batch
        chosen = choose_device(device)
        dtype = choose_dtype("auto", chosen)
        options = {**SAFE, "local_files_only": True}
        with reading(f"cannot load grounder {self.name}", "copy it again"):
            self._processor = AutoProcessor.from_pretrained(folder, **options)
            model, info = AutoModelForImageTextToText.from_pretrained(
                folder,
                **options,
                **{dtype_argument(): dtype},
                attn_implementation=choose_attention("auto", chosen, dtype),
                output_loading_info=True,
            )
        check_loading(self.name, info)
        self._model = model.to(chosen).eval()
        tokenizer = self._processor.tokenizer
        tokenizer.padding_side = "left"
        # the file's own sampling settings play no part: decoding is greedy
        self._generation = GenerationConfig(
            eos_token_id=model.generation_config.eos_token_id or tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            do_sample=False,
            return_dict_in_generate=True,
        )
        self._lock = threading.Lock()
        self._words = {word: _first_tokens(tokenizer, word) for word in ("yes", "no")}

    def ask(self, prompts: Sequence[Prompt], *, tokens: int, yes_no: bool) -> list[Reply]:
        """Ask the model: greedy, and for "yes" its probability against "no".

        Raises:
            UserError: the GPU's memory is too small for a single window.
        """
        with self._lock:
            return self._ask(list(prompts), tokens, yes_no)

    def _ask(self, prompts: list[Prompt], tokens: int, yes_no: bool) -> list[Reply]:
        import torch

        try:
            return self._generate(prompts, tokens, yes_no)
        except torch.OutOfMemoryError as error:
            if len(prompts) == 1:
                raise UserError(
                    f"{self.name}: a window of {len(prompts[0].jpegs)} pictures is too much for the"
                    " GPU; lower image_side or frames_per_window in a --grounder-profile"
                ) from error
        torch.cuda.empty_cache()
        self.batch = half = len(prompts) // 2
        return self._ask(prompts[:half], tokens, yes_no) + self._ask(prompts[half:], tokens, yes_no)

    def _generate(self, prompts: list[Prompt], tokens: int, yes_no: bool) -> list[Reply]:
        import torch

        inputs = self._inputs(prompts)
        self._generation.update(max_new_tokens=tokens, output_logits=yes_no)
        with torch.inference_mode():
            made = self._model.generate(**inputs, generation_config=self._generation)
        texts = self._processor.batch_decode(
            made.sequences[:, inputs["input_ids"].shape[1] :],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        if not yes_no:
            return [Reply(text) for text in texts]
        chances = made.logits[0].float().softmax(-1).cpu()
        yes, no = (chances[:, self._words[word]].sum(1) for word in ("yes", "no"))
        shares = (yes / (yes + no)).tolist()
        return [
            Reply(text, share if math.isfinite(share) else None)
            for text, share in zip(texts, shares, strict=True)
        ]

    def _inputs(self, prompts: Sequence[Prompt]):
        """What the model reads: each prompt as one message of the user, padded on the left."""
        texts = [
            self._processor.apply_chat_template(
                [{"role": "user", "content": _content(prompt)}],
                add_generation_prompt=True,
                tokenize=False,
            )
            for prompt in prompts
        ]
        first = self._processor.tokenizer.bos_token
        images = [[_picture(jpeg) for jpeg in prompt.jpegs] for prompt in prompts]
        return self._processor(
            text=texts,
            images=images if any(images) else None,
            padding=True,
            return_tensors="pt",
            add_special_tokens=not (first and texts[0].startswith(first)),
        ).to(self._model.device, self._model.dtype)


def _content(prompt: Prompt) -> list[dict]:
    content: list[dict] = []
    for stamp in prompt.stamps:
        content += [{"type": "text", "text": stamp}, {"type": "image"}]
    return [*content, {"type": "text", "text": prompt.text}]


def _picture(jpeg: bytes):
    from PIL import Image

    return Image.open(io.BytesIO(jpeg)).convert("RGB")


def _first_tokens(tokenizer, word: str) -> list[int]:
    """Tokens that a model may begin a word with: whole words, where the tokenizer has them."""
    forms = [form for one in (word, word.title(), word.upper()) for form in (one, f" {one}")]
    ids = [tokenizer(form, add_special_tokens=False).input_ids for form in forms]
    whole = {tokens[0] for tokens in ids if len(tokens) == 1}
    return sorted(whole or {tokens[0] for tokens in ids})
