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
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from markupsafe import Markup

from revisionllm.files import MADE_BY, html_template, write_text
from revisionllm.records.clock import clock
from revisionllm.viewer import facts
from revisionllm.viewer import thumbnails as thumbnails_of
from revisionllm.viewer.axis import ticks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from revisionllm.grounding.levels import Moment
    from revisionllm.records.predictions import Prediction

FAINTEST = 0.35  # opacity of a mark with score 0: still visible


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
            thumbnails_of.film_thumbnails(Path(video_path), predictions, duration_s)
            if video_path
            else {}
        )
    script = "\n" + asset("page.js")
    film = film_url = None
    if video_path is not None:
        film_url = Path(os.path.relpath(video_path, path.parent)).as_posix()
        film = facts.one_line(film_url)
        film_url = quote(os.fsencode(film_url))  # bytes: names need not be UTF-8
    page = html_template("revisionllm.viewer", "page.html").render(
        facts=facts,
        clock=clock,
        ticks=ticks,
        strength=_strength,
        shown_moments=thumbnails_of.SHOWN_MOMENTS,
        moment_times=thumbnails_of.moment_times,
        truth_time=thumbnails_of.truth_time,
        made_by=MADE_BY,
        policy=policy(script),
        title=facts.one_line(title),
        style=Markup(asset("page.css")),
        script=Markup(script),
        duration_s=duration_s,
        percent=lambda seconds: f"{min(100.0, max(0.0, 100 * seconds / duration_s)):.4f}%",
        summary=facts.one_line(_summary(video_path, duration_s, predictions, num_windows)),
        predictions=predictions,
        legend=_legend(predictions),
        thumbnails=thumbnails,
        num_windows=num_windows,
        film=film,
        film_url=film_url,
    )
    write_text(path, page)


def _strength(prediction: Prediction, moment: Moment) -> float:
    """Opacity of a moment's mark."""
    top_score = max(m.score for m in prediction.moments)
    return FAINTEST + (1 - FAINTEST) * facts.shade(moment.score, top_score)


def _legend(predictions: Sequence[Prediction]) -> list[tuple[str, str, bool]]:
    """Name and text of each kind of mark, and whether it occurs on this page."""
    rejected = any(p.moments and not p.found for p in predictions)
    return [
        ("predicted", "predicted (stronger: higher score)", any(p.moments for p in predictions)),
        ("candidate", "candidate of a sentence judged not present", rejected),
        ("truth", "true span", any(p.gt for p in predictions)),
        ("searched", "windows visited", any(p.windows for p in predictions)),
    ]


def asset(name: str) -> str:
    """A file of the viewer's assets, as text."""
    return resources.files("revisionllm.viewer").joinpath("assets", name).read_text("utf-8")


def policy(script: str) -> str:
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
