"""Test films with sentences and features, for measurements that need many films but no video files.

Features come straight from the renderer (`film_features`) and are kept in a cache folder that is
named after the CLIP.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from revisionllm.data.stores.feature_writers import save_npy
from revisionllm.records.films import Film, Query

SEED_STEP = 3  # from one film of a set to the next; any number would do


def judged_film(
    number: int,
    minutes: float,
    clip,
    cache: Path,
    *,
    num_present: int,
    num_absent: int,
    first_seed: int,
    split: str = "test",
    all_features: bool = False,
) -> tuple[Film, list[Query]]:
    """Film number `number` of a set, and its queries; absent ones have `gt` [].

    Args:
        all_features: five features a second; otherwise only those that windows look at.

    Raises:
        ValueError: the film has too few events for so many sentences.
    """
    from revisionllm.demo.films import film_sentences
    from revisionllm.demo.training.film_features import FIRST_FRAME, film_features, rows_of_windows
    from revisionllm.demo.world.plans import WORLD_VERSION, plan_film

    seed, duration_s = first_seed + SEED_STEP * number, minutes * 60
    kind = "all" if all_features else f"from{FIRST_FRAME}"
    made_by = f"{clip.fingerprint()}-w{WORLD_VERSION}"
    path = cache / f"{made_by}-{duration_s:g}s-{split}-{seed}-{kind}.npy"
    if not path.exists():
        which = {"first": 0, "step": 1} if all_features else {"first": FIRST_FRAME}
        cache.mkdir(parents=True, exist_ok=True)
        save_npy(path, film_features(seed, duration_s, split, clip, **which))
    features = np.load(path, allow_pickle=False)
    rows = features if all_features else rows_of_windows(features, duration_s)
    rows = rows.astype(np.float32)
    plan = plan_film(seed, duration_s, split)
    asked = film_sentences(plan, num_present, num_absent)
    words, features = clip.encode_texts([a.sentence for a in asked])
    queries = [
        Query(a.query_id, a.sentence, [a.span_s] if a.span_s else [], np.asarray(word), feature)
        for a, word, feature in zip(asked, words, features.numpy(), strict=True)
    ]
    return Film(plan.film_id, rows, len(rows) / duration_s, duration_s, plan.film_id), queries
