"""The sparse adapter: a window's frames and the query's words to one LLM token (or one per frame).

Text-to-video layers let every frame look at the words of the query, self-attention layers then
collect the window in a learned global token (https://arxiv.org/abs/2411.14901, section 3.2). The
state-dict keys and the arithmetic are those of the released weights; both kinds of layer are
post-norm with ReLU.

Legend: B batch, S segments (windows of one film), T frames of a window, L words of the query,
D feature dim (768 for CLIP ViT-L/14), H LLM width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize, scaled_dot_product_attention

from revisionllm.model.projector import DigitPosition

TEMPERATURE = 10000.0
EPSILON = 1e-6


def sine_positions(num_frames: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Table [T, D] in float32: frame k is at angle 2 pi (k + 1) / T, sin and cos interleaved."""
    steps = torch.arange(1, num_frames + 1, dtype=torch.float32, device=device)
    angles = steps / (num_frames + EPSILON) * (2 * math.pi)
    channel = torch.arange(dim, device=device)
    frequencies = TEMPERATURE ** (2 * (channel // 2) / dim)
    phases = angles[:, None] / frequencies
    return torch.where(channel % 2 == 0, phases.sin(), phases.cos())


class Attention(nn.Module):
    """Multi-head attention with the parameter names of `nn.MultiheadAttention`, through SDPA.

    It never computes attention weights for the caller and takes keys that are shared by several
    query sequences without copying them.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Attend from `query` [B, N, D] to `key`, `value` [B, M, D].

        Args:
            query, key, value: inputs before their projections.
            mask: bool [B, M], True where a key may be looked at; None for all.

        Returns:
            [B, N, D].
        """
        weights = self.in_proj_weight.chunk(3)
        biases = self.in_proj_bias.chunk(3)
        q, k, v = (
            linear(x, w, b).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )
        attended = scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if mask is None else mask[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class AdapterLayer(nn.Module):
    """What both kinds of layer share: attention, feed-forward, two norms, dropout."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(dim, num_heads, dropout)
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear2(self.dropout(self.linear1(x).relu())))


class TextToVideoLayer(AdapterLayer):
    """Frames look at the words. The second residual starts before `norm1`, as released."""

    def forward(
        self, x_BND: Tensor, positions_ND: Tensor, text_BLD: Tensor, mask: Tensor
    ) -> Tensor:
        attended = self.self_attn(x_BND + positions_ND, text_BLD, text_BLD, mask)
        x_BND = x_BND + self.dropout(attended)
        return self.norm2(x_BND + self.feed_forward(self.norm1(x_BND)))


class SelfAttentionLayer(AdapterLayer):
    """Global token and frames look at each other; the usual post-norm layer."""

    def forward(self, x_BND: Tensor, positions_ND: Tensor, num_outputs: int) -> Tensor:
        """Only the first `num_outputs` rows are computed; keys and values are always all N rows."""
        placed = x_BND + positions_ND
        attended = self.self_attn(placed[:, :num_outputs], placed, x_BND, None)
        x_BND = self.norm1(x_BND[:, :num_outputs] + self.dropout(attended))
        return self.norm2(x_BND + self.feed_forward(x_BND))


class LayerStack(nn.Module):
    """A list of layers under the released key `layers`."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class ClipAdapter(nn.Module):
    """Query-aware encoder of windows: text-to-video layers, global token, self-attention layers.

    Args:
        feature_dim: D, width of the frame features.
        text_width: W, width of the word features; None: D. Another than D is mapped to D first.
        hidden_size: H, width of the LLM.
        num_text_layers: text-to-video layers.
        num_layers: self-attention layers.
        num_heads: heads of both.
        ffn_dim: width of both feed-forwards.
        dropout: used in training only.
        output_norm: layer norm on the tokens; the released `alternate_layer_norm`.
        digit_position_segments: most segments in a prompt if their numbers are to be added to their
            tokens (`place`), which helps an LLM of a few million parameters; 0 for none.
        reads_sentence: the last row of a query is its sentence feature (`films.query_rows`).
            Frames look at it as at the words, and receive their similarity to it (`_matched`): what
            CLIP has learned about sentences and frames need not be learned again from words.
        frame_projector: `frames` come from a linear map of their own, beside the encoder: what the
            odd steps of alternating training see in the released chapters layout.
    """

    def __init__(
        self,
        feature_dim: int,
        hidden_size: int,
        *,
        text_width: int | None = None,
        num_text_layers: int = 2,
        num_layers: int = 2,
        num_heads: int = 8,
        ffn_dim: int = 2048,
        dropout: float = 0.1,
        output_norm: bool = False,
        digit_position_segments: int = 0,
        reads_sentence: bool = False,
        frame_projector: bool = False,
    ) -> None:
        super().__init__()
        sizes = (feature_dim, num_heads, ffn_dim, dropout)
        other = text_width not in (None, feature_dim)
        self.text_projector = nn.Linear(text_width, feature_dim) if other else nn.Identity()
        self.global_rep_token = nn.Parameter(torch.randn(feature_dim))
        self.global_rep_pos = nn.Parameter(torch.randn(feature_dim))
        self.t2v_encoder = LayerStack([TextToVideoLayer(*sizes) for _ in range(num_text_layers)])
        self.encoder = LayerStack([SelfAttentionLayer(*sizes) for _ in range(num_layers)])
        self.mm_projector = nn.Linear(feature_dim, hidden_size)
        self.alternate_layer_norm = nn.LayerNorm(hidden_size) if output_norm else nn.Identity()
        self.position = (
            DigitPosition(hidden_size, digit_position_segments)
            if digit_position_segments
            else nn.Identity()
        )
        self.frame_projector = nn.Linear(feature_dim, hidden_size) if frame_projector else None
        self.match = None
        if reads_sentence:
            self.match = nn.Linear(feature_dim, feature_dim, bias=False)
            nn.init.zeros_(self.match.weight)  # an adapter that goes on from words starts as it was

    def forward(
        self,
        frames_BSTD: Tensor,
        text_BLD: Tensor,
        text_mask_BL: Tensor | None = None,
        *,
        output: str = "segment",
    ) -> Tensor:
        """Encode windows, each with the words of its row's query.

        Args:
            frames_BSTD: [B, S, T, D], or [B, T, D] for one window per query.
            text_BLD: [B, L, D] word features of the B queries (W wide if they have a width of their
                own), zero-padded; see `records.films.query_rows`.
            text_mask_BL: nonzero where a word is; at least one per row. None: all are words.
            output: `segment` (the global token), `frames`, or `all` (global token first).

        Returns:
            [B, S, H] for `segment`; otherwise [B, S * N, H] with N = T or 1 + T tokens per window.
        """
        if frames_BSTD.dim() == 3:
            frames_BSTD = frames_BSTD[:, None]
        B, S, T, D = frames_BSTD.shape
        if output == "frames" and self.frame_projector is not None:
            tokens = self.frame_projector(frames_BSTD)
            return self.alternate_layer_norm(tokens).reshape(B, -1, self.hidden_size)
        positions_TD = sine_positions(T, D, frames_BSTD.device).to(frames_BSTD.dtype)
        text_BLD = self.text_projector(text_BLD)
        frames = self._read_query(frames_BSTD, positions_TD, text_BLD, text_mask_BL)
        tokens = self._collect(frames.reshape(B * S, T, D), positions_TD, output)
        return self.alternate_layer_norm(self.mm_projector(tokens)).reshape(B, -1, self.hidden_size)

    def place(self, tokens_BSH: Tensor) -> Tensor:
        """Segment tokens [B, S, H] in the order of the prompt, told their numbers (an option)."""
        return self.position(tokens_BSH)

    @property
    def hidden_size(self) -> int:
        """H, width of the tokens."""
        return self.mm_projector.out_features

    def _read_query(
        self, frames: Tensor, positions: Tensor, text: Tensor, text_mask: Tensor | None
    ) -> Tensor:
        """Text-to-video layers over all segments of a query at once: its words are not repeated."""
        mask = None if text_mask is None else text_mask.bool()
        x = frames.flatten(1, 2)
        positions = positions.repeat(frames.shape[1], 1)
        if self.match is not None:
            x = x + self._matched(x, text, mask)
        for layer in self.t2v_encoder.layers:
            x = layer(x, positions, text, mask)
        return x

    def _matched(self, frames_BND: Tensor, text_BLD: Tensor, mask: Tensor | None) -> Tensor:
        """Products of frames and sentence, unit vectors both: their sum would be the cosine."""
        B, L, D = text_BLD.shape
        last = torch.full((B,), L - 1, device=text_BLD.device) if mask is None else mask.sum(1) - 1
        sentences = text_BLD[torch.arange(B, device=text_BLD.device), last, None]
        return self.match(normalize(frames_BND, dim=-1) * normalize(sentences, dim=-1) * D)

    def _collect(self, frames: Tensor, positions: Tensor, output: str) -> Tensor:
        """Self-attention layers over [global token; frames] of each window [N, T, D].

        The last layer computes the global token alone if nothing else is asked for.
        """
        token = self.global_rep_token.expand(len(frames), 1, -1)
        x = torch.cat([token.to(frames.dtype), frames], dim=1)
        positions = torch.cat([self.global_rep_pos[None], positions]).to(frames.dtype)
        *layers, last = self.encoder.layers
        for layer in layers:
            x = layer(x, positions, x.shape[1])
        x = last(x, positions, 1 if output == "segment" else x.shape[1])
        return x[:, 1:] if output == "frames" else x
