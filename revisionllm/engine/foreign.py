"""Dense windows answered by any video-LLM: what is shown, what is asked, how answers are read.

The times are ours: frames are taken by the film's clock and named as seconds within the window; the
seconds of an answer are moved to the film and cut to the window. A profile (TOML, `profiles/`) says
how a family of models is asked. Presence is the probability of "yes" to the profile's question
where the model tells probabilities ("logprobs"), else yes or no ("yes_no"), else whether the answer
names a span ("answer"). What was answered is kept on disk, so that a rerun asks for the rest alone.

`server.py` asks a server, `vlm.py` a model in this process.
"""

from __future__ import annotations

import json
import re
import sqlite3
import sys
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

from revisionllm.engine import EngineCost
from revisionllm.errors import UserError
from revisionllm.files import json_digest
from revisionllm.grounding.levels import Level, Question, SpanCandidate, WindowAnswer
from revisionllm.grounding.span_texts import read_spans
from revisionllm.grounding.windows import Window
from revisionllm.records.films import Film, Query

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROFILES = Path(__file__).parent / "profiles"
KEPT_WINDOWS = 16  # whose pictures are held
EXPLORE = 0.05  # a window of less presence is not asked for its span
LOST_IN_A_ROW = 8  # requests without an answer, one after the other: the grounder is gone
NO_ANSWER = "no answer"
CUT_WEIGHT = 0.9  # of a span at the window's edge: the next window may show more of it


@dataclass(frozen=True)
class Profile:
    """How a family of models is asked about a window.

    Attributes:
        names: parts of model names, in lower case, that it is taken for.
        window_s, stride_s: the windows.
        frames_per_window: pictures of a window, evenly spaced.
        image_side: their longer side at most, pixels.
        stamp: text before a picture; `{second}` is its second within the window.
        question: the text behind the pictures; `{query}` is the sentence.
        presence: the yes-or-no question; "": not asked, and the answer alone decides.
        answer_tokens: tokens of an answer at most.
    """

    names: tuple[str, ...]
    window_s: float
    stride_s: float
    frames_per_window: int
    image_side: int
    stamp: str
    question: str
    presence: str = ""
    answer_tokens: int = 64
    # of a run's config, for the search
    double_rate_short = False
    time_mapping = "field"

    @classmethod
    def read(cls, path: Path) -> Profile:
        """Read a profile.

        Raises:
            UserError: missing, no TOML, or an entry is missing, unknown or of the wrong kind.
        """
        try:
            about = tomllib.loads(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise UserError(f"profile {path}: {error}") from error
        kinds = {field.name: str(field.type) for field in fields(cls)}
        for name, value in about.items():
            if name not in kinds:
                raise UserError(
                    f"profile {path}: unknown entry {name!r}; known: {', '.join(kinds)}"
                )
            if not _is_of(kinds[name], value):
                raise UserError(f"profile {path}: {name} = {value!r} is not {kinds[name]}")
        missing = [
            name
            for name in kinds
            if name not in about and name not in ("presence", "answer_tokens")
        ]
        if missing:
            raise UserError(f"profile {path}: no entry {missing[0]}")
        profile = cls(**about | {"names": tuple(about["names"])})
        if not 0 < profile.stride_s <= profile.window_s:
            raise UserError(f"profile {path}: need 0 < stride_s <= window_s")
        if min(profile.frames_per_window, profile.image_side, profile.answer_tokens) < 1:
            raise UserError(f"profile {path}: frames, image_side and tokens must be positive")
        for name, field in (("question", "query"), ("stamp", "second")):
            try:
                getattr(profile, name).format(**{field: "" if name == "question" else 0.0})
            except (KeyError, IndexError, ValueError) as error:
                raise UserError(
                    f"profile {path}: {name}: {error}; it may use {{{field}}}"
                ) from error
        return profile

    @classmethod
    def of(cls, model: str, path: Path | None = None) -> Profile:
        """A file's, or the one that ships for a model of this name.

        Raises:
            UserError: none fits the name.
        """
        if path is not None:
            return cls.read(path)
        shipped = [cls.read(file) for file in sorted(PROFILES.glob("*.toml"))]
        for profile in shipped:
            if any(name in model.lower() for name in profile.names):
                return profile
        known = ", ".join(name for profile in shipped for name in profile.names)
        raise UserError(
            f"no profile for grounder {model!r} (known: {known}); give --grounder-profile FILE,"
            " docs/grounders.md shows one"
        )

    def times(self, window: Window) -> list[float]:
        """Seconds of the film of a window's pictures: the middles of equal parts."""
        step = (window.end_s - window.start_s) / self.frames_per_window
        return [window.start_s + (number + 0.5) * step for number in range(self.frames_per_window)]


def _is_of(kind: str, value: Any) -> bool:
    if kind.startswith("tuple"):
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if kind == "float":
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value).__name__ == kind


@dataclass(frozen=True)
class Prompt:
    """What a model is shown and asked: JPEG files, a text before each, and the text behind."""

    stamps: tuple[str, ...]
    jpegs: tuple[bytes, ...]
    text: str


Asked = tuple[Window, str]  # and the sentence


@dataclass(frozen=True)
class Reply:
    """What a model said.

    Attributes:
        text: its answer.
        yes: to a yes-or-no question, P("yes") against "no"; None: it tells no probabilities.
    """

    text: str
    yes: float | None = None


class Lost(Exception):
    """A request without an answer: the window is lost, the run goes on."""


class Asker(Protocol):
    """Sends prompts to a model; from several threads at once.

    Attributes:
        name: what the model is known by; answers are kept under it.
        in_flight: calls that it takes at a time.
        batch: prompts of a call.
    """

    name: str
    in_flight: int
    batch: int

    def ask(self, prompts: Sequence[Prompt], *, tokens: int, yes_no: bool) -> list[Reply]:
        """Raises Lost for a call that got no answer, UserError if no other can get one."""
        ...


class KeptReplies:
    """Answers on disk, in one SQLite file that several processes may use; None: nowhere."""

    def __init__(self, path: Path | None) -> None:
        self._lock = threading.Lock()
        self._base = None
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(path, timeout=60, check_same_thread=False)
            with self._base:
                self._base.execute("PRAGMA journal_mode=WAL")
                self._base.execute(
                    "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)"
                )
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"answers cannot be kept in {path}: {error}") from error

    def get(self, key: str) -> dict[str, Any] | None:
        if self._base is None:
            return None
        with self._lock:
            row = self._base.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        return json.loads(row[0]) if row else None

    def put(self, key: str, reply: dict[str, Any]) -> None:
        if self._base is None:
            return
        with self._lock, self._base:
            self._base.execute(
                "INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, json.dumps(reply))
            )


class ForeignEngine:
    """Answers dense questions by another model, several windows at a time; see `engine.Engine`.

    Args:
        asker: sends the prompts.
        profile: how they are made.
        kept: where answers are kept between runs.
        place: where a window of a film really begins and ends; None: where the grid has it.

    Attributes:
        cost: work done so far; prefixes count the windows that were asked.
        how: how presence was found out, and how often.
    """

    def __init__(
        self,
        asker: Asker,
        profile: Profile,
        kept: Path | None = None,
        place: Callable[[Film, Window], Window] | None = None,
    ) -> None:
        self.asker, self.profile, self._place = asker, profile, place
        self.cost = EngineCost()
        self.how: Counter[str] = Counter()
        self._kept = KeptReplies(kept)
        self._pictures: OrderedDict[tuple, Prompt] = OrderedDict()
        self._lock = threading.Lock()
        self._lost_in_a_row = 0

    @property
    def signature(self) -> str:
        """What predictions are signed with: the model, and how presence was found out."""
        ways = ", ".join(sorted(self.how.keys() - {NO_ANSWER}))
        return f"{self.asker.name} (presence: {ways})" if ways else self.asker.name

    def answer(
        self, level: Level, questions: Sequence[Question], film: Film, queries: Sequence[Query]
    ) -> list[WindowAnswer]:
        """Answer dense questions; a window that got no answer names nothing.

        Raises:
            UserError: the film has no file, or the grounder is gone; what was answered is kept.
        """
        from tqdm import tqdm

        if film.video_path is None:
            raise UserError(f"film {film.vid!r}: a grounder needs the film's file")
        started = time.perf_counter()
        order = sorted(range(len(questions)), key=lambda at: questions[at].window.index)
        windows = [questions[at].window for at in order]
        if self._place is not None:
            windows = [self._place(film, window) for window in windows]
        sentences = [queries[questions[at].query].sentence for at in order]
        asked = list(zip(windows, sentences, strict=True))
        keys = [self._key(film, window, sentence) for window, sentence in asked]
        found = [self._kept.get(key) for key in keys]
        waiting = [at for at, known in enumerate(found) if known is None]
        size, lost = self.asker.batch, []
        pieces = [waiting[first : first + size] for first in range(0, len(waiting), size)]
        pool = ThreadPoolExecutor(self.asker.in_flight)
        try:
            calls = {
                pool.submit(
                    self._ask, film, [asked[at] for at in piece], [keys[at] for at in piece], lost
                ): piece
                for piece in pieces
            }
            with tqdm(total=len(waiting), unit="window", desc="grounder", file=sys.stderr) as bar:
                for done in as_completed(calls):
                    for at, told in zip(calls[done], done.result(), strict=True):
                        found[at] = told
                        bar.update()
        finally:  # a grounder that is gone stops all, also those that wait
            pool.shutdown(cancel_futures=True)
        if lost and len(lost) == len(questions):
            raise UserError(f"grounder {self.asker.name} answers nothing ({lost[0]})")
        if lost:
            print(
                f"{len(lost)} of {len(questions)} windows got no answer ({lost[0]}); run again to"
                " ask for them alone",
                file=sys.stderr,
            )
        answers: list[WindowAnswer | None] = [None] * len(questions)
        for at, (window, _), told in zip(order, asked, found, strict=True):
            self.how[told["how"]] += 1
            step_s = (window.end_s - window.start_s) / self.profile.frames_per_window
            answers[at] = to_answer(window, film.duration_s, told["text"], told["presence"], step_s)
        self.cost.seconds += time.perf_counter() - started
        return answers

    def _key(self, film: Film, window: Window, sentence: str) -> str:
        identity = film.key or str(film.video_path)
        asked = [identity, window.start_s, window.end_s, sentence]
        return json_digest([self.asker.name, asdict(self.profile), *asked])

    def _ask(
        self, film: Film, asked: Sequence[Asked], keys: Sequence[str], lost: list[str]
    ) -> list[dict[str, Any]]:
        """Ask about some windows, and keep what is said."""
        try:
            told = self._told(film, asked)
        except Lost as error:
            with self._lock:
                lost += [str(error)] * len(asked)
                self._lost_in_a_row += 1
                if self._lost_in_a_row >= LOST_IN_A_ROW:
                    raise UserError(
                        f"grounder {self.asker.name} answers no more ({error}); what it said is"
                        " kept: run the command again to go on"
                    ) from error
            return [{"text": "", "presence": 0.0, "how": NO_ANSWER} for _ in asked]
        with self._lock:
            self._lost_in_a_row = 0
            self.cost.prefixes += len(asked)
        for key, one in zip(keys, told, strict=True):
            self._kept.put(key, one)
        return told

    def _told(self, film: Film, asked: Sequence[Asked]) -> list[dict[str, Any]]:
        """Per window the model's text, presence, and how that was found out."""
        profile = self.profile
        told: list[dict[str, Any]] = [
            {"text": "", "presence": None, "how": "answer"} for _ in asked
        ]
        if profile.presence:
            replies = self._replies(film, asked, profile.presence, tokens=4, yes_no=True)
            for one, reply in zip(told, replies, strict=True):
                said = _yes_or_no(reply.text)
                if reply.yes is not None:
                    one |= {"presence": reply.yes, "how": "logprobs"}
                elif said is not None:
                    one |= {"presence": float(said), "how": "yes_no"}
        likely = [
            at
            for at, one in enumerate(told)
            if one["presence"] is None or one["presence"] > EXPLORE
        ]
        if likely:
            asked = [asked[at] for at in likely]
            replies = self._replies(film, asked, profile.question, tokens=profile.answer_tokens)
            for at, reply in zip(likely, replies, strict=True):
                told[at]["text"] = reply.text
                if told[at]["presence"] is None:
                    told[at]["presence"] = float(bool(read_spans(reply.text)))
        return told

    def _replies(
        self, film: Film, asked: Sequence[Asked], text: str, *, tokens: int, yes_no: bool = False
    ) -> list[Reply]:
        prompts = []
        for window, sentence in asked:
            shown = self._shown(film, window)
            prompts.append(replace(shown, text=text.replace("{query}", sentence).strip()))
        return self.asker.ask(prompts, tokens=tokens, yes_no=yes_no)

    def _shown(self, film: Film, window: Window) -> Prompt:
        key = (film.video_path, window)
        with self._lock:  # one thread reads a window's pictures, the others wait for them
            if key not in self._pictures:
                self._pictures[key] = self._read(film, window)
                while len(self._pictures) > KEPT_WINDOWS:
                    self._pictures.popitem(last=False)
            return self._pictures[key]

    def _read(self, film: Film, window: Window) -> Prompt:
        from revisionllm.data.video import encode_jpeg, frames_at, probe

        size = probe(film.video_path).size_within(self.profile.image_side)
        times = [time_s for time_s in self.profile.times(window) if time_s < film.duration_s]
        pictures = frames_at(film.video_path, times, size=size)
        stamps = [self.profile.stamp.format(second=time_s - window.start_s) for time_s in times]
        return Prompt(tuple(stamps), tuple(encode_jpeg(rgb) for rgb in pictures), "")


def to_answer(
    window: Window, duration_s: float, text: str, presence: float, step_s: float = 0.0
) -> WindowAnswer:
    """An answer's spans in seconds of the film, within the window; those outside are none.

    Args:
        step_s: a span that comes so near to an edge, within the film, weighs `CUT_WEIGHT`.
    """
    end_s = min(window.end_s, duration_s)
    spans = []
    for first_s, last_s in read_spans(text) or ():
        start_s, stop_s = window.start_s + first_s, min(window.start_s + last_s, end_s)
        is_cut = start_s <= window.start_s + step_s and window.start_s > 0
        is_cut |= stop_s >= end_s - step_s and end_s < duration_s
        if start_s < stop_s:
            spans.append(SpanCandidate(start_s, stop_s, CUT_WEIGHT if is_cut else 1.0))
    return WindowAnswer(window.index, window.start_s, window.end_s, text, spans, presence)


def _yes_or_no(text: str) -> bool | None:
    first = re.match(r"\W*(yes|no|not)\b", text, re.IGNORECASE)
    return first[1].lower() == "yes" if first else None


def make_engine(
    grounder: str,
    *,
    profile: Path | None = None,
    kept: Path | None = None,
    place: Callable[[Film, Window], Window] | None = None,
    device: str = "auto",
) -> ForeignEngine:
    """The engine that a `--grounder` names.

    Args:
        grounder: `http://host:port/v1#model`, `vlm:FOLDER` or `vlm:hf:owner/name`.
        kept, place: see `ForeignEngine`.

    Raises:
        UserError: it names neither, no profile fits, or it is not there.
    """
    if grounder.startswith(("http://", "https://")):
        url, _, model = grounder.partition("#")
        if not model:
            raise UserError(f"--grounder {grounder}: which model? write {grounder}#MODEL")
        described = Profile.of(model, profile)
        from revisionllm.engine.server import ServerAsker

        return ForeignEngine(ServerAsker(url, model), described, kept, place)
    if grounder.startswith("vlm:"):
        from revisionllm.engine.vlm import VlmAsker, model_kind

        weights = grounder.removeprefix("vlm:")
        described = Profile.of(model_kind(weights), profile)
        return ForeignEngine(VlmAsker(weights, device=device), described, kept, place)
    raise UserError(
        f"--grounder {grounder}: give http://host:port/v1#model, vlm:FOLDER or vlm:hf:owner/name"
    )
