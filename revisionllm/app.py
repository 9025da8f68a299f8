"""`revisionllm app`: a library in the browser. Type, see where, play, adjust, take the clip.

revisionllm app library
revisionllm app library --model my_model --port 7861

It answers on this machine alone, and nothing is sent anywhere. Gradio (optional: `pip install
gradio`) draws the page: https://www.gradio.app
"""

from __future__ import annotations

import argparse
import html
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revisionllm.errors import UserError, check_installed
from revisionllm.library.find import LibrarySearch, add_library_arguments, library_and_model

if TYPE_CHECKING:
    from revisionllm.library.markers import Mark

LONGEST_CLIP_S = 600.0
ADJUSTED_S = 30.0  # how far either end can be moved
STYLE = """
.films { display: grid; gap: 8px; margin: 0; padding: 0; list-style: none; }
.films .name { font-size: 13px; overflow-wrap: anywhere; }
.films .track { position: relative; height: 18px; border-radius: 4px;
  background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary); }
.films .mark { position: absolute; top: 0; bottom: 0; min-width: 3px; border-radius: 2px;
  background: var(--primary-600); }
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    add_library_arguments(parser)
    parser.add_argument("--port", type=int, default=7860, help="on 127.0.0.1 (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted; returns 0."""
    library, model = library_and_model(args)
    check_installed("the app is drawn by Gradio, which is not here", "gradio")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    searching = LibrarySearch(library, model, best_films=args.films, device=args.device)
    with tempfile.TemporaryDirectory(prefix="revisionllm-app-") as folder:
        page = build(searching, Path(folder))
        serve(page, args.port)
    return 0


def serve(page: Any, port: int, **options: Any) -> None:
    """Serve the page to this machine alone.

    Raises:
        UserError: the port is taken.
    """
    try:
        page.launch(
            server_name="127.0.0.1",
            server_port=port,
            share=False,
            **options,
        )
    except OSError as error:
        raise UserError(f"port {port} is taken; give another --port") from error


def build(searching: LibrarySearch, folder: Path) -> Any:
    """The page, a `gradio.Blocks`.

    Args:
        folder: where clips are written; below the temporary folder, or the page may not show them.
    """
    import gradio

    app = App(searching, folder)
    with gradio.Blocks(title="ReVisionLLM", analytics_enabled=False) as page:
        marks = gradio.State([])
        gradio.Markdown("# ReVisionLLM")
        with gradio.Row():
            with gradio.Column(scale=2):
                sentence = gradio.Textbox(
                    label="What happens?", placeholder="a dog jumps over a fence", autofocus=True
                )
                with gradio.Accordion("Films", open=False):
                    films = gradio.CheckboxGroup(
                        app.names, value=app.names, label="Search in", show_label=False
                    )
                    count = gradio.Slider(1, 20, value=5, step=1, label="Moments")
                find = gradio.Button("Find", variant="primary")
                told = gradio.Markdown(elem_id="told")
                moments = gradio.Radio([], label="Moments", interactive=True, visible=False)
                lanes = gradio.HTML(label="Timeline")
            with gradio.Column(scale=3):
                video = gradio.Video(label="The chosen moment", autoplay=True, interactive=False)
                with gradio.Group():
                    earlier = gradio.Slider(
                        -ADJUSTED_S, ADJUSTED_S, value=0, step=0.1, label="Start later by, seconds"
                    )
                    later = gradio.Slider(
                        -ADJUSTED_S, ADJUSTED_S, value=0, step=0.1, label="End later by, seconds"
                    )
                cut = gradio.Button("Cut the clip")
                clip = gradio.File(label="Clip", interactive=False)
        asked = [sentence, films, count]
        for event in (find.click, sentence.submit):
            event(app.find, asked, [marks, told, moments, lanes]).then(
                app.play, [marks, moments, earlier, later], [video, clip]
            )
        chosen = [marks, moments, earlier, later]
        moments.input(lambda: (0, 0), None, [earlier, later]).then(app.play, chosen, [video, clip])
        cut.click(app.cut, chosen, [video, clip])
    return page


class App:
    """What the page's controls do.

    Attributes:
        names: of the library's films, told apart where two have one name.
    """

    def __init__(self, searching: LibrarySearch, folder: Path) -> None:
        self.searching, self.folder = searching, folder
        films = searching.films
        twice = {film.vid for film in films if sum(f.vid == film.vid for f in films) > 1}
        self.names = [
            str(film.video_path) if film.vid in twice else film.video_path.name for film in films
        ]

    def find(self, sentence: str, films: Sequence[str], count: float) -> tuple:
        """Search; what the moments, the line above them and the timelines become."""
        import gradio

        from revisionllm.grounder import check_sentences
        from revisionllm.library.markers import marks_of

        try:
            check_sentences([sentence])
            chosen = [at for at, name in enumerate(self.names) if name in set(films)]
            if not chosen:
                raise UserError("choose a film to search in")
            (answers,) = self.searching.find([sentence], top_k=int(count), among=chosen)
        except UserError as error:
            raise gradio.Error(str(error), print_exception=False) from error
        is_found = any(answer.found for _, answer in answers)
        for _, answer in answers:
            answer.found = True  # candidates are shown, too
        marks = marks_of(answers, int(count))
        told = f"Found in {len({mark.film for mark in marks})} films." if is_found else ""
        told = told or "Not present" + ("; the best candidates:" if marks else ".")
        labels = [self.label(mark) for mark in marks]
        radio = gradio.Radio(labels, value=labels[0] if labels else None, visible=bool(labels))
        return marks, told, radio, timelines(self.searching, marks)

    def label(self, mark: Mark) -> str:
        """A moment as a choice."""
        from revisionllm.records.clock import clock

        span = f"{clock(mark.start_s, 1)} to {clock(mark.end_s, 1)}"
        return f"{mark.rank}. {mark.film.name}, {span}, score {mark.score:.2f}"

    def play(self, marks: list[Mark], label: str | None, start: float, end: float) -> tuple:
        """The chosen moment as a clip to play; no file to take yet."""
        place = self._clip(marks, label, start, end)
        return place, None

    def cut(self, marks: list[Mark], label: str | None, start: float, end: float) -> tuple:
        """The moment with its ends moved, to play and to take."""
        place = self._clip(marks, label, start, end)
        return place, place

    def _clip(self, marks: list[Mark], label: str | None, start: float, end: float) -> str | None:
        import gradio

        from revisionllm.library.clips import cut_clip
        from revisionllm.library.cut import clip_name

        mark = next((mark for mark in marks if self.label(mark) == label), None)
        if mark is None:
            return None
        first_s, end_s = max(0.0, mark.start_s + start), mark.end_s + end
        name = f"{clip_name(mark)}_{first_s:.1f}-{end_s:.1f}.mp4"
        try:
            if not 0 < end_s - first_s <= LONGEST_CLIP_S:
                raise UserError(f"a clip has more than 0 and at most {LONGEST_CLIP_S:g} seconds")
            place = self.folder / name
            if not place.exists():
                cut_clip(mark.film, first_s, end_s, place, reencode=True)
        except UserError as error:
            raise gradio.Error(str(error), print_exception=False) from error
        return str(place)


def timelines(searching: LibrarySearch, marks: Sequence[Mark]) -> str:
    """A bar per film with its moments, as HTML."""
    from revisionllm.records.clock import clock

    lengths = {film.video_path: film.duration_s for film in searching.films}
    rows = []
    for film in dict.fromkeys(mark.film for mark in marks):
        length_s = max(lengths[film], 1e-6)
        of_film = [mark for mark in marks if mark.film == film]
        spans = "".join(
            f'<i class="mark" style="left:{100 * mark.start_s / length_s:.3f}%;'
            f"width:{100 * (mark.end_s - mark.start_s) / length_s:.3f}%;"
            f'opacity:{0.35 + 0.65 * min(1.0, mark.score):.2f}"></i>'
            for mark in of_film
        )
        said = ", ".join(clock(mark.start_s) for mark in of_film)
        name = html.escape(f"{film.name}, {clock(length_s)}")
        rows.append(
            f'<li><span class="name">{name}</span><div class="track" role="img"'
            f' aria-label="{name}: moments at {said}">{spans}</div></li>'
        )
    return f'<style>{STYLE}</style><ul class="films">{"".join(rows)}</ul>' if rows else ""
