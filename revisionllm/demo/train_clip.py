"""Trains the demo's CLIP (open_clip: small ResNet, small text transformer) on rendered frames.

    python revisionllm/demo/train_clip.py --out checkpoints/demo/clip

Contrastive learning as in CLIP (https://arxiv.org/abs/2103.00020) on frames with captions that name
things, their places and the scenery. A batch holds several frames of each shot, so that image
features learn to tell positions and turns apart: the grounder reads motion from them. What is
asked beside the captions: `clip_heads.py`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path

if __package__ in (None, ""):  # started by path: import from the repository, not from here
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from revisionllm.errors import run_entry_point
from revisionllm.files import replacing, write_json
from revisionllm.options import COUNT_OR_NONE, Parser, Range

log = logging.getLogger("train_clip")
IMAGE_SIZE = 96
EMBED_DIM = 192
TEXT_WIDTH = 128
CONTEXT_LENGTH = 36
VOCAB_SIZE = 640


def model_config(vocab_size: int) -> dict:
    """open_clip's own configuration of the demo CLIP (what open_clip_config.json holds)."""
    return {
        "model_cfg": {
            "embed_dim": EMBED_DIM,
            "vision_cfg": {"image_size": IMAGE_SIZE, "layers": [2, 2, 2, 1], "width": 16},
            "text_cfg": {
                "context_length": CONTEXT_LENGTH,
                "vocab_size": vocab_size,
                "hf_tokenizer_name": "local",  # open_clip reads it from the folder itself
                "width": TEXT_WIDTH,
                "heads": 4,
                "layers": 2,
            },
        },
        "preprocess_cfg": {
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
            "interpolation": "bicubic",
            "resize_mode": "squash",  # the whole frame, not its centre
        },
    }


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
CONFIG_FILE, WEIGHTS_FILE = "open_clip_config.json", "open_clip_model.safetensors"


def prepare_folder(out: Path, seed: int) -> None:
    """Write the tokenizer and open_clip_config.json of a CLIP that is still to be trained."""
    import numpy as np

    from revisionllm.demo.training.clip_data import plan_films, sample_frames
    from revisionllm.demo.training.tokenizers import train_clip_tokenizer
    from revisionllm.demo.world.language import FactIndex, event_query

    rng = np.random.default_rng([seed, 7])
    plans = plan_films(40, "train")
    corpus = [frame.caption + "." for frame in sample_frames(plans, 3000, rng)]
    for plan in plans:
        index = FactIndex(plan)
        queries = (event_query(index, fact, rng) for fact in plan.facts)
        corpus += [query.sentence for query in queries if query]
    out.mkdir(parents=True, exist_ok=True)
    vocab_size = train_clip_tokenizer(corpus, out, VOCAB_SIZE)
    (out / CONFIG_FILE).write_text(json.dumps(model_config(vocab_size), indent=2) + "\n")


def to_pixels(frames, config: dict):
    """Frames as the model sees them: float32 [N, 3, IMAGE_SIZE, IMAGE_SIZE], as at inference."""
    import numpy as np
    import torch
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resize

    images = torch.from_numpy(np.stack([frame.image for frame in frames])).permute(0, 3, 1, 2)
    pixels = resize(images, [IMAGE_SIZE] * 2, InterpolationMode.BICUBIC, antialias=True)
    mean, std = config["preprocess_cfg"]["mean"][0], config["preprocess_cfg"]["std"][0]
    return ((pixels / 255 - mean) / std).to(memory_format=torch.channels_last)


def pixels_of(frames, config: dict, chunk: int = 256):
    """`to_pixels` of so many frames at a time."""
    return (to_pixels(frames[i : i + chunk], config) for i in range(0, len(frames), chunk))


def accuracy(model, tokenizer, config: dict, frames) -> dict[str, float]:
    """Zero-shot accuracy of naming the place, and colour and shape, and of finding the own caption.

    Shot accuracy chooses among all places, attribute accuracy among all colour-shape pairs on
    frames with a single thing, caption accuracy among 32 random captions.
    """
    import torch

    from revisionllm.demo.world.language import WORDS
    from revisionllm.demo.world.plans import COLOURS, PLACES, SHAPES
    from revisionllm.model.clip import normalise_query

    pairs = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    model.eval()
    device = model.logit_scale.device
    with torch.inference_mode():

        def texts(sentences):
            normal = [normalise_query(sentence) for sentence in sentences]
            return model.encode_text(tokenizer(normal).to(device), normalize=True).cpu()

        images = image_features(model, config, frames, normalize=True)
        places = texts([f"nothing {WORDS[place][0]}" for place in PLACES])
        named = texts([f"a small {colour} {shape}" for colour, shape in pairs])
        captions = texts([frame.caption for frame in frames])
    place_hits = [
        PLACES[best] == frame.place
        for best, frame in zip((images @ places.T).argmax(1), frames, strict=True)
    ]
    lone = [i for i, frame in enumerate(frames) if len(frame.things) == 1]
    best_pairs = (images[lone] @ named.T).argmax(1)
    pair_hits = [
        pairs[best] == frames[i].things[0][1:3] for best, i in zip(best_pairs, lone, strict=True)
    ]
    caption_hits = [
        int((images[i : i + 32] @ captions[i : i + 32].T).argmax(1).eq(torch.arange(32)).sum())
        for i in range(0, len(frames) - 31, 32)
    ]
    return {
        "place": sum(place_hits) / len(place_hits),
        "colour_and_shape": sum(pair_hits) / max(1, len(pair_hits)),
        "own_caption_of_32": sum(caption_hits) / (32 * len(caption_hits)),
    }


def image_features(model, config: dict, frames, normalize: bool = False):
    """The model's features of frames, float32 [N, D] on the CPU."""
    import torch

    device = model.logit_scale.device
    parts = pixels_of(frames, config)
    return torch.cat([model.encode_image(x.to(device), normalize=normalize).cpu() for x in parts])


def attribute_targets(frames):
    """Tensors (shapes [N, 8, 6], poses [N, 8, 5]) of the frames; see `CaptionedFrame`."""
    import numpy as np
    import torch

    shapes = np.stack([frame.shapes for frame in frames])
    return torch.from_numpy(shapes), torch.from_numpy(np.stack([frame.poses for frame in frames]))


def training_frames(args: argparse.Namespace, plans, num_shots: int, rng):
    """Frames to learn from: tints that have no name among them, and traces of the codec."""
    from revisionllm.demo.training.clip_data import as_films_show, sample_frames

    frames = sample_frames(plans, num_shots, rng, args.mixed)
    return as_films_show(frames, args.decoded, rng)


class Batches:
    """Batch number `step` of the training: pixels, token ids and attributes, a function of (seed,
    step)."""

    def __init__(self, args: argparse.Namespace, config: dict, tokenizer, plans) -> None:
        self.args, self.config, self.tokenizer, self.plans = args, config, tokenizer, plans

    def __getitem__(self, step: int):
        import numpy as np

        from revisionllm.demo.training.clip_data import FRAMES_PER_SHOT
        from revisionllm.model.clip import normalise_query

        rng = np.random.default_rng([self.args.seed, 3, step])
        frames = training_frames(
            self.args, self.plans, self.args.batch_size // FRAMES_PER_SHOT, rng
        )
        ids = self.tokenizer([normalise_query(frame.caption) for frame in frames])
        return to_pixels(frames, self.config), ids, *attribute_targets(frames)


def closeups_first(args: argparse.Namespace, model, spots, films, config: dict) -> None:
    """Teach the first stages on close-ups of a pool of frames."""
    import numpy as np
    import torch

    from revisionllm.demo.training.clip_heads import train_closeups

    started = time.time()
    rng = np.random.default_rng([args.seed, 5])
    frames = training_frames(args, films, args.closeup_shots, rng)
    pool = (torch.cat(list(pixels_of(frames, config))), *attribute_targets(frames))
    log.info("%d frames for close-ups, %.0f s", len(frames), time.time() - started)
    options = {"lr": args.lr, "seed": args.seed, "bf16": args.bf16}
    train_closeups(model.visual, spots, pool, steps=args.closeup_steps, **options)


def train(args: argparse.Namespace) -> dict[str, float]:
    """Train and save to `args.out`; resumes from clip_state.pt there. Returns the accuracies on
    films of the test split."""
    import open_clip
    import torch
    from torch.nn import functional

    from revisionllm.demo.training.clip_data import plan_films
    from revisionllm.demo.training.clip_heads import AttributeReadout, SpotReadout
    from revisionllm.demo.training.film_features import num_workers
    from revisionllm.demo.training.loop import Loop
    from revisionllm.model.devices import choose_device

    torch.manual_seed(args.seed)
    prepare_folder(args.out, args.seed)
    config = json.loads((args.out / CONFIG_FILE).read_text())
    cfg = config["model_cfg"]
    model = open_clip.CLIP(cfg["embed_dim"], cfg["vision_cfg"], cfg["text_cfg"])
    model = model.to(memory_format=torch.channels_last)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{args.out}")
    device = choose_device(args.device)
    readout, spots = AttributeReadout(cfg["embed_dim"]), SpotReadout(model.visual)
    for part in (model, readout, spots):
        part.to(device)
    seen = {}
    model.visual.layer3.register_forward_hook(lambda _m, _i, output: seen.update(maps=output))
    films = plan_films(args.films, "train")
    loop = Loop(
        "clip",
        {"model": model, "readout": readout, "spots": spots},
        steps=args.steps,
        lr=args.lr,
        warmup=args.steps // 12,
        state_path=args.out / "clip_state.pt",
        save_every=args.save_every,
        bf16=args.bf16,
    )
    model.train()
    if not loop.resumed:
        closeups_first(args, model, spots, films, config)
        loop.save()
    batches = Batches(args, config, tokenizer, films)
    # workers draw frames while the model learns from the last ones, on a core of its own; spawned:
    # a forked child that uses FFmpeg after its parent's threads did waits for ever
    workers = max(1, num_workers() - 1) if args.workers is None else args.workers
    loader = torch.utils.data.DataLoader(
        batches,
        batch_size=None,
        num_workers=workers,
        sampler=range(loop.first_step, args.steps),
        multiprocessing_context="spawn" if workers else None,
    )
    for _, batch in zip(loop, loader, strict=True):
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6)
        pixels, ids, shapes, poses = (part.to(device) for part in batch)
        with loop.autocast():
            features = model.encode_image(pixels.to(memory_format=torch.channels_last))
            text = model.encode_text(ids, normalize=True)
        features, scale = features.float(), model.logit_scale.exp()
        logits = scale * functional.normalize(features, dim=-1) @ text.float().T
        target = torch.arange(len(ids), device=device)
        loss = functional.cross_entropy(logits, target)
        loss = (loss + functional.cross_entropy(logits.T, target)) / 2
        attribute_loss = readout.loss(features, shapes, poses)
        spot_loss = spots.of_pictures(seen["maps"], shapes, poses)
        right = int((logits.argmax(1) == target).sum())
        loop.take(
            loss + args.attribute_weight * (attribute_loss + spot_loss),
            {"shape": spots.right, "own_caption": (right, len(ids))},
            loss=loss,
            attributes=attribute_loss,
            spots=spot_loss,
        )
    return finish(args, model, readout, loop, config, tokenizer)


def finish(args: argparse.Namespace, model, readout, loop, config: dict, tokenizer) -> dict:
    """Judge the model on films of the test split, write it and its card; the scores."""
    import numpy as np
    import open_clip
    import torch
    from safetensors.torch import save_file

    from revisionllm.demo.training.clip_data import plan_films, sample_frames

    device = model.logit_scale.device
    held_out = sample_frames(plan_films(40, "test"), args.test_shots, np.random.default_rng(5))
    scores = accuracy(model, tokenizer, config, held_out)
    with torch.inference_mode():
        features = image_features(model, config, held_out)
        asked = (features, *attribute_targets(held_out))
        scores["read_out"] = readout.scores(*(part.to(device) for part in asked))
    scores["seconds"] = loop.spent_s
    state = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    with replacing(args.out / WEIGHTS_FILE) as temporary:
        save_file(state, temporary)
    card = {"args": {k: str(v) for k, v in vars(args).items()}, "test_films": scores}
    card["versions"] = {"torch": torch.__version__, "open_clip": open_clip.__version__}
    write_json(args.out / "training.json", card)
    log.info("held-out films: %s", scores)
    return scores


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        description=__doc__.split("\n")[0],
        ranges={"lr": Range(0, 1e9), "closeup_steps": COUNT_OR_NONE},
    )
    parser.add_argument(
        "--out", type=Path, default=Path("checkpoints/demo/clip"), help="folder to write"
    )
    parser.add_argument("--steps", type=int, default=1200, help="optimizer steps")
    parser.add_argument("--batch_size", type=int, default=256, help="frames per step")
    parser.add_argument("--films", type=int, default=300, help="training films of 15 minutes")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument(
        "--attribute_weight", type=float, default=1.0, help="of the attribute read-out in the loss"
    )
    parser.add_argument("--closeup_steps", type=int, default=4500, help="steps on close-ups first")
    parser.add_argument("--closeup_shots", type=int, default=4000, help="shots they come from")
    parser.add_argument(
        "--mixed", type=float, default=0.4, help="share of shots with tints between two colours"
    )
    parser.add_argument(
        "--decoded", type=float, default=0.5, help="share of frames as decoded from an mp4"
    )
    parser.add_argument("--test_shots", type=int, default=600, help="shots it is judged on")
    parser.add_argument(
        "--workers", type=int, help="processes that draw frames (one core less, at most 7); 0: none"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda ... (%(default)s)")
    parser.add_argument("--save_every", type=int, default=100, help="steps between states")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--bf16", action=argparse.BooleanOptionalAction, default=True, help="autocast"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns the exit code."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    return run_entry_point(lambda: train(args) and 0, "train_clip")


if __name__ == "__main__":
    raise SystemExit(main())
