"""One self-contained HTML file that shows where the sentences were found in a film.

The page opens from disk and asks nothing of the network: style, script and frames are inside; only
the film stays a file, named by a path relative to the page. Its content security policy allows the
one script it was written with and no other, so a sentence cannot run code even if an escape failed.

    write_view("out/view.html", video_path="out/film.mp4", duration_s=3600.0, predictions=found)
"""

from __future__ import annotations

import base64
import hashlib
import os
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING
from urllib.parse import quote

from revisionllm.files import MADE_BY, write_text
from revisionllm.records.clock import clock
from revisionllm.viewer import facts, markup
from revisionllm.viewer.thumbnails import film_thumbnails

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from revisionllm.records.predictions import Prediction


def write_view(
    path: str | Path,
    *,
    video_path: str | Path | None,
    duration_s: float,
    predictions: Sequence[Prediction],
    thumbnails: Mapping[float, str] | None = None,
    title: str = "ReVisionLLM",
    num_windows: int | None = None,
) -> None:
    """Write the page; the same input gives the same bytes.

    Args:
        path: the HTML file.
        video_path: the film, best in the same folder; None where there is none (features only).
        duration_s: length of the film in seconds, > 0.
        predictions: the sentences of this film, in the order to show them.
        thumbnails: JPEG data URI by second of the film (`thumbnails.film_thumbnails`). None takes
            them from the film; an empty mapping shows none.
        title: heading of the page.
        num_windows: how many dense windows cover the film, to compare the visited ones with.

    Raises:
        ValueError: see `facts.check_film`.
        UserError: the film cannot be decoded, or the page cannot be written.
    """
    path = Path(path)
    facts.check_film(duration_s, predictions)
    if thumbnails is None:
        thumbnails = (
            film_thumbnails(Path(video_path), predictions, duration_s) if video_path else {}
        )
    script = "\n" + _asset("page.js")
    page = Template(_asset("page.html")).substitute(
        made_by=MADE_BY,
        policy=_policy(script),
        title=escape(facts.one_line(title)),
        style=_asset("page.css"),
        script=script,
        duration_s=f"{duration_s:.3f}",
        facts=escape(facts.one_line(_summary(video_path, duration_s, predictions, num_windows))),
        legend=markup.legend(predictions),
        overview=markup.overview(predictions, duration_s),
        player=_player(video_path, path),
        cards=markup.cards(predictions, thumbnails, num_windows),
    )
    write_text(path, page)


def _asset(name: str) -> str:
    return resources.files("revisionllm.viewer").joinpath("assets", name).read_text("utf-8")


def _policy(script: str) -> str:
    """Content security policy: no requests; the page's own script, known by its hash, and no other.

    `media-src` stays open: what 'self' means for a page opened from disk differs between browsers.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return (
        f"script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "connect-src 'none'; font-src 'none'; frame-src 'none'; object-src 'none'; "
        "base-uri 'none'; form-action 'none'"
    )


def _summary(
    video_path: str | Path | None,
    duration_s: float,
    predictions: Sequence[Prediction],
    num_windows: int | None,
) -> str:
    """One line under the title: film, length, how many found, how much of the film was visited."""
    num_found = sum(p.status == "ok" and p.found for p in predictions)
    num_failed = sum(p.status != "ok" for p in predictions)
    counts = f"{num_found} found, {len(predictions) - num_found - num_failed} not present"
    counts += f", {num_failed} failed" if num_failed else ""
    name = Path(video_path).name if video_path else "".join({p.vid for p in predictions})
    sentences = "1 sentence" if len(predictions) == 1 else f"{len(predictions)} sentences"
    parts = [name, clock(duration_s), f"{sentences}: {counts}"]
    if num_windows and predictions:
        visited = sum(p.cost.dense_windows for p in predictions) / len(predictions)
        share = 100 * visited / num_windows
        parts.append(f"{visited:.1f} of {num_windows} windows visited per sentence ({share:.0f}%)")
    return " \N{MIDDLE DOT} ".join(part for part in parts if part)


def _player(video_path: str | Path | None, page_path: Path) -> str:
    """The film, or, where it is missing, what to do about it."""
    source, hidden = "", ""
    hint = "This page was written without a film file. To play the moments, choose it here:"
    if video_path is not None:
        relative = Path(os.path.relpath(video_path, page_path.parent)).as_posix()
        source = f' src="{escape(quote(os.fsencode(relative)))}"'  # bytes: names need not be UTF-8
        hidden = " hidden"
        hint = (
            "The film was not found, or this browser cannot play it. This page looks for "
            f"<code>{escape(facts.one_line(relative))}</code>, from its own folder. Put the film "
            "there and reload, or choose it here. If it is there, the browser lacks its codec: "
            "mp4 with H.264 plays in all common ones."
        )
    return (
        f'<p class="hint" role="status"{hidden}>{hint}</p>\n'
        f'<p class="pick"{hidden}><input type="file" accept="video/*" '
        'aria-label="Choose the film file"></p>\n'
        f'<video class="film" controls preload="metadata" aria-label="The film"{source}></video>\n'
        "<noscript>Playing, zooming and the arrow keys need JavaScript.</noscript>"
    )
