"""The dense adapter: frame features to LLM tokens, one token per frame.

For Vicuna weights this is the linear map of VTimeLLM's first stage
(https://arxiv.org/abs/2311.18445, section 3.1; the dense level of
https://arxiv.org/abs/2411.14901). Three options, all off there, help an
LLM of a few million parameters that is trained from scratch (the demo): a layer norm on the
features, temporal convolutions that let a frame see its neighbours, and a frame position written in
decimal digits.

Legend: B batch, F frames of a window, D feature dim, H LLM width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

DIGITS = 10  # the base in which frame numbers are written in answers


class TemporalMixer(nn.Module):
    """Residual depthwise-separable convolution over time: each frame sees `kernel_size` neighbours.

    Answers depend on what changes between frames; a causal LLM shows a frame only its past, this
    shows it the near future too.
    """

    def __init__(self, hidden_size: int, kernel_size: int) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size ({kernel_size}) must be odd")
        self.norm = nn.LayerNorm(hidden_size)
        self.depthwise = nn.Conv1d(
            hidden_size, 2 * hidden_size, kernel_size, padding=kernel_size // 2, groups=hidden_size
        )
        self.pointwise = nn.Linear(2 * hidden_size, hidden_size)

    def forward(self, tokens_BFH: Tensor) -> Tensor:
        mixed = self.depthwise(self.norm(tokens_BFH).transpose(1, 2)).transpose(1, 2)
        return tokens_BFH + self.pointwise(nn.functional.gelu(mixed))


class DigitPosition(nn.Module):
    """Adds a learned vector per decimal digit of the frame number (ones, tens, hundreds).

    The answer writes the frame number digit by digit, so a head that has found the frame only has
    to copy. Every digit vector is shared by many frames, which makes it quick to learn.
    """

    def __init__(self, hidden_size: int, frames_per_window: int) -> None:
        super().__init__()
        self.num_places = len(str(frames_per_window - 1))
        self.table = nn.Parameter(torch.randn(self.num_places, DIGITS, hidden_size))

    def forward(self, tokens_BFH: Tensor) -> Tensor:
        frames = torch.arange(tokens_BFH.shape[1], device=tokens_BFH.device)
        for place in range(self.num_places):
            tokens_BFH = tokens_BFH + self.table[place][frames // DIGITS**place % DIGITS]
        return tokens_BFH


class FrameProjector(nn.Module):
    """Linear projector from frame features to LLM tokens, with optional help for small LLMs.

    Args:
        feature_dim: D, width of the frame features (768 for CLIP ViT-L/14).
        hidden_size: H, width of the LLM.
        input_norm: layer norm on the features first.
        temporal_layers: number of `TemporalMixer` layers after the linear map; 0 for none.
        temporal_kernel: their kernel size in frames (odd).
        digit_position_frames: F if frame positions are to be added as digits; 0 for none.
    """

    def __init__(
        self,
        feature_dim: int,
        hidden_size: int,
        *,
        input_norm: bool = False,
        temporal_layers: int = 0,
        temporal_kernel: int = 5,
        digit_position_frames: int = 0,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(feature_dim) if input_norm else nn.Identity()
        self.linear = nn.Linear(feature_dim, hidden_size)
        self.temporal = nn.Sequential(
            *(TemporalMixer(hidden_size, temporal_kernel) for _ in range(temporal_layers))
        )
        self.position = (
            DigitPosition(hidden_size, digit_position_frames)
            if digit_position_frames
            else nn.Identity()
        )

    def forward(self, features_BFD: Tensor) -> Tensor:
        """Map features [B, F, D] to tokens [B, F, H]."""
        return self.position(self.temporal(self.linear(self.norm(features_BFD))))
