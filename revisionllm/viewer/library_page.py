"""One self-contained HTML file with what was found in many films.

Each moment is a link to its second of its film; a script plays it beside the list. As of `page`,
nothing is asked of the network, and no script but the page's own runs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from markupsafe import Markup

from revisionllm.files import MADE_BY, html_template, write_text
from revisionllm.viewer import facts
from revisionllm.viewer.page import asset, policy
from revisionllm.viewer.thumbnails import jpeg_data_uri, moment_times, picture_size

if TYPE_CHECKING:
    from revisionllm.grounding.levels import Moment
    from revisionllm.records.predictions import Prediction


@dataclass(frozen=True)
class Hit:
    """A moment as the page shows it."""

    film: str
    url: str
    start_s: float
    end_s: float
    span: str
    score: float
    picture: str | None


def write_library_view(
    path: str | Path,
    answers: Sequence[Sequence[tuple[Path, Prediction]]],
    *,
    num_films: int,
    title: str = "ReVisionLLM",
) -> None:
    """Write the page; the same input gives the same bytes.

    Args:
        path: the HTML file.
        answers: per sentence its films and what was found in each.
        num_films: of the library.

    Raises:
        UserError: the page cannot be written. A film that has gone has no picture.
    """
    path = Path(path)
    shown = []
    for row in answers:
        moments = [(moment, film) for film, answer in row for moment in answer.moments]
        moments.sort(key=lambda pair: -pair[0].score)
        found = any(answer.found for _, answer in row)
        hits = [_hit(moment, film, path.parent) for moment, film in moments]
        shown.append((facts.one_line(row[0][1].query), found, hits))
    count = sum(found for _, found, _ in shown)
    sentences = "1 sentence" if len(shown) == 1 else f"{len(shown)} sentences"
    films = "1 film" if num_films == 1 else f"{num_films} films"
    script = "\n" + asset("library.js")
    page = html_template("revisionllm.viewer", "library.html").render(
        made_by=MADE_BY,
        policy=policy(script),
        title=facts.one_line(title),
        style=Markup(asset("page.css") + asset("library.css")),
        script=Markup(script),
        summary=f"{films} \N{MIDDLE DOT} {sentences}: {count} found",
        answers=shown,
    )
    write_text(path, page)


def _hit(moment: Moment, film: Path, folder: Path) -> Hit:
    place = quote(os.fsencode(Path(os.path.relpath(film, folder)).as_posix()))
    return Hit(
        film=facts.one_line(film.name),
        url=f"{place}#t={moment.start_s:.3f},{moment.end_s:.3f}",
        start_s=moment.start_s,
        end_s=moment.end_s,
        span=facts.span_text(moment.start_s, moment.end_s),
        score=moment.score,
        picture=_picture(moment, film),
    )


def _picture(moment: Moment, film: Path) -> str | None:
    from revisionllm.data.video import encode_jpeg, read_frame
    from revisionllm.errors import UserError

    (middle_s,) = moment_times(moment, 1)
    try:
        return jpeg_data_uri(encode_jpeg(read_frame(film, middle_s, size=picture_size(film))))
    except UserError:
        return None
