"""Attention of decoding rows over the blocks of the paged cache where they lie, by one Triton program a row and head.

A program has the queries of one key-value head of one row (they share its keys), walks over the row's blocks by its
table and keeps a running softmax (PagedAttention, Kwon et al. 2023; the online softmax of Milakov & Gimelshein 2018).
Few rows with long contexts are split over several programs, whose parts a second kernel adds (flash decoding, Dao et
al. 2023). The new token's key and value come from the projections and are written to the cache on the way, so nothing
has to wait for a write. Import it only where there is Triton.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]
from jaxtyping import Float, Int
from torch import Tensor

FEW, MANY = (128, 4, 2), (64, 2, 3)
"""Keys that a program looks at together, its warps and stages: where programs are few, and where they fill a GPU."""
KEYS_A_PROGRAM = 512
"""A row's keys go to several programs where there are more."""
PROGRAMS = 264
"""Programs that fill a GPU of today: no row is split further."""


@triton.jit
def _capped(scores, softcap, CAPPED: tl.constexpr):  # type: ignore[no-untyped-def]
    """`softcap * tanh(scores / softcap)`, or `scores` themselves."""
    if CAPPED:
        scores = softcap * (2.0 * tl.sigmoid(2.0 * scores / softcap) - 1.0)
    return scores


@triton.jit
def _turned(x, real, cos, sin, d, TURNED: tl.constexpr):  # type: ignore[no-untyped-def]
    """The numbers at `x`, (row, d) or (1, d), with the first TURNED of each row rotated; the sines have
    rotate_half's sign (`rotary`)."""
    plain = tl.load(x + d, mask=real, other=0.0)
    if TURNED > 0:
        turned = d < TURNED
        c = tl.load(cos + d, mask=turned, other=1.0).to(tl.float32)
        s = tl.load(sin + d, mask=turned, other=0.0).to(tl.float32)
        pair = tl.load(x + tl.where(turned, (d + TURNED // 2) % TURNED, 0), mask=real, other=0.0)
        plain = (plain.to(tl.float32) * c + pair.to(tl.float32) * s).to(plain.dtype)
    return plain


@triton.jit
def _attend_kernel(  # type: ignore[no-untyped-def]
    q, k, v, cos, sin, keys, values, table, positions, out, totals,
    q_row, q_head, k_row, k_head, v_row, v_head, table_row, scale, softcap, window,
    GROUP: tl.constexpr, N_KV: tl.constexpr, TURNED: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr,
    BLOCK: tl.constexpr, TILE: tl.constexpr, SPLITS: tl.constexpr, CAPPED: tl.constexpr, WINDOWED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    row, head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    position = tl.load(positions + row).to(tl.int32)
    blocks, cos, sin = table + row * table_row, cos + row * TURNED, sin + row * TURNED
    d, g, n = tl.arange(0, WIDE)[None, :], tl.arange(0, 16), tl.arange(0, TILE)
    real, asked = d < WIDTH, (g[:, None] < GROUP) & (d < WIDTH)
    queries = _turned(q + row * q_row + (head * GROUP + g[:, None]) * q_head, asked, cos, sin, d, TURNED)
    highest = tl.full((16,), -1e30, tl.float32)
    total, sums = tl.zeros((16,), tl.float32), tl.zeros((16, WIDE), tl.float32)
    if split == 0:  # the new token itself
        key = _turned(k + row * k_row + head * k_head, real, cos, sin, d, TURNED)
        value = tl.load(v + row * v_row + head * v_head + d, mask=real, other=0.0)
        block = tl.load(blocks + position // BLOCK)
        place = ((block * BLOCK + position % BLOCK) * N_KV + head) * WIDTH + d
        tl.store(keys + place, key, mask=real)
        tl.store(values + place, value, mask=real)
        highest = _capped(tl.sum(queries.to(tl.float32) * key.to(tl.float32), 1) * scale, softcap, CAPPED)
        total += 1.0
        sums += value.to(tl.float32)
    first = tl.maximum(position + 1 - window, 0) // TILE * TILE if WINDOWED else 0
    each = (position - first + SPLITS * TILE - 1) // (SPLITS * TILE) * TILE
    for start in range(first + split * each, tl.minimum(first + split * each + each, position), TILE):
        token = start + n
        seen = (token < position) & (token > position - window) if WINDOWED else token < position
        block = tl.load(blocks + token // BLOCK, mask=seen, other=0)
        place = ((block * BLOCK + token % BLOCK) * N_KV + head)[:, None] * WIDTH + d
        key = tl.load(keys + place, mask=seen[:, None] & real, other=0.0)
        value = tl.load(values + place, mask=seen[:, None] & real, other=0.0)
        scores = _capped(tl.dot(queries, tl.trans(key), input_precision=PRECISION) * scale, softcap, CAPPED)
        scores = tl.where(seen[None, :], scores, -float("inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        shrink, pattern = tl.exp(highest - higher), tl.exp(scores - higher[:, None])
        total = total * shrink + tl.sum(pattern, 1)
        sums = sums * shrink[:, None] + tl.dot(pattern.to(value.dtype), value, input_precision=PRECISION)
        highest = higher
    mean = sums / tl.where(total > 0.0, total, 1.0)[:, None]
    at = ((row * N_KV + head) * GROUP + g) * SPLITS + split
    tl.store(out + at[:, None] * WIDTH + d, mean.to(out.dtype.element_ty), mask=asked)
    if SPLITS > 1:
        tl.store(totals + at, highest + tl.log(total), mask=g < GROUP)  # nothing seen: -inf


@triton.jit
def _merge_kernel(  # type: ignore[no-untyped-def]
    parts, totals, out, WIDTH: tl.constexpr, WIDE: tl.constexpr, SPLITS: tl.constexpr, MANY: tl.constexpr
):
    at, s, d = tl.program_id(0).to(tl.int64), tl.arange(0, MANY), tl.arange(0, WIDE)
    logs = tl.load(totals + at * SPLITS + s, mask=s < SPLITS, other=-float("inf"))
    share = tl.exp(logs - tl.max(logs, 0))
    inside = (s[:, None] < SPLITS) & (d[None, :] < WIDTH)
    part = tl.load(parts + (at * SPLITS + s[:, None]) * WIDTH + d[None, :], mask=inside, other=0.0)
    mean = tl.sum(part * share[:, None], 0) / tl.sum(share, 0)
    tl.store(out + at * WIDTH + d, mean.to(out.dtype.element_ty), mask=d < WIDTH)


def splits_for(n_rows: int, n_kv_heads: int, n_keys: int) -> int:
    """How many programs share the keys of one row and head."""
    return max(1, min(-(-n_keys // KEYS_A_PROGRAM), PROGRAMS // (n_rows * n_kv_heads)))


SCHEMA = (
    "(Tensor q, Tensor k, Tensor v, Tensor? cos, Tensor? sin, Tensor(a!) keys, Tensor(b!) values, "
    "Tensor table, Tensor positions, float scale, float softcap, int window) -> Tensor"
)


class CachedRows(NamedTuple):
    """Where a layer's keys and values lie, and where each row is."""

    keys: Float[Tensor, "block place kv_head d_head"]
    values: Float[Tensor, "block place kv_head d_head"]
    table: Int[Tensor, "row block"]
    positions: Int[Tensor, " row"]


def attend_paged(
    q: Float[Tensor, "row head d_head"],
    k: Float[Tensor, "row kv_head d_head"],
    v: Float[Tensor, "row kv_head d_head"],
    cached: CachedRows,
    *,
    scale: float,
    softcap: float = 0.0,
    window: int = 0,
    rotation: tuple[Float[Tensor, "row rotary_dim"], Float[Tensor, "row rotary_dim"]] | None = None,
) -> Float[Tensor, "row head d_head"]:
    """Attention of each row's one new token, at its position, to itself and to all before it that its blocks hold.

    `k` and `v` are the new token's and are written to the cache. With a `rotation` (cosines and signed sines, as in
    `rotary.Rotation`) `q` and `k` come unrotated. A `softcap` or `window` of 0 is none. In bfloat16 and float16 scores
    are summed in float32, the pattern is rounded to the cache's type.
    """
    cos, sin = (None, None) if rotation is None else rotation
    found: Tensor = _attend_paged(q, k, v, cos, sin, *cached, scale, softcap, window)
    return found


@torch.library.custom_op("alignlab::attend_paged", mutates_args=("keys", "values"), schema=SCHEMA)
def _attend_paged(  # type: ignore[no-untyped-def]
    q, k, v, cos, sin, keys, values, table, positions, scale, softcap, window
):
    n_rows, n_heads, width = q.shape
    n_kv, block = k.shape[1], keys.shape[1]
    splits = splits_for(n_rows, n_kv, table.shape[1] * block)
    tile, warps, stages = FEW if n_rows * n_kv * splits <= PROGRAMS else MANY
    wide, precision = triton.next_power_of_2(max(width, 16)), "ieee" if q.dtype is torch.float32 else "tf32"
    out = torch.empty((n_rows, n_heads, width), dtype=q.dtype, device=q.device)
    parts, totals = out, out
    if splits > 1:
        parts = torch.empty((n_rows, n_heads, splits, width), dtype=torch.float32, device=q.device)
        totals = torch.empty((n_rows, n_heads, splits), dtype=torch.float32, device=q.device)
    _attend_kernel[(n_rows, n_kv, splits)](
        q, k, v, q if cos is None else cos.contiguous(), q if sin is None else sin.contiguous(),
        keys, values, table, positions, parts, totals,
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1), table.stride(0),
        scale, softcap, window,
        GROUP=n_heads // n_kv, N_KV=n_kv, TURNED=0 if cos is None else cos.shape[1], WIDTH=width,
        WIDE=wide, BLOCK=block, TILE=tile, SPLITS=splits,
        CAPPED=softcap > 0, WINDOWED=window > 0, PRECISION=precision, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    if splits > 1:
        _merge_kernel[(n_rows * n_heads,)](
            parts, totals, out, WIDTH=width, WIDE=wide, SPLITS=splits, MANY=triton.next_power_of_2(splits)
        )
    return out


@_attend_paged.register_fake
def _(q, k, v, cos, sin, keys, values, table, positions, scale, softcap, window):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape)
