"""What three or more models share: argument checks, the start of weights, layers on packed rows.

    Layer(X)      s = LN(X + Dropout(Attention(X) [+ DirectConv(X)])),  LN(s + FFN(s))
    Attention(X)  [Q; K; V] = W_qkv X + b_qkv;  per head, on d = D / H columns of each:
                  Dropout(softmax(Q K^T / sqrt(d))) V;  the heads side by side, then W_o . + b_o
    FFN(s)        Dropout(W2 GELU(W1 s + b1) + b2),  exact GELU

Only products of queries, keys and weights with values need padded rectangles: everything else is
computed on packed rows.

Shapes: N packed rows, B sequences, D = d_model, H = n_heads, d = D / H, b sequences of at most T
rows in a rectangle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recblr.data.batch import SequenceBatch
from recblr.ops.causal_conv import causal_conv
from recblr.ops.dropout import Dropout, dropout

WEIGHT_STD = 0.02
NORM_EPS = 1e-12
REPEAT_SCALE = 10.0
SMALLEST_BUCKET = 2  # all sequences of up to 2^2 rows share a rectangle: fewer, larger products


def check_sizes(**sizes: int) -> None:
    """ValueError that names a size below 1, and the key that sets it."""
    for name, size in sizes.items():
        if size < 1:
            key = name if name == "max_length" else f"model.{name}"
            raise ValueError(f"{key}={size}: must be 1 or more")


def check_dropout(dropout: float, key: str = "dropout") -> None:
    if not 0 <= dropout < 1:
        raise ValueError(f"{key}={dropout}: must be in [0, 1)")


def init_weights(module: nn.Module) -> None:
    """For `module.apply`: matrices and embeddings N(0, 0.02), biases 0."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=WEIGHT_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def check_lengths(batch: SequenceBatch, max_length: int) -> None:
    """ValueError for a sequence that a model with `max_length` positions has no room for."""
    longest = int(batch.cu_seqlens_host.diff().max()) if len(batch) else 0
    if longest > max_length:
        raise ValueError(f"a sequence has {longest} items, the model max_length={max_length}")


class RepeatBias(nn.Module):
    """One learned number that the score of every item in the sequence is shifted by.

    A softmax over all items has to learn for each item anew that a user does not come back to it
    (or does, as with music): the representation of a history lies close to its own items. This
    says it once. It is 0 at first, and the log decides its sign. On Beauty, where nobody comes back
    to an item, it learns -8, which all but leaves those of the window out of the list.

    weight: the number divided by REPEAT_SCALE, as Adam moves a weight by about lr a step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self) -> Tensor:
        """Scalar."""
        return REPEAT_SCALE * self.weight


class Packed(Protocol):
    """Where each of B packed sequences starts and ends: (B+1,) int64, and the same on the CPU."""

    @property
    def cu_seqlens(self) -> Tensor: ...

    @property
    def cu_seqlens_host(self) -> Tensor | None: ...


class DirectConv(nn.Module):
    """Causal depthwise convolution of a layer's input, with no product before or after it.

        y_t = sum_k weight[:, k] x_(t-K+1+k),  k = 0..K-1, for a row with K-1 others before it

    It is added to what mixes a layer's rows. A weighted sum of the items' own vectors lies where
    scores compare with them. Ours; in FMLP-Rec it alone mixes rows, circular over all slots.

    Shapes: N packed rows, B sequences, D = d_model, K = width.
    """

    def __init__(self, d_model: int, width: int, backend: str = "auto"):
        super().__init__()
        if width < 1:
            raise ValueError(f"direct_conv={width}: must be 0, for none, or more")
        self.weight = nn.Parameter(torch.empty(d_model, width).normal_(std=WEIGHT_STD))
        self.backend = backend

    def forward(self, x: Tensor, within: Packed) -> Tensor:
        """x (N, D) -> (N, D). within: the sequences of its rows."""
        y, _ = causal_conv(
            x,
            self.weight,
            self.weight.new_zeros(len(self.weight)),
            within.cu_seqlens,
            silu=False,
            backend=self.backend,
            cu_seqlens_host=within.cu_seqlens_host,
        )
        return y

    def init_state(self, sequences: int) -> Tensor:
        """(B, K-1, D): the rows before the first."""
        d_model, width = self.weight.shape
        return self.weight.new_zeros(sequences, width - 1, d_model)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One row for each of B sequences: x (B, D) -> y (B, D), next state (B, K-1, D)."""
        rows = torch.cat((state, x[:, None]), 1)  # (B, K, D)
        return (rows * self.weight.t()).sum(1), rows[:, 1:]


class FeedForward(nn.Module):
    """Position-wise feed-forward network D -> 4D -> D, dropout after it and, if asked, inside."""

    def __init__(
        self,
        d_model: int,
        dropout: float,
        activation: Callable[[Tensor], Tensor] = F.gelu,
        inner_dropout: float = 0.0,
    ):
        super().__init__()
        self.inner = nn.Linear(d_model, 4 * d_model)
        self.outer = nn.Linear(4 * d_model, d_model)
        self.activation = activation
        self.inner_dropout, self.dropout = Dropout(inner_dropout), Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inner_dropout(self.activation(self.inner(x)))  # (N, 4D)
        return self.dropout(self.outer(hidden))


class AttentionLayer(nn.Module):
    """Multi-head self-attention and feed-forward network, each with residual and post-norm.

    direct_conv: width of a `DirectConv`, which sees earlier rows alone; 0 = none.
    """

    def __init__(
        self, d_model: int, n_heads: int, dropout: float, causal: bool, direct_conv: int = 0
    ):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"model.n_heads={n_heads}: must divide model.d_model={d_model}")
        self.n_heads, self.causal = n_heads, causal
        self.qkv_proj = nn.Linear(d_model, 3 * d_model)  # queries, then keys, then values
        self.out_proj = nn.Linear(d_model, d_model)
        self.direct_conv = DirectConv(d_model, direct_conv) if direct_conv else None
        self.attention_norm = nn.LayerNorm(d_model, eps=NORM_EPS)
        self.pffn = FeedForward(d_model, dropout)
        self.pffn_norm = nn.LayerNorm(d_model, eps=NORM_EPS)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, batch: SequenceBatch, rectangles: Rectangles) -> Tensor:
        """x (N, D) -> (N, D)."""
        y = packed_attention(self.qkv_proj(x), rectangles, self.causal, self._weight_dropout)
        y = self.out_proj(y)
        return self._merge(x, y if self.direct_conv is None else y + self.direct_conv(x, batch))

    def last_rows(self, x: Tensor, batch: SequenceBatch) -> Tensor:
        """x (N, D) -> the rows of `forward` at the end of each sequence (B, D)."""
        d_model, last = x.shape[1], x[batch.last]
        weight, bias = self.qkv_proj.weight, self.qkv_proj.bias
        q = F.linear(last, weight[:d_model], bias[:d_model])
        kv = F.linear(x, weight[d_model:], bias[d_model:])
        y = self.out_proj(last_attention(q, kv, batch, self.n_heads, self._weight_dropout))
        if self.direct_conv is not None:
            y = y + self.direct_conv(x, batch)[batch.last]
        return self._merge(last, y)

    @property
    def _weight_dropout(self) -> float:
        return self.dropout.p if self.training else 0.0

    def _merge(self, x: Tensor, y: Tensor) -> Tensor:
        s = self.attention_norm(x + self.dropout(y))
        return self.pffn_norm(s + self.pffn(s))


class Rectangles(NamedTuple):
    """Where packed rows lie when sequences of about one length are padded to the longest of them.

    shapes: (b, T) of each rectangle, kept as (b, H, T) rows of d columns. lengths: of its
    sequences, (b,) each. place (N, H) int64: of each packed row and head, in all rectangles end to
    end.
    """

    shapes: list[tuple[int, int]]
    lengths: list[Tensor]
    place: Tensor

    @classmethod
    def of(cls, batch: SequenceBatch, n_heads: int) -> Rectangles:
        """One rectangle for the lengths up to each power of two."""
        starts, lengths = batch.cu_seqlens_host[:-1], batch.cu_seqlens_host.diff()
        bucket = torch.frexp((lengths - 1).double()).exponent.clamp(min=SMALLEST_BUCKET).long()
        longest = torch.zeros(64, dtype=torch.int64).scatter_reduce_(0, bucket, lengths, "amax")
        width = longest[bucket]  # (B,): T of a sequence's rectangle
        order = width.argsort(stable=True)
        corner = torch.empty_like(width)  # (B,): rows of rectangles before a sequence
        corner[order] = width[order].cumsum(0) - width[order]
        sequence = torch.repeat_interleave(lengths)  # (N,)
        row = torch.arange(len(sequence)) - starts[sequence]
        head = torch.arange(n_heads) * width[sequence, None]  # (N, H)
        place = n_heads * corner[sequence, None] + head + row[:, None]
        widths, counts = width[order].unique_consecutive(return_counts=True)
        device = batch.items.device
        return cls(
            list(zip(counts.tolist(), widths.tolist())),
            [inside.to(device) for inside in lengths[order].split(counts.tolist())],
            place.to(device),
        )


def packed_attention(qkv: Tensor, rectangles: Rectangles, causal: bool, p: float) -> Tensor:
    """Attention of each row to its sequence; if causal, to itself and the rows before it.

    qkv (N, 3D): queries, keys, values. p: dropout of the weights. Returns (N, D).
    """
    shapes, lengths, place = rectangles
    rows, n_heads = place.shape
    d = qkv.shape[1] // (3 * n_heads)
    sizes = [b * n_heads * t for b, t in shapes]
    total = sum(sizes)
    places = place[:, None] + total * torch.arange(3, device=place.device)[:, None]  # (N, 3, H)
    padded = qkv.new_zeros(3 * total, d).index_copy_(0, places.flatten(), qkv.view(-1, d))
    parts, outputs = padded.split(3 * sizes), []
    for i, (b, t) in enumerate(shapes):
        q, k, v = (part.view(b, n_heads, t, d) for part in parts[i :: len(shapes)])
        # Padding is on the right: no real row sees it if each sees only the rows before it.
        outputs.append(_attend(q, k, v, None if causal else lengths[i], p).view(-1, d))
    return torch.cat(outputs).index_select(0, place.flatten()).view(rows, -1)


def _attend(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, p: float) -> Tensor:
    """q, k, v (b, H, T, d) -> (b, H, T, d).

    lengths (b,): each row sees the keys before it; None: itself and the rows before it.
    """
    b, n_heads, t, d = q.shape
    mask = None
    if lengths is not None:
        beyond = torch.arange(t, device=q.device) >= lengths[:, None]
        mask = q.new_zeros(b, 1, 1, t).masked_fill_(beyond[:, None, None], -torch.inf)
    # With dropout, torch's takes 1.2 to 2.8 times the time of the products below on the CPU
    # (measured); without, the same time and no memory for the weights.
    if p == 0 or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, mask, p, is_causal=mask is None)
    if mask is None:
        mask = q.new_full((t, t), -torch.inf).triu_(1)
    mask = mask.expand(b, n_heads, -1, t).flatten(0, 1)  # (bH, 1 or T, T)
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    wide = torch.promote_types(q.dtype, torch.float32)  # sums over rows
    scores = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=d**-0.5)
    weights = scores.softmax(2, dtype=wide).to(q.dtype)
    return torch.bmm(dropout(weights, p), v)


def last_attention(q: Tensor, kv: Tensor, batch: SequenceBatch, n_heads: int, p: float) -> Tensor:
    """Attention of one query per sequence (B, D) to all rows of its sequence, on packed rows.

    kv (N, 2D): keys, values. p: dropout of the weights. Returns (B, D).
    """
    sequence = batch.sequence
    wide = torch.promote_types(q.dtype, torch.float32)  # sums over rows
    q = q.to(wide).unflatten(1, (n_heads, -1))  # (B, H, d)
    k, v = kv.to(wide).unflatten(1, (2, n_heads, -1)).unbind(1)  # (N, H, d)
    scores = (q[sequence] * k).sum(2) * q.shape[2] ** -0.5  # (N, H)
    index = sequence[:, None].expand_as(scores)
    top = scores.new_zeros(q.shape[:2]).scatter_reduce_(
        0, index, scores.detach(), "amax", include_self=False
    )
    e = (scores - top[sequence]).exp()
    weights = e / torch.zeros_like(top).index_add(0, sequence, e)[sequence]
    mixed = dropout(weights, p)[:, :, None] * v
    return torch.zeros_like(q).index_add(0, sequence, mixed).flatten(1)
