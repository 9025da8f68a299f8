"""A video-LLM in this process: any folder that transformers loads for images and text.

https://huggingface.co/docs/transformers/main/en/model_doc/auto, `AutoModelForImageTextToText`.
"""

from __future__ import annotations

import io
import threading
from pathlib import Path

from revisionllm.engine.foreign import Prompt, Reply
from revisionllm.errors import UserError
from revisionllm.files import read_json
from revisionllm.model.hub import local, missing


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
    """Asks a model of this process, one prompt at a time; see `foreign.Asker`.

    Args:
        place: folder, or `hf:owner/name`.

    Raises:
        UserError: no such model there, or one without pictures.
    """

    in_flight = 2  # the next window's pictures are read while the model runs

    def __init__(self, place: str, *, device: str = "auto") -> None:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        folder, self.name = local(place), f"vlm:{place}"
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        try:
            self._processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
            self._model = AutoModelForImageTextToText.from_pretrained(
                folder, local_files_only=True, dtype=dtype
            )
        except (OSError, ValueError) as error:
            raise UserError(f"{self.name}: {' '.join(str(error).split())[:200]}") from error
        self._model = self._model.to(device).eval()
        self._lock = threading.Lock()
        self._words = self._word_tokens()

    def _word_tokens(self) -> dict[str, list[int]]:
        """First tokens of "yes" and "no" in the ways a model may begin them."""
        tokenizer = self._processor.tokenizer
        found: dict[str, list[int]] = {}
        for word in ("yes", "no"):
            forms = [
                form
                for plain in (word, word.title(), word.upper())
                for form in (plain, f" {plain}")
            ]
            ids = [tokenizer(form, add_special_tokens=False).input_ids for form in forms]
            whole = {tokens[0] for tokens in ids if len(tokens) == 1}
            found[word] = sorted(whole or {tokens[0] for tokens in ids})
        return found

    def ask(self, prompt: Prompt, *, tokens: int, yes_no: bool) -> Reply:
        """Ask the model: greedy, and for "yes" its probability against "no"."""
        import torch
        from PIL import Image

        content: list[dict] = []
        for stamp, jpeg in zip(prompt.stamps, prompt.jpegs, strict=True):
            picture = Image.open(io.BytesIO(jpeg)).convert("RGB")
            content += [{"type": "text", "text": stamp}, {"type": "image", "image": picture}]
        content.append({"type": "text", "text": prompt.text})
        with self._lock, torch.inference_mode():
            inputs = self._processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            ).to(self._model.device, self._model.dtype)
            made = self._model.generate(
                **inputs,
                max_new_tokens=tokens,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=yes_no,
            )
        length = inputs["input_ids"].shape[1]
        text = self._processor.batch_decode(
            made.sequences[:, length:], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )[0]
        if not yes_no:
            return Reply(text)
        chances = made.logits[0][0].float().softmax(-1).cpu()
        yes, no = (float(chances[self._words[word]].sum()) for word in ("yes", "no"))
        return Reply(text, yes / (yes + no) if yes + no > 0 else None)
