"""What each level above a grounder is worth: recall against the windows that it is asked about.

    python revisionllm/demo/oracle_benchmark.py --plot docs/budget.png

The grounder is an oracle: it knows a demo film's truth, and is wrong in one window of ten, by a
seed. It is asked through `Grounder.ground` like any other. Films of three hours; sentences that are
shown (what frames answer), events (what they hardly do), and quotes and paraphrases of what is
said.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # started by path: import from the repository, not from here
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np

from revisionllm.engine import EngineCost
from revisionllm.errors import run_entry_point
from revisionllm.grounding.levels import Level, Question, SpanCandidate, WindowAnswer
from revisionllm.grounding.windows import Window
from revisionllm.options import Parser
from revisionllm.records.films import Film, Query

MINUTES, SEEDS, COUNT = 180.0, range(970, 980), 10
BUDGETS = (5, 10, 20, 45, 90)
KINDS = ("shown", "event", "quote", "paraphrase")
WRONG = 0.1  # share of windows that the oracle is wrong about
SHORT_S = 2.0  # what a window shows less of, the oracle does not see


class OracleEngine:
    """Answers dense questions by `truth`, spans by sentence; see `engine.Engine`.

    In a share `wrong` of its windows it says that nothing is there where something is, or names a
    span at random where there is nothing.
    """

    signature = "oracle"

    def __init__(self, profile, wrong: float = WRONG) -> None:
        self.profile, self.wrong, self.cost = profile, wrong, EngineCost()
        self.truth: dict[str, list] = {}

    def answer(
        self, level: Level, questions: Sequence[Question], film: Film, queries: Sequence[Query]
    ) -> list[WindowAnswer]:
        """One answer per question."""
        return [self._answer(film, queries[one.query].sentence, one.window) for one in questions]

    def _answer(self, film: Film, sentence: str, window: Window) -> WindowAnswer:
        end_s = min(window.end_s, film.duration_s)
        name, truth = f"{film.vid} {sentence} {window.index}", self.truth[sentence]
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        rng = np.random.default_rng(seed)
        spans = [(max(a, window.start_s), min(b, end_s)) for a, b in truth]
        whole = {min(SHORT_S, b - a) for a, b in truth} or {SHORT_S}
        spans = [span for span in spans if span[1] - span[0] >= min(whole)]
        if rng.random() < self.wrong:
            length_s = float(rng.uniform(3.0, 30.0))
            start_s = float(rng.uniform(window.start_s, max(end_s - length_s, window.start_s)))
            spans = [] if spans else [(start_s, min(start_s + length_s, end_s))]
        found = [SpanCandidate(*span) for span in spans]
        presence = float(bool(found))
        return WindowAnswer(window.index, window.start_s, window.end_s, "", found, presence)


def asked_about(plan, lines) -> list[tuple[str, str, list]]:
    """(kind, sentence, true spans) of a film."""
    from revisionllm.demo.films import film_sentences
    from revisionllm.demo.world.spoken import spoken_questions

    spoken = spoken_questions(plan, lines, COUNT)
    rows = [(one.kind, one.sentence, list(one.spans_s)) for one in spoken]
    events = film_sentences(plan, COUNT, 0)
    return rows + [("event", one.sentence, [one.span_s]) for one in events]


def measure(clip, encoder, cache: Path, folder: Path, num_films: int, long_runs) -> dict:
    """Per way of searching and budget (None: every window) and kind: R1@0.5 and windows asked."""
    from revisionllm.data.subtitles import Line
    from revisionllm.demo.frame_benchmark import film_rows, is_hit
    from revisionllm.demo.world.plans import plan_film
    from revisionllm.demo.world.spoken import spoken_lines
    from revisionllm.engine.foreign import Profile
    from revisionllm.grounder import Grounder
    from revisionllm.library.words import WordsIndex, merge
    from revisionllm.search.kept_answers import MemoEngine

    profile = Profile.of("qwen3-vl")
    grounder = Grounder.of_engine(OracleEngine(profile), clip)
    ways = {"encoder": (grounder, False), "encoder and words": (grounder, True)}
    if long_runs:
        with_long = Grounder.of_engine(OracleEngine(profile), clip, long_runs=long_runs)
        for level in with_long.long_levels:  # what they say does not depend on the budget
            with_long.engines[level.name] = MemoEngine(with_long.engines[level.name], {})
        ways["all levels"] = (with_long, True)
    index = WordsIndex(folder / "words.sqlite", encoder)
    found: dict = {}
    for seed in list(SEEDS)[:num_films]:
        plan = plan_film(seed, MINUTES * 60, "test")
        lines = spoken_lines(plan, "test")
        index.add(str(seed), [Line(one.start_s, one.end_s, one.text) for one in lines])
        asked = asked_about(plan, lines)
        sentences = [sentence for _, sentence, _ in asked]
        said = [index.search(sentence, among=[str(seed)]) for sentence in sentences]
        truth = {sentence: spans for _, sentence, spans in asked}
        for way, (searching, with_words) in ways.items():
            rows = film_rows("test", seed, clip, cache, MINUTES, searching.feature_fps)
            film = Film(str(seed), rows, searching.feature_fps, MINUTES * 60, key=str(seed))
            for budget in (*BUDGETS, None):
                predictions = ask(searching, film, sentences, truth, budget, said, with_words)
                for (kind, _, spans), one, row in zip(asked, predictions, said, strict=True):
                    if with_words:
                        merge(one, row, is_calibrated=True)
                    best = one.moments[:1]
                    right = any(is_hit((m.start_s, m.end_s), spans) for m in best)
                    cell = (float(right), one.cost.dense_windows)
                    found.setdefault((way, budget, kind), []).append(cell)
        print(f"film {seed}", file=sys.stderr)
    return found


def ask(searching, film, sentences, truth, budget, said, with_words) -> list:
    """`Grounder.ground`, with the truth where the oracle sees it."""
    from revisionllm.library.words import hints_of

    searching.engine.truth = truth
    return searching.ground(
        film,
        sentences,
        search="exhaustive" if budget is None else "planned",
        budget=budget or 1,
        hints=[hints_of(row) for row in said] if with_words else None,
    )


def table(found: dict) -> list[str]:
    """Markdown: a row per way and budget, with windows asked, R1@0.5 of all and of each kind."""
    lines = ["| levels | windows per sentence | all | " + " | ".join(KINDS) + " |"]
    lines.append("|" + " --- |" * (3 + len(KINDS)))
    for way in dict.fromkeys(way for way, _, _ in found):
        for budget in (*BUDGETS, None):
            cells = [np.array(found[way, budget, kind]) for kind in KINDS]
            whole = np.concatenate(cells)
            name = f"{whole[:, 1].mean():.0f}" + (" (every one)" if budget is None else "")
            rates = [f"{100 * cell[:, 0].mean():.1f}" for cell in (whole, *cells)]
            lines.append(f"| {way} | {name} | {' | '.join(rates)} |")
    return lines


def draw(found: dict, path: Path) -> None:
    """The curve of all sentences, exhaustive reading at its end."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for way, marker in zip(dict.fromkeys(way for way, _, _ in found), "osD", strict=False):
        points = []
        for budget in (*BUDGETS, None):
            cells = np.concatenate([found[way, budget, kind] for kind in KINDS])
            points.append((cells[:, 1].mean(), 100 * cells[:, 0].mean()))
        axes.plot(*zip(*points, strict=True), marker=marker, label=way)
    axes.set(xlabel="windows that the grounder is asked about, per sentence", ylabel="R1@0.5, %")
    axes.set_xscale("log")
    ticks = [*BUDGETS, 180]
    axes.set_xticks(ticks, labels=[*map(str, BUDGETS), "all"])
    axes.minorticks_off()
    axes.set_ylim(0, 100)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--cache", type=Path, default=Path("out/frame_benchmark"))
    parser.add_argument("--films", type=int, default=len(SEEDS))
    parser.add_argument("--long", action="store_true", help="the demo's long runs, too (slow)")
    parser.add_argument("--plot", type=Path, help="PNG of the curve")
    args = parser.parse_args(argv)

    def work() -> int:
        from revisionllm.constants import DEMO_WEIGHTS
        from revisionllm.grounder import DEFAULT_LONG_RUNS
        from revisionllm.model.clip import load_clip
        from revisionllm.model.sentences import SentenceEncoder, installed_sentence_encoder

        place = installed_sentence_encoder()
        encoder = SentenceEncoder(place) if place else None
        clip = load_clip(DEMO_WEIGHTS / "clip", device="cpu")
        long_runs = DEFAULT_LONG_RUNS if args.long else ()
        with tempfile.TemporaryDirectory() as folder:
            found = measure(clip, encoder, args.cache, Path(folder), args.films, long_runs)
        print("\n".join(table(found)))
        if args.plot:
            draw(found, args.plot)
        return 0

    return run_entry_point(work, "oracle_benchmark")


if __name__ == "__main__":
    raise SystemExit(main())
