"""Token ids, strings and numbers that several rooms share, as the released weights use them."""

IGNORE_INDEX = -100  # label of positions that are not supervised (torch's cross-entropy default)
VIDEO_TOKEN_ID = -200  # stands for <video> in input_ids until the visual tokens are spliced in
VIDEO_PLACEHOLDER = "<video>"
NOT_PRESENT = "Not Present"
