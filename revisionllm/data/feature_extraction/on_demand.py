"""Frame features that are read when somebody asks for them, and kept.

A search that looks at few windows of a film decodes and encodes these alone. Rows are made in the
batches of `frames.extract_features`, so they are the same bytes as of a film read whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from revisionllm.data.video import iter_frames, probe
from revisionllm.errors import UserError
from revisionllm.files import cannot_write, waiting_lock

if TYPE_CHECKING:
    from revisionllm.model.clip import ClipFeatures

BLOCK = 64  # rows: the batch of `extract_features`


class RowsOnDemand:
    """Features [T, D] of a video; indexing with row numbers reads what is missing first.

    Two files hold them: rows as float16 (sparse: what nobody asked for takes no disk), and a byte
    per block that says whether it is there. A block counts only once it is written, and two
    processes take turns.

    Args:
        video: the film.
        clip: encodes its frames.
        feature_fps: rows per second.
        path: of the rows; its name must tell film, encoder and rate apart from others.

    Raises:
        UserError: not a readable video, or the disk is full.
    """

    def __init__(
        self, video: str | os.PathLike, clip: ClipFeatures, feature_fps: float, path: Path
    ) -> None:
        info = probe(video)
        self._video, self._clip, self.feature_fps = video, clip, feature_fps
        self._size = clip.decode_size(info.width, info.height)
        self.shape = (info.num_samples(feature_fps), clip.dim)
        self.dtype = np.dtype(np.float16)
        self.num_read = 0
        blocks = -(-len(self) // BLOCK)
        self._lock = path.with_name(path.name + ".there")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for file, size in ((path, len(self) * clip.dim * 2), (self._lock, blocks)):
                with open(file, "ab") as opened:
                    if opened.tell() not in (0, size):
                        raise UserError(f"{file} is damaged: remove it, it is made anew")
                    opened.truncate(size)
        except OSError as error:
            raise cannot_write(path, error) from error
        self._path = path
        self._rows = np.memmap(path, self.dtype, "r", shape=self.shape)
        self._there = np.memmap(self._lock, np.uint8, "r", shape=(blocks,))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Rows by their numbers [N]: float16 [N, D]."""
        rows = np.asarray(rows)
        self._read(np.unique(rows // BLOCK))
        return np.array(self._rows[rows])

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        self._read(np.arange(len(self._there)))
        return np.array(self._rows, dtype=dtype)

    def _read(self, blocks: np.ndarray) -> None:
        if self._there[blocks].all():
            return
        # written through files: a full disk is an error there, and a signal that kills through maps
        with (
            waiting_lock(self._lock),
            open(self._path, "r+b") as rows,
            open(self._lock, "r+b") as there,
        ):
            for first, end in _runs(blocks[self._there[blocks] == 0]):
                self._read_run(first, end, rows.fileno(), there.fileno())

    def _read_run(self, first: int, end: int, rows: int, there: int) -> None:
        """Blocks from `first` up to `end`, decoded in one go; `rows` and `there` are open files."""
        fps, stop = self.feature_fps, min(end * BLOCK, len(self))
        frames = iter_frames(
            self._video, fps, size=self._size, start_s=first * BLOCK / fps, end_s=stop / fps
        )
        for block in range(first, end):
            at = block * BLOCK
            count = min(BLOCK, stop - at)
            batch = np.stack([rgb for _, (_, _, rgb) in zip(range(count), frames, strict=False)])
            found = self._clip.encode_images(batch, batch_size=BLOCK).numpy().astype(self.dtype)
            os.pwrite(rows, found.tobytes(), at * self.shape[1] * self.dtype.itemsize)
            os.fsync(rows)
            os.pwrite(there, b"\x01", block)
            self.num_read += count


def _runs(numbers: np.ndarray) -> Iterator[tuple[int, int]]:
    """Stretches of following numbers: first, and one behind the last."""
    for part in np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1):
        if len(part):
            yield int(part[0]), int(part[-1]) + 1
