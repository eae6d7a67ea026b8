"""Tiles of queries, keys and position terms, read and written by the GPU kernels of attention.

Windows are cut out of the grid as it lies in memory: of a window only what is inside the grid asks,
and what is beyond it answers with the same key and value everywhere.
"""

import triton
import triton.language as tl


@triton.jit
def load_part(start, rows, valid, row_stride, FIRST: tl.constexpr, WIDTH: tl.constexpr,
              D: tl.constexpr):  # fmt: skip
    """Channels FIRST to FIRST + WIDTH of `rows`, zero where not valid or not below D."""
    channels = FIRST + tl.arange(0, WIDTH)
    places = start + rows[:, None] * row_stride + channels[None, :]
    return tl.load(places, mask=valid[:, None] & (channels < D)[None, :], other=0.0)


@triton.jit
def store_part(start, rows, valid, row_stride, values, FIRST: tl.constexpr, WIDTH: tl.constexpr,
               D: tl.constexpr):  # fmt: skip
    """The inverse of `load_part`."""
    channels = FIRST + tl.arange(0, WIDTH)
    places = start + rows[:, None] * row_stride + channels[None, :]
    values = values.to(start.dtype.element_ty)
    tl.store(places, values, mask=valid[:, None] & (channels < D)[None, :])


@triton.jit
def window_of(program, heads, GRID: tl.constexpr, SIDE: tl.constexpr):
    """Image, head, first row and column of the window of a program, and its rows and columns."""
    COUNT: tl.constexpr = (GRID + SIDE - 1) // SIDE
    head, place = program % heads, program // heads
    image, window = (place // (COUNT * COUNT)).to(tl.int64), place % (COUNT * COUNT)
    top, left = window // COUNT * SIDE, window % COUNT * SIDE
    return image, head, top, left, tl.minimum(SIDE, GRID - top), tl.minimum(SIDE, GRID - left)


@triton.jit
def tokens_of(places, top, left, columns, GRID: tl.constexpr, SIDE: tl.constexpr):
    """Tokens of the grid, given their places in what a window has inside it."""
    tokens = (top + places // columns) * GRID + left + places % columns
    return places if GRID == SIDE else tokens


@triton.jit
def keys_of_tile(tile, top, left, GRID: tl.constexpr, SIDE: tl.constexpr, ROWS: tl.constexpr,
                  COLUMNS: tl.constexpr):  # fmt: skip
    """Of each slot of a tile of keys: its row, its token, whether it is one, and in the grid."""
    slots = tl.arange(0, ROWS * COLUMNS)
    row, column = tile * ROWS + slots // COLUMNS, slots % COLUMNS
    exists = (row < SIDE) & (column < SIDE)
    inside = exists & (top + row < GRID) & (left + column < GRID)
    return row, (top + row) * GRID + left + column, exists, inside


@triton.jit
def load_keys(start, keys, inside, stride, padding, PADDED: tl.constexpr, FIRST: tl.constexpr,
               WIDTH: tl.constexpr, D: tl.constexpr):  # fmt: skip
    """Channels of a tile of keys or values, the padding's own beyond the grid."""
    if PADDED:
        channels = FIRST + tl.arange(0, WIDTH)
        places = start + keys[:, None] * stride + channels[None, :]
        places = tl.where(inside[:, None], places, (padding + channels)[None, :])
        part = tl.load(places, mask=(channels < D)[None, :], other=0.0)
    else:
        part = load_part(start, keys, inside, stride, FIRST, WIDTH, D)
    return part


@triton.jit
def column_tile(terms, queries, valid, heads, PITCH: tl.constexpr, ROWS: tl.constexpr,
                 COLUMNS: tl.constexpr):  # fmt: skip
    """Column terms of a tile of queries for a tile of keys, the same for all tiles of keys."""
    column = tl.arange(0, ROWS * COLUMNS) % COLUMNS
    places = terms + PITCH + queries[:, None] * (heads * 2 * PITCH) + column[None, :]
    return tl.load(places, mask=valid[:, None] & (column < PITCH)[None, :], other=0.0)


@triton.jit
def row_terms_tile(terms, queries, valid, heads, PITCH: tl.constexpr, COLUMNS: tl.constexpr):
    """Row terms of a tile of queries for all rows of keys, (queries, COLUMNS)."""
    row = tl.arange(0, COLUMNS)
    places = terms + queries[:, None] * (heads * 2 * PITCH) + row[None, :]
    return tl.load(places, mask=valid[:, None] & (row < PITCH)[None, :], other=0.0)


@triton.jit
def row_choice(key_row, DTYPE: tl.constexpr, COLUMNS: tl.constexpr):
    """One where a key lies in a row: (COLUMNS, keys)."""
    return (tl.arange(0, COLUMNS)[:, None] == key_row[None, :]).to(DTYPE)


@triton.jit
def store_sum(start, values, chosen, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):
    """The sum of the chosen rows of a tile."""
    channels = FIRST + tl.arange(0, WIDTH)
    total = tl.sum(tl.where(chosen[:, None], values, 0.0), 0)
    tl.store(start + channels, total, mask=channels < D)
