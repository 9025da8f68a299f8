"""CLIP text features of queries: token features and sentence feature of each, into one LMDB.

What the features are: `ClipFeatures.encode_texts`. The store appears when it is whole.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from revisionllm.data.feature_extraction.options import add_clip_arguments
from revisionllm.errors import UserError
from revisionllm.files import read_json
from revisionllm.formats.annotations import read_sentences, require_good

if TYPE_CHECKING:
    import numpy as np

    from revisionllm.model.clip import ClipFeatures


def add_text_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the text extractors besides their paths."""
    add_clip_arguments(parser)
    parser.add_argument(
        "--batch_size", type=int, default=256, help="sentences per pass (default: %(default)s)"
    )
    parser.add_argument(
        "--skip_bad",
        action="store_true",
        help="leave out queries that are empty, too long or otherwise bad; each is listed",
    )


def collect_sentences(paths: Sequence[Path], *, skip_bad: bool) -> dict[str, str]:
    """Query id -> sentence of several files.

    Raises:
        UserError: a file has problems (all listed) and `skip_bad` is off; or one id stands for
            different sentences.
    """
    found: dict[str, str] = {}
    problems: list[str] = []
    for path in paths:
        sentences, of_file = read_sentences(path)
        problems += [f"{path}: {problem}" for problem in of_file]
        problems += [
            f"{path}: query {query_id}: another sentence than in an earlier file"
            for query_id, sentence in sentences.items()
            if found.get(query_id, sentence) != sentence
        ]
        found = {**sentences, **found}
    require_good("annotations", problems, skip_bad=skip_bad)
    return found


def extract_texts(
    sentences: dict[str, str],
    out: str | Path,
    clip: ClipFeatures,
    *,
    batch_size: int,
    skip_bad: bool,
) -> str:
    """Write the features of all sentences; returns a line that says what was done.

    A store that holds them already, made by the same CLIP, is left as it is.

    Raises:
        UserError: `out` is something else; or a sentence is too long for the CLIP.
    """
    from revisionllm.data.stores.feature_writers import write_lmdb

    out = Path(out)
    long_ones = {
        query_id
        for query_id, sentence in sentences.items()
        if clip.num_tokens(sentence) > clip.context_length
    }
    problems = [
        f"query {query_id}: the sentence has more than {clip.context_length} tokens"
        for query_id in sorted(long_ones)
    ]
    require_good("annotations", problems, skip_bad=skip_bad)
    wanted = {key: text for key, text in sentences.items() if key not in long_ones}
    about = {"clip": clip.name, "clip_fingerprint": clip.fingerprint()}
    if out.exists():
        _check_existing(out, wanted, about)
        return f"already there: {out}, {len(wanted):,} queries"
    records = _records(wanted, clip, batch_size)
    count = write_lmdb(out, records, metadata={"extraction": about})
    return f"wrote {out}: {count:,} queries"


def _records(
    sentences: dict[str, str], clip: ClipFeatures, batch_size: int
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    from tqdm import tqdm

    keys = sorted(sentences)
    with tqdm(total=len(keys), desc="queries", unit="query", file=sys.stderr) as bar:
        for first in range(0, len(keys), batch_size):
            batch = keys[first : first + batch_size]
            tokens, whole = clip.encode_texts([sentences[key] for key in batch])
            for key, token_features, sentence in zip(batch, tokens, whole, strict=True):
                yield (
                    key,
                    {
                        "token_features": token_features.numpy(),
                        "cls_features": sentence.numpy(),
                    },
                )
            bar.update(len(batch))


def _check_existing(out: Path, wanted: dict[str, str], about: dict[str, str]) -> None:
    """Whether a store holds what is wanted (raises UserError)."""
    from revisionllm.data.stores.lmdb_records import LmdbRecords

    if not (out / "data.mdb").is_file():
        raise UserError(f"{out} exists and is no LMDB; move it away or choose another place")
    missing = set(wanted) - set(LmdbRecords(out).keys())
    path = out / "metadata.json"
    made = read_json(path, kind=dict).get("extraction") if path.is_file() else {}
    made = made if isinstance(made, dict) else {}
    same = made.get("clip_fingerprint", about["clip_fingerprint"]) == about["clip_fingerprint"]
    if missing or not same:
        why = f"lacks {len(missing):,} of the queries" if missing else "was made by another CLIP"
        raise UserError(f"{out} exists and {why}; move it away or choose another place")
