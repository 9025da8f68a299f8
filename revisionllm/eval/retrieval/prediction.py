"""Predicting as the released evaluation did, for comparison: its windows, decoding, spans, scores.

Behind `--convention released` of predict_windows.py and predict_segments.py; writes the released
logs (`predictions_streaming_<shard>.txt`), which the metric commands read with the same flag.
Answers are decoded freely (greedy, where the released evaluation sampled at temperature 0.05) and
one window at a time, so that entropies do not depend on batch companions. Not reproduced: the log's
`score_cos` of retrieval, which its metric scripts do not read.

Legend: F frames of a window, D feature dim, N visual tokens, H LLM width.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from revisionllm.errors import UserError
from revisionllm.files import lock_file
from revisionllm.grounding import released as arithmetic
from revisionllm.grounding.answers import parse_first_integer, parse_released_span
from revisionllm.grounding.scores import TOP_FRAMES
from revisionllm.records.films import Film, Query

if TYPE_CHECKING:
    from torch import Tensor

    from revisionllm.model.llama import GroundingModel

MAX_NEW_TOKENS = 16
ZOOMS = (4, 2, 1)
RETRIEVAL_HOPS = 5  # segments start every fifth of a window

Shuffle = Callable[[int], Sequence[int]]


@dataclass(frozen=True)
class FreeAnswer:
    """A freely decoded answer and the entropy of its raw logits over steps (nats)."""

    text: str
    mean_entropy: float
    max_entropy: float


def decode_freely(model: GroundingModel, visual_NH: Tensor, sentence: str) -> FreeAnswer:
    """Greedy answer about visual tokens, without a grammar."""
    import torch
    from transformers import GenerationConfig

    before, after = model.prompt_pieces(model.question(sentence))
    embed = model.llm.get_input_embeddings()
    front, back = (embed(torch.tensor(ids, device=model.device)) for ids in (before, after))
    embeds = torch.cat([front, visual_NH.to(front), back])[None]
    with torch.inference_mode():
        result = model.llm.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long, device=model.device),
            generation_config=GenerationConfig(
                max_new_tokens=MAX_NEW_TOKENS,
                do_sample=False,
                eos_token_id=model.tokenizer.eos_token_id,
                pad_token_id=model.tokenizer.pad_token_id,
                return_dict_in_generate=True,
                output_logits=True,
            ),
        )
    logits = torch.stack(result.logits, 1).float().cpu().numpy()
    most, _, mean, _ = arithmetic.released_entropy_stats(logits)[0]
    text = model.tokenizer.decode(result.sequences[0], skip_special_tokens=True).strip()
    return FreeAnswer(text, float(mean), float(most))


def dense_log(
    model: GroundingModel,
    film: Film,
    query: Query,
    *,
    score_merge: str = "add",
    score_kind: str = "mean_entropy",
    top_frames: int = TOP_FRAMES,
    normalise: bool = True,
) -> dict[str, Any]:
    """The released log line of a query's dense windows.

    Args:
        score_merge: "add" (cosine - entropy) or "multiply" (cosine / entropy).
        score_kind: mean_entropy or max_entropy of the answer, merged with the cosine; cosine_sim:
            the cosine alone (chapters).
        top_frames: best frames of the span that its cosine is summed over; 0: all of them.
        normalise: divide cosines and entropies by their maximum first.

    Raises:
        UserError: the query has no sentence feature.
    """
    import torch

    if query.feature is None:
        raise UserError(f"query {query.qid}: released scores need its sentence feature")
    config, length = model.config, len(film.features)
    frames_per_window = config.frames_per_window
    table = arithmetic.released_window_table(
        length, window_s=config.window_s, feature_fps=film.feature_fps
    )
    num_film_frames = int(film.duration_s * frames_per_window / config.window_s)
    truth = np.array(query.gt[0]) / film.duration_s
    answers, ious, cosines, entropies = [], [], [], []
    for index, (first, last) in enumerate(table.tolist()):
        rows = film.features[arithmetic.released_indices(first, last, frames_per_window, length)]
        frames = torch.from_numpy(np.asarray(rows, dtype=np.float32))[None].to(model.device)
        with torch.inference_mode():
            visual = model.embed_frames(frames)[0]
        answer = decode_freely(model, visual, query.sentence)
        answers.append(answer.text)
        span = parse_released_span(answer.text)
        placed = span and arithmetic.released_film_span(
            *span, index, frames_per_window=frames_per_window, num_film_frames=num_film_frames
        )
        if placed:
            ious.append(released_iou(placed, truth))
            count = top_frames or len(rows)
            cosines.append(arithmetic.released_span_cosine(rows, *span, query.feature, count))
            is_max = score_kind == "max_entropy"
            entropies.append(answer.max_entropy if is_max else answer.mean_entropy)
    if normalise:
        cosines, entropies = (
            arithmetic.normalise_by_max(cosines),
            arithmetic.normalise_by_max(entropies),
        )
    if score_kind == "cosine_sim":
        merged = np.asarray(cosines, np.float64).tolist()
    else:
        merged = arithmetic.merge_scores(cosines, entropies, score_merge).tolist()
    return _log(film, query, answers, {"iou": ious, "scores": merged})


def released_iou(span: Sequence[float], truth: Sequence[float]) -> float:
    """Intersection over union, rounded to 2 decimals; reversed spans give 0."""
    shared = min(span[1], truth[1]) - max(span[0], truth[0])
    union = max(span[1], truth[1]) - min(span[0], truth[0])
    return round(float(max(0.0, shared) / union), 2) if union > 0 else 0.0


def retrieval_log(
    model: GroundingModel,
    film: Film,
    query: Query,
    *,
    num_segments: int,
    zooms: Sequence[int] = ZOOMS,
    shuffle: Shuffle,
) -> dict[str, Any]:
    """The released log line of a query's retrieval.

    Args:
        num_segments: positions of a question: 100 or 33.
        shuffle: `shuffle(n)` gives the order in which the next question shows its n segments.

    Raises:
        UserError: the query has no word features.
    """
    if query.words is None:
        raise UserError(f"query {query.qid}: segments need its word features")
    config, length = model.config, len(film.features)
    table = arithmetic.released_window_table(
        length,
        window_s=config.window_s,
        feature_fps=film.feature_fps,
        hops_per_window=RETRIEVAL_HOPS,
        shift_tail=True,
    )
    tokens = _segment_tokens(model, film, query, table)
    answers, frames, means, mosts, asked_zooms = [], {}, [], [], []
    for zoom, start, count in retrieval_batches(len(table), num_segments, zooms):
        order = list(shuffle(count))
        shown = tokens[[start + position for position in order]].repeat_interleave(zoom, 0)
        answer = decode_freely(model, shown, query.sentence)
        found = arithmetic.released_retrieved_segments(
            parse_first_integer(answer.text),
            zoom=zoom,
            shuffle=order,
            batch_start=start,
            segment_ids=range(len(table)),
            batch_size=num_segments,
        )
        if found is not None:
            frames[str(len(answers))] = list(found)
        answers.append(answer.text)
        means.append(1 / answer.mean_entropy)
        mosts.append(1 / answer.max_entropy)
        asked_zooms.append(zoom)
    truth = arithmetic.released_truth_segments(*query.gt[0], len(table))
    hit = any(first <= number <= last for first, last in frames.values() for number in truth)
    info = {"gt": truth, "frames": frames, "iou": [int(hit)], "mean_entropy": means}
    info |= {"max_entropy": mosts, "hierarchy_zooms": asked_zooms}
    return _log(film, query, answers, info)


def retrieval_batches(
    num_windows: int, num_segments: int, zooms: Sequence[int]
) -> list[tuple[int, int, int]]:
    """(zoom, first segment, number of segments) of each question; the last one is shifted back.

    Of a film with n segments that does not fill a batch of c, the last 2n - c are shown, as
    released; of one that does not fill half of it, where the released code shows nothing sane, all.
    """
    batches = []
    for zoom in zooms:
        count = min(num_segments // zoom, num_windows)
        wanted = num_segments // zoom
        if wanted / 2 < num_windows < wanted:
            # released: a film that does not fill a batch loses as many windows at its beginning
            batches.append((zoom, wanted - num_windows, 2 * num_windows - wanted))
            continue
        for number in range(math.ceil(num_windows / count) if count else 0):
            batches.append((zoom, min(number * count, num_windows - count), count))
    return batches


def _segment_tokens(model: GroundingModel, film: Film, query: Query, table: np.ndarray) -> Tensor:
    """Every segment's token [N, H], each encoded once; the released code encodes it every time."""
    import torch

    words = torch.from_numpy(query.rows_for(model.config))[None].to(model.device)
    tokens = []
    for first, last in table.tolist():
        rows = arithmetic.released_indices(
            first, last, model.config.frames_per_window, len(film.features)
        )
        frames = torch.from_numpy(np.asarray(film.features[rows], dtype=np.float32))[None]
        with torch.inference_mode():
            tokens.append(model.embed_frames(frames.to(model.device), words, output="segment")[0])
    return torch.cat(tokens)


def _log(film: Film, query: Query, answers: list[str], info: dict) -> dict[str, Any]:
    return {
        "video_id": film.vid,
        "task": "grounding",
        "query_id": query.qid,
        "answer": answers,
        "info": info,
    }


def seeded_shuffle(seed: int, qid: str) -> Shuffle:
    """Random orders that depend on the seed and the query alone (released: unseeded)."""
    rng = np.random.default_rng([seed, *qid.encode()])
    return lambda count: rng.permutation(count).tolist()


def predict_released(args, stage: str, make_log: Callable[..., dict[str, Any]]) -> Path:
    """Write the released log of one shard, going on where it stopped.

    Args:
        args: flags of a predicting command.
        make_log: `make_log(model, film, query)` gives a log line.

    Returns:
        the log file.

    Raises:
        UserError: something is missing; unlike in our convention, any failure stops the run.
    """
    from tqdm import tqdm

    from revisionllm.data.stores.feature_store import open_features
    from revisionllm.eval.made_with import check_same, made_with, write_made_with
    from revisionllm.eval.prediction_run import (
        FeatureSource,
        annotations_of,
        load_run,
        output_folder,
    )
    from revisionllm.formats.annotations import by_film
    from revisionllm.formats.released_log import read_logs
    from revisionllm.records.predictions import cut_torn_line

    shard, count = args.shard or 0, args.num_shards or 1
    annotations = annotations_of(args)
    films = by_film(annotations[: args.limit])[shard::count]
    made = made_with(args)
    folder = output_folder(args, f"{stage}_released")
    path = folder / f"predictions_streaming_{shard}.txt"
    check_same(folder, made, has_answers=path.is_file() and path.stat().st_size > 0)
    model = load_run(args)
    source = FeatureSource(
        open_features(args.features), model.config, args, model.config.adapter.kind == "clip"
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_made_with(folder, made, args.data_path)
    with path.open("a", encoding="utf-8") as file:
        lock_file(file, f"writes {path}")
        if cut_torn_line(path):
            print(f"{path}: dropped a torn last line", file=sys.stderr)
        done = {row.query_id for row in read_logs([path])[0]}
        others = done - {annotation.query_id for annotation in annotations}
        if others:
            raise UserError(f"{path} answers queries of other annotations: {sorted(others)[:3]}")
        todo = [(vid, a) for vid, asked in films for a in asked if a.query_id not in done]
        film, skipped = None, {}
        for vid, annotation in tqdm(todo, unit="query"):
            if film is None or film.vid != vid:
                film = source.film(vid, annotation.duration_s)
            if len(film.features) < model.config.window_s * film.feature_fps:
                skipped[vid] = skipped.get(vid, 0) + 1
                continue
            line = make_log(model, film, source.query(annotation))
            file.write(json.dumps(line, allow_nan=False) + "\n")
            file.flush()
    for vid, count in skipped.items():  # as the released loop does
        print(f"{vid} is shorter than a window: {count} queries are skipped", file=sys.stderr)
    return path
