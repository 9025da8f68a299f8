"""Token ids, strings, numbers and places that several rooms share; the first ones as the released
weights use them."""

import re
from pathlib import Path

IGNORE_INDEX = -100  # label of positions that are not supervised (torch's cross-entropy default)
VIDEO_TOKEN_ID = -200  # stands for <video> in input_ids until the visual tokens are spliced in
VIDEO_PLACEHOLDER = "<video>"
NOT_PRESENT = "Not Present"
MAX_SENTENCE = 2000  # characters of a sentence; CLIP reads 77 tokens
# what ends a line in any convention, and the zero character: spaces in a sentence
LINE_BREAKS = re.compile("[\n\v\f\r\x1c-\x1e\x85\u2028\u2029\0]+")

NO_OWNER = -1  # padding at the end of packed questions

PACKAGE = Path(__file__).resolve().parent
# in the repository, or inside an installed wheel
DEMO_WEIGHTS = next(
    (
        place
        for place in (PACKAGE.parent / "checkpoints" / "demo", PACKAGE / "weights" / "demo")
        if place.is_dir()
    ),
    PACKAGE.parent / "checkpoints" / "demo",
)
