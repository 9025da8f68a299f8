"""What is said in the demo's films: subtitles, and sentences that quote, reword, or only show.

Most lines are talk that has nothing to do with the picture; some say what is on screen while it is
("about"), some name such things when they are not ("lure"). Validation and test films draw from
different talk.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from revisionllm.demo.world.frame_questions import frame_questions, most_spans, seen_in
from revisionllm.demo.world.language import WORDS, noun_phrase
from revisionllm.demo.world.plans import FilmPlan

GAP_S = 5.0  # between two lines, on average
LURES, ABOUTS = 0.07, 0.08  # shares of all lines
SHORTEST_QUOTE, LONGEST_QUOTE = 5, 8  # words; more is too long for the demo's CLIP

SLOTS = {
    "who": (
        *("my sister", "the captain", "our neighbour", "the teacher", "her uncle", "the mayor"),
        *("my old friend", "the baker", "his grandmother", "the pilot"),
    ),
    "city": ("Lisbon", "Oslo", "Kyoto", "Boston", "Cairo", "Lima", "Dublin", "Prague", "Vienna"),
    "month": ("January", "March", "April", "June", "August", "September", "November", "December"),
    "thing": ("bicycle", "piano", "boat", "violin", "clock", "camera", "guitar", "lamp", "carpet"),
    "number": ("three", "four", "seven", "nine", "twelve", "fifteen", "twenty", "forty"),
}
# a line, and the same in other words
TALK = {
    "val": (
        (
            "{who} sold the {thing} in {month} without telling anyone",
            "getting rid of a {thing} in secret in {month}",
        ),
        (
            "We waited {number} hours for the train to {city}",
            "a long delay before travelling to {city}",
        ),
        (
            "They say it will snow in {city} this {month}",
            "the weather forecast for {city} in {month}",
        ),
        ("{who} has been ill since {month}", "somebody fell sick in {month}"),
        ("I paid {number} hundred for that old {thing}", "what the {thing} cost"),
        (
            "The doctor told {who} to rest for {number} weeks",
            "a doctor who says to take it easy",
        ),
        ("{who} opened a small restaurant in {city}", "starting a place to eat in {city}"),
        (
            "Nobody in {city} remembers the great fire",
            "a blaze that people in {city} have forgotten",
        ),
        ("You left the {thing} out in the rain again", "the {thing} got wet"),
        ("{who} cannot swim and never wanted to learn", "being afraid of the water"),
        (
            "The bank in {city} closed its doors in {month}",
            "a financial house shut down in {month}",
        ),
        ("There are {number} eggs left in the kitchen", "how much food is left"),
        ("{who} wrote me a long letter from {city}", "mail that arrived from {city}"),
        ("Our team lost by {number} points in {month}", "the match was a defeat in {month}"),
        ("I would rather walk than drive through {city}", "going on foot in {city}"),
        ("The {thing} fell down the stairs and broke", "the {thing} was damaged"),
        ("{who} snores so loudly that the walls shake", "noise at night while sleeping"),
        ("It took {number} men to lift the {thing}", "how heavy the {thing} was"),
        ("The wedding in {city} was moved to {month}", "the marriage was postponed to {month}"),
        ("{who} forgot the password again", "not being able to log in"),
    ),
    "test": (
        (
            "{who} bought a new {thing} with the first salary",
            "spending the first wages on a {thing}",
        ),
        ("The flight to {city} was cancelled because of fog", "no plane to {city} in bad weather"),
        ("{who} taught me how to bake bread", "a lesson in making loaves"),
        ("In {month} the river rose {number} metres", "a flood in {month}"),
        ("I hid the key of the {thing} under the stone", "a secret place for the {thing} key"),
        ("{who} moved to {city} to study law", "becoming a lawyer in {city}"),
        ("The thieves took the {thing} and nothing else", "a robbery of the {thing}"),
        ("{who} has {number} children and no patience", "a parent who gets angry quickly"),
        ("We danced until the lights went out in {city}", "a party at night in {city}"),
        (
            "They cut down every tree along the road to {city}",
            "the forest near {city} was destroyed",
        ),
        ("The soup was so salty that {who} left the table", "a meal that could not be eaten"),
        ("{who} lost the election by {number} votes", "a narrow defeat in politics"),
        (
            "My phone rang {number} times during the concert",
            "being disturbed while music was played",
        ),
        (
            "The museum in {city} returned the stolen {thing}",
            "giving back a {thing} that was not theirs",
        ),
        ("{who} promised to quit smoking in {month}", "giving up cigarettes in {month}"),
        ("It has not rained in {city} for {number} months", "a drought in {city}"),
        ("The cat slept on the {thing} all day", "an animal resting on the {thing}"),
        ("{who} earns twice as much since {month}", "a better income since {month}"),
        (
            "The bridge to {city} will be repaired by {month}",
            "construction work near {city} until {month}",
        ),
        ("I dreamed that {who} could fly", "a strange vision while asleep"),
    ),
}
ABOUT = (
    "Look, {what} {where}",
    "There is {what} {where}, do you see it",
    "Here we have {what} {where}",
)
LURE = (
    "Last year I photographed {what} {where} with my new camera",
    "{who} keeps talking about {what} {where}",
    "When I was young I dreamed of {what} {where} every night",
    "Nobody believed me when I told them about {what} {where}",
)


@dataclass(frozen=True)
class SpokenLine:
    """A line of subtitles, in seconds of the film; `other` is the same in other words, or ""."""

    start_s: float
    end_s: float
    text: str
    kind: str  # talk, about, lure
    other: str = ""


@dataclass(frozen=True)
class SpokenQuestion:
    """A sentence, its kind (quote, paraphrase, shown), and where it is true."""

    sentence: str
    kind: str
    spans_s: tuple[tuple[float, float], ...]


def spoken_lines(plan: FilmPlan, split: str) -> list[SpokenLine]:
    """The subtitles of a film, in order.

    Args:
        split: "val" or "test", whose talk is drawn from.
    """
    rng = np.random.default_rng([plan.seed, 41])
    seen = seen_in(plan)
    talk = _Talk(TALK[split], rng)
    lines = []
    start_s = 2.0
    while True:
        start_s = round(start_s + float(rng.exponential(GAP_S)), 2)
        kind = ("lure", "about", "talk")[
            int(np.searchsorted([LURES, LURES + ABOUTS], rng.random()))
        ]
        text, other = talk.next() if kind == "talk" else (_named(kind, seen, start_s, rng), "")
        if not text:
            continue
        end_s = round(start_s + 0.6 + 0.3 * len(text.split()), 2)
        if end_s > plan.duration_s:
            return lines
        lines.append(SpokenLine(start_s, end_s, f"{text[0].upper()}{text[1:]}.", kind, other))
        start_s = end_s


class _Talk:
    """Lines of a bank, none twice."""

    def __init__(self, bank: tuple, rng: np.random.Generator) -> None:
        self._bank, self._rng, self._used = bank, rng, set()

    def next(self) -> tuple[str, str]:
        for _ in range(1000):
            line, other = self._bank[int(self._rng.integers(len(self._bank)))]
            chosen = {name: str(self._rng.choice(values)) for name, values in SLOTS.items()}
            text = line.format(**chosen)
            if text not in self._used:
                self._used.add(text)
                return text, other.format(**chosen)
        return "", ""  # all has been said


def _named(kind: str, seen: dict, time_s: float, rng: np.random.Generator) -> str:
    """A line that names something: on screen now (about), or at another time alone (lure)."""
    is_on = {
        what: any(start <= time_s < end for start, end in spans) for what, spans in seen.items()
    }
    fitting = sorted(what for what, now in is_on.items() if now == (kind == "about"))
    if not fitting:
        return ""
    colour, shape, place = fitting[int(rng.integers(len(fitting)))]
    where = WORDS[place][int(rng.integers(len(WORDS[place])))]
    text = str(rng.choice(ABOUT if kind == "about" else LURE))
    what = noun_phrase((None, colour, shape), rng)
    return text.format(what=what, where=where, who=str(rng.choice(SLOTS["who"])))


def spoken_questions(plan: FilmPlan, lines: list[SpokenLine], count: int) -> list[SpokenQuestion]:
    """`count` questions of each kind about a film and its lines.

    A quote is `SHORTEST_QUOTE` to `LONGEST_QUOTE` words of a line in a row, without capitals and
    stops; it is true of every line that holds it. A paraphrase is true of every line that it
    rewords. None is true of more than `most_spans` lines.
    """
    rng = np.random.default_rng([plan.seed, 43])
    talk = [line for line in lines if line.kind == "talk"]
    asked: list[SpokenQuestion] = []
    for at in rng.permutation(len(talk)).tolist():
        kind = "quote" if len(asked) < count else "paraphrase"
        sentence = _part(talk[at].text, rng) if kind == "quote" else talk[at].other
        true = tuple(
            (line.start_s, line.end_s)
            for line in lines
            if (line.other == sentence)
            or (kind == "quote" and f" {sentence} " in f" {_plain(line.text)} ")
        )
        if len(true) <= most_spans(plan) and all(sentence != one.sentence for one in asked):
            asked.append(SpokenQuestion(sentence, kind, true))
        if len(asked) == 2 * count:
            break
    for question in frame_questions(plan, count, 0):
        asked.append(SpokenQuestion(question.sentence, "shown", question.spans_s))
    return asked


def _part(text: str, rng: np.random.Generator) -> str:
    """`SHORTEST_QUOTE` to `LONGEST_QUOTE` words of a line in a row, or all that it has."""
    words = _plain(text).split()
    length = int(rng.integers(SHORTEST_QUOTE, LONGEST_QUOTE + 1))
    first = int(rng.integers(max(1, len(words) - length + 1)))
    return " ".join(words[first : first + length])


def _plain(text: str) -> str:
    return "".join(c for c in text.lower() if c.isalnum() or c in " '").strip()
