"""HTML of the timeline rows and of the cards; every text that comes from outside is escaped here.

Elements that play something carry `data-query`, `data-start-s`, `data-end-s` and, where the film is
not to start at the span's first second, `data-at-s`: `assets/page.js` needs nothing else.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from revisionllm.records.clock import clock
from revisionllm.viewer import facts, thumbnails
from revisionllm.viewer.axis import ticks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from revisionllm.grounding.levels import Moment
    from revisionllm.records.predictions import Prediction

_FAINTEST = 0.35  # opacity of a mark with score 0: still visible


def overview(predictions: Sequence[Prediction], duration_s: float) -> str:
    """The timeline: one axis and one row per sentence, every span on it."""
    if not predictions:
        return '<p class="empty">No sentence was asked of this film.</p>'
    rows = [_row(query, prediction, duration_s) for query, prediction in enumerate(predictions)]
    return "\n".join([_axis(duration_s), '<ol class="lanes">', *rows, "</ol>"])


def legend(predictions: Sequence[Prediction]) -> str:
    """Only what occurs on this page is explained."""
    entries = [
        ("predicted", "predicted (stronger: higher score)", any(p.moments for p in predictions)),
        ("candidate", "candidate of a sentence judged not present", any(_rejected(predictions))),
        ("truth", "true span", any(p.gt for p in predictions)),
        ("searched", "windows visited", any(p.windows for p in predictions)),
    ]
    return "".join(
        f'<li><i class="key {name}"></i>{text}</li>' for name, text, occurs in entries if occurs
    )


def cards(
    predictions: Sequence[Prediction], frames: Mapping[float, str], num_windows: int | None
) -> str:
    """One card per sentence: verdict, cost, frames of its best moments, all others as text."""
    return "\n".join(
        _card(query, prediction, frames, num_windows)
        for query, prediction in enumerate(predictions)
    )


def _rejected(predictions: Sequence[Prediction]) -> list[bool]:
    return [bool(p.moments) and not p.found for p in predictions]


def _axis(duration_s: float) -> str:
    labels = [
        f'<span class="tick {width}" style="--at:{_percent(tick_s, duration_s)}">'
        f"{clock(tick_s)}</span>"
        for width, max_ticks in (("wide", 13), ("narrow", 5))  # the style shows one of the two
        for tick_s in ticks(duration_s, max_ticks)
    ]
    return f'<div class="axis-row"><span></span><div class="axis">{"".join(labels)}</div></div>'


def _row(query: int, prediction: Prediction, duration_s: float) -> str:
    sentence = escape(facts.sentence(prediction))
    verdict = facts.verdict(prediction)
    summary = escape(verdict.text)
    lane = [_band("grid-line", tick_s, tick_s, duration_s) for tick_s in ticks(duration_s)[1:]]
    lane += [
        _band("searched", *span, duration_s)
        for span in facts.searched_spans(prediction, duration_s)
    ]
    lane += _marks(query, prediction, duration_s)
    return (
        f'<li class="row" data-query="{query}">'
        f'<button type="button" class="label" title="{sentence}: {summary}">'
        f'<i class="dot {verdict.kind}"></i><span class="text">{sentence}</span>'
        f'<span class="result">{verdict.short}</span></button>'
        f'<div class="lane" role="group" aria-label="{sentence}: {summary}">{"".join(lane)}</div>'
        "</li>"
    )


def _band(kind: str, start_s: float, end_s: float, duration_s: float) -> str:
    width = f";width:{_percent(end_s - start_s, duration_s)}" if end_s > start_s else ""
    return f'<i class="{kind}" style="left:{_percent(start_s, duration_s)}{width}"></i>'


def _marks(query: int, prediction: Prediction, duration_s: float) -> list[str]:
    """Buttons on the lane; the first one of a row is its tab stop, arrow keys reach the others."""
    top_score = max((moment.score for moment in prediction.moments), default=1.0)
    described = []
    for rank, moment in enumerate(prediction.moments):
        kinds = "span" + ("" if prediction.found else " candidate") + (" best" if not rank else "")
        strength = _FAINTEST + (1 - _FAINTEST) * facts.shade(moment.score, top_score)
        described.append(
            (kinds, moment.start_s, moment.end_s, _moment_text(rank, moment), strength)
        )
    for start_s, end_s in prediction.gt or ():
        text = f"True span: {facts.span_text(start_s, end_s)}"
        described.append(("span truth", start_s, end_s, text, 1.0))
    return [
        f'<button type="button" class="{kinds}" tabindex="{-1 if index else 0}" '
        f'style="left:{_percent(start_s, duration_s)};'
        f'width:{_percent(min(end_s, duration_s) - start_s, duration_s)};--shade:{strength:.2f}" '
        f'title="{text}" aria-label="{text}" {_played(query, start_s, end_s)}></button>'
        for index, (kinds, start_s, end_s, text, strength) in enumerate(described)
    ]


def _moment_text(rank: int, moment: Moment) -> str:
    parts = "".join(f", {escape(name)} {value:.2f}" for name, value in moment.parts.items())
    span = facts.span_text(moment.start_s, moment.end_s)
    return f"Moment {rank + 1}: {span}, score {moment.score:.2f}{parts}"


def _card(
    query: int, prediction: Prediction, frames: Mapping[float, str], num_windows: int | None
) -> str:
    verdict = facts.verdict(prediction)
    truth = ""
    if verdict.truth:
        kind = "right" if verdict.right else "wrong"
        truth = f'<span class="{kind}">{escape(verdict.truth)}</span>'
    return (
        f'<article class="card" id="card-{query}">\n'
        f'<h3><span class="number">{query + 1}</span>'
        f"{escape(facts.sentence(prediction))}</h3>\n"
        f'<p class="verdict"><span class="badge {verdict.kind}">{escape(verdict.text)}</span>'
        f"{truth}</p>\n"
        f'<p class="cost">{facts.cost_text(prediction, num_windows)}</p>\n'
        f"{_strip(query, prediction, frames)}{_others(query, prediction)}</article>"
    )


def _strip(query: int, prediction: Prediction, frames: Mapping[float, str]) -> str:
    """Frames and times of the best moments, then of the true spans."""
    items = []
    for rank, moment in enumerate(prediction.moments[: thumbnails.SHOWN_MOMENTS]):
        span = (moment.start_s, moment.end_s)
        pictures = _frames(query, span, thumbnails.moment_times(moment, rank), frames)
        items.append(f"<li>{pictures}{_line(query, rank, moment)}</li>")
    for start_s, end_s in prediction.gt or ():
        span = (start_s, end_s)
        pictures = _frames(query, span, (thumbnails.truth_time(start_s, end_s),), frames)
        items.append(
            f'<li>{pictures}<button type="button" class="moment truth" '
            f"{_played(query, start_s, end_s)}>True "
            f"<small>{clock(start_s, 1)}</small></button></li>"
        )
    return f'<ul class="strip">{"".join(items)}</ul>\n' if items else ""


def _frames(
    query: int, span: tuple[float, float], times: Sequence[float], frames: Mapping[float, str]
) -> str:
    pictures = "".join(
        f'<button type="button" class="frame" aria-label="Play from {clock(time_s, 1)}" '
        f'title="Play from {clock(time_s, 1)}" {_played(query, *span)} data-at-s="{time_s:.3f}">'
        f'<img src="{escape(frames[time_s])}" alt=""></button>'
        for time_s in times
        if time_s in frames
    )
    return f'<div class="frames">{pictures}</div>' if pictures else ""


def _line(query: int, rank: int, moment: Moment) -> str:
    """A moment as text: the best one with both ends, the others, which are narrow, by the start."""
    span = clock(moment.start_s, 1) if rank else facts.span_text(moment.start_s, moment.end_s)
    return (
        f'<button type="button" class="moment" title="{_moment_text(rank, moment)}" '
        f"{_played(query, moment.start_s, moment.end_s)}>{span} "
        f"<small>{moment.score:.2f}</small></button>"
    )


def _others(query: int, prediction: Prediction) -> str:
    others = list(enumerate(prediction.moments))[thumbnails.SHOWN_MOMENTS :]
    if not others:
        return ""
    lines = "".join(f"<li>{_line(query, rank, moment)}</li>" for rank, moment in others)
    return f"<details><summary>{len(others)} more</summary><ul>{lines}</ul></details>"


def _played(query: int, start_s: float, end_s: float) -> str:
    return f'data-query="{query}" data-start-s="{start_s:.3f}" data-end-s="{end_s:.3f}"'


def _percent(seconds: float, duration_s: float) -> str:
    return f"{min(100.0, max(0.0, 100 * seconds / duration_s)):.4f}%"
