"""One zstd frame (RFC 8878), decoded with the standard library alone.

As `.lil` files have them: the frame declares the size of its content, uses no dictionary and has no checksum, for what
a `.lil` file holds has been checked by its SHA-256 before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from lilliput.errors import FormatError

MAGIC = b"\x28\xb5\x2f\xfd"
BLOCK = 1 << 17  # no block holds more
HUFFMAN_BITS = 11  # the longest code of a literal

Lookup = tuple[list[int], int]  # symbol and length of the code (symbol | length << 8) for every so many bits
Fse = list[
    tuple[int, int, int]
]  # for each state: a symbol, the bits of the step to the next state, what they are added to
Codes = list[tuple[int, int, int, int]]  # likewise, with the symbol's number given as a base and the bits added to it
Step = tuple[int, int, int]  # literals to copy, offset as written, length to match


def decompress(frame: bytes, size: int) -> bytes:
    """The content of `frame`, which must be of `size` bytes; more than that is never allocated."""
    source = _Source(frame)
    declared, limit = _frame_header(source)
    _need(not frame[4] & 4, "a frame with a checksum of its own")
    _need(declared == size, f"the frame declares {declared} bytes, {size} are expected")
    out, memory, last = bytearray(), _Memory(), False
    while not last:
        head = source.number(3)
        last, kind, stored = bool(head & 1), head >> 1 & 3, head >> 3
        room = min(limit, size - len(out))
        _need(stored <= (room if kind < 2 else limit), "a block larger than allowed")
        if kind == 0:
            out += source.take(stored)
        elif kind == 1:
            out += source.take(1) * stored
        elif kind == 2:
            block = _Source(source.take(stored))
            literals = _literals(block, memory, room)
            _execute(_steps(block, memory), literals, memory, out, room)
        else:
            _refuse("a block of a reserved type")
    _need(len(out) == size, f"the content is of {len(out)} bytes, {size} were declared")
    _need(not source.left, "bytes after the frame")
    return bytes(out)


def content_size(frame: bytes) -> int:
    """The size of the content that the frame declares; nothing is decoded."""
    return _frame_header(_Source(frame))[0]


def _refuse(why: str) -> NoReturn:
    raise FormatError("the zstd frame is damaged", why=why)


def _need(condition: object, why: str) -> None:
    if not condition:
        _refuse(why)


class _Source:
    """Bytes, read from the front."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, count: int) -> bytes:
        _need(count <= self.left, "it ends too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    def rest(self) -> bytes:
        return self.take(self.left)


@dataclass
class _Memory:
    """What a block takes over from those before it."""

    tree: Lookup | None = None
    codes: list[Codes | None] = field(
        default_factory=lambda: [None, None, None]
    )  # of literal lengths, offsets, matches
    offsets: list[int] = field(default_factory=lambda: [1, 4, 8])


# 3.1.1.1 Frame header


def _frame_header(source: _Source) -> tuple[int, int]:
    """The size of the content, and the largest that a block may be."""
    _need(source.take(4) == MAGIC, "it does not begin as a frame")
    flags = source.number(1)
    single = flags & 32
    _need(not flags & 8, "a reserved bit is set")
    _need(single or flags >> 6, "it does not declare the size of its content")
    window = 0 if single else source.number(1)
    _need(source.number((0, 1, 2, 4)[flags & 3]) == 0, "it needs a dictionary")
    width = 1 << (flags >> 6)
    content = source.number(width) + (256 if width == 2 else 0)
    if single:
        return content, min(content, BLOCK)
    base = 1 << (10 + (window >> 3))
    return content, min(base + base // 8 * (window & 7), BLOCK)


# 3.1.1.3.1 Literals


def _literals(block: _Source, memory: _Memory, room: int) -> bytes:
    head = block.number(1)
    kind, form = head & 3, head >> 2 & 3
    if kind < 2:  # as they are, or one byte repeated
        more, shift = ((0, 3), (1, 4), (0, 3), (2, 4))[form]
        size = (head | block.number(more) << 8) >> shift
        _need(size <= room, "more literals than the block holds")
        return block.take(size) if kind == 0 else block.take(1) * size
    more, width = ((2, 10), (2, 10), (3, 14), (4, 18))[form]
    sizes = (head | block.number(more) << 8) >> 4
    size, stored = sizes & ((1 << width) - 1), sizes >> width
    _need(size <= room, "more literals than the block holds")
    section = _Source(block.take(stored))
    if kind == 2:
        memory.tree = _tree(section)
    if memory.tree is None:
        _refuse("literals without a tree")
    if form == 0:
        return _huffman(section.rest(), size, memory.tree)
    jumps, quarter = [section.number(2) for _ in range(3)], (size + 3) // 4
    _need(size >= 3 * quarter, "four streams of too few literals")
    parts = [_huffman(section.take(jump), quarter, memory.tree) for jump in jumps]
    return b"".join([*parts, _huffman(section.rest(), size - 3 * quarter, memory.tree)])


def _huffman(stream: bytes, count: int, tree: Lookup) -> bytes:
    """`count` literals of a stream, which is read from its end."""
    total = _bits(stream)
    padding = -len(stream) % 4
    # zeros below the stream, so that the last literals, too, can look further than their own code
    padded = bytes(4 + padding) + stream
    words = [int.from_bytes(padded[i : i + 4], "little") for i in range(len(padded) - 4, -1, -4)]
    held, have, at = words[0], 32 - (8 * len(stream) - total), 1
    lookup, width = tree
    mask, out = (1 << width) - 1, bytearray(count)
    for i in range(count):
        if have < width:
            if at == len(words):
                _refuse("a stream of literals ends too early")
            held = (held & ((1 << have) - 1)) << 32 | words[at]
            have += 32
            at += 1
        entry = lookup[held >> (have - width) & mask]
        have -= entry >> 8
        out[i] = entry & 255
    _need(have + 32 * (len(words) - at) == 32 + 8 * padding, "a stream of literals of another length than its codes")
    return bytes(out)


def _bits(stream: bytes) -> int:
    """The bits of a stream read from its end: those under its highest 1, which must be in its last byte."""
    _need(stream and stream[-1], "a stream without its end mark")
    return 8 * (len(stream) - 1) + stream[-1].bit_length() - 1


# 4.2.1 The tree of the literals


def _tree(section: _Source) -> Lookup:
    weights = _weights(section)
    total = sum(1 << weight >> 1 for weight in weights)
    _need(total, "a tree without codes")
    width = total.bit_length()
    rest = (1 << width) - total  # what the last symbol gets, whose weight is not stored
    _need(width <= HUFFMAN_BITS and rest & (rest - 1) == 0, "codes of the literals that do not make a tree")
    weights.append(rest.bit_length())
    lookup: list[int] = []
    for weight in range(1, width + 1):
        for symbol, its in enumerate(weights):
            if its == weight:
                lookup += [symbol | (width + 1 - weight) << 8] * (1 << weight >> 1)
    return lookup, width


def _weights(section: _Source) -> list[int]:
    head = section.number(1)
    if head < 128:
        return _weights_fse(_Source(section.take(head)))
    count = head - 127
    packed = section.take((count + 1) // 2)
    weights = [nibble for byte in packed for nibble in (byte >> 4, byte & 15)][:count]
    _need(max(weights) <= HUFFMAN_BITS, "a code of a literal is too long")
    return weights


def _weights_fse(section: _Source) -> list[int]:
    """Weights from two states that take turns on one stream, until it is used up."""
    counts, log = _counts(section, 6, HUFFMAN_BITS)
    table = _fse(counts, log)
    stream = section.rest()
    left, bits = _bits(stream), int.from_bytes(stream, "little")
    left -= 2 * log
    _need(left >= 0, "a stream of weights ends too early")
    mask = (1 << log) - 1
    states = [bits >> (left + log) & mask, bits >> left & mask]
    weights: list[int] = []
    turn = 0
    while True:
        symbol, width, base = table[states[turn]]
        weights.append(symbol)
        _need(len(weights) < 255, "more weights than literals")
        left -= width
        if left < 0:  # the other state holds the last one
            return [*weights, table[states[1 - turn]][0]]
        states[turn] = base + (bits >> left & ((1 << width) - 1))
        turn = 1 - turn


# 4.1 FSE tables


def _counts(section: _Source, most_log: int, most_symbol: int) -> tuple[list[int], int]:
    """How many states each symbol has (-1: one, with all bits anew), and the logarithm of their number."""
    bits = int.from_bytes(section.data[section.at : section.at + 128], "little")  # longer than any that is allowed
    log, at = (bits & 15) + 5, 4
    _need(log <= most_log, "a table of too many states")
    counts: list[int] = []
    left = 1 << log
    while left:
        # a number from 0 to left + 1; the smaller of them take one bit less
        width = (left + 1).bit_length()
        short = (1 << width) - left - 2
        value = bits >> at & ((1 << width) - 1)
        low = value & ((1 << width >> 1) - 1)
        if low < short:
            value, width = low, width - 1
        elif low != value:
            value -= short
        at += width
        counts.append(value - 1)
        left -= abs(value - 1)
        more = 3 if value == 1 else 0  # after a symbol without states: how many like it follow
        while more == 3:
            more = bits >> at & 3
            at += 2
            counts += [0] * more
        # one more must fit in while states are left
        _need(len(counts) <= most_symbol + (not left), "a table of too many symbols")
    section.take((at + 7) // 8)
    return counts, log


def _fse(counts: Sequence[int], log: int) -> Fse:
    size = 1 << log
    rare = [symbol for symbol, count in enumerate(counts) if count < 0]
    top = size - len(rare)
    symbols = [0] * top + rare[::-1]
    step, at = (size >> 1) + (size >> 3) + 3, 0
    for symbol, count in enumerate(counts):
        for _ in range(count):
            symbols[at] = symbol
            at = (at + step) % size
            while at >= top:
                at = (at + step) % size
    following = [abs(count) for count in counts]
    table: Fse = []
    for symbol in symbols:
        width = log + 1 - following[symbol].bit_length()
        table.append((symbol, width, (following[symbol] << width) - size))
        following[symbol] += 1
    return table


# 3.1.1.3.2 Sequences


def _bases(first: int, widths: Sequence[int]) -> list[tuple[int, int]]:
    """Base and bits of each code, when every code goes on where the one before it ends."""
    bases = [first]
    for width in widths:
        bases.append(bases[-1] + (1 << width))
    return list(zip(bases, widths, strict=False))


# of literal lengths, offsets and matches, in the order of the file: bases and bits, the largest logarithm of a table,
# and the predefined table with its logarithm
KINDS: tuple[tuple[list[tuple[int, int]], int, int, list[int]], ...] = (
    (
        _bases(0, [0] * 16 + [1, 1, 1, 1, 2, 2, 3, 3, 4, *range(6, 17)]),
        9,
        6,
        [4, 3, *[2] * 11, 1, 1, 1, *[2] * 9, 3, 2, *[1] * 5, *[-1] * 4],
    ),
    ([(1 << code, code) for code in range(32)], 8, 5, [*[1] * 6, 2, 2, 2, *[1] * 15, *[-1] * 5]),
    (
        _bases(3, [0] * 32 + [1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, *range(7, 17)]),
        9,
        6,
        [1, 4, 3, *[2] * 6, *[1] * 37, *[-1] * 7],
    ),
)


def _codes(block: _Source, memory: _Memory, which: int, mode: int) -> Codes:
    bases, most_log, log, predefined = KINDS[which]
    if mode == 3:
        kept = memory.codes[which]
        if kept is None:
            _refuse("a table is to be repeated that was never there")
        return kept
    if mode == 1:
        symbol = block.number(1)
        _need(symbol < len(bases), "a code that does not exist")
        table: Fse = [(symbol, 0, 0)]
    elif mode == 2:
        table = _fse(*_counts(block, most_log, len(bases) - 1))
    else:
        table = _fse(predefined, log)
    codes = [(*bases[symbol], width, base) for symbol, width, base in table]
    memory.codes[which] = codes
    return codes


def _steps(block: _Source, memory: _Memory) -> Iterator[Step]:
    count = block.number(1)
    if count == 255:
        count = block.number(2) + 0x7F00
    elif count > 127:
        count = (count - 128 << 8) + block.number(1)
    if not count:
        _need(not block.left, "bytes after a block's literals")
        return
    modes = block.number(1)
    _need(not modes & 3, "a reserved bit is set")
    lengths, offsets, matches = (_codes(block, memory, which, modes >> (6 - 2 * which) & 3) for which in range(3))
    yield from _sequences(block.rest(), count, lengths, offsets, matches)


def _sequences(stream: bytes, count: int, lengths: Codes, offsets: Codes, matches: Codes) -> Iterator[Step]:
    left = _bits(stream)
    padded = bytes(16) + stream
    first = [len(codes).bit_length() - 1 for codes in (lengths, offsets, matches)]
    window, low = int.from_bytes(padded[-16:], "little"), 8 * len(stream) - 128
    left -= first[0]
    length = window >> (left - low) & (len(lengths) - 1)
    left -= first[1]
    offset = window >> (left - low) & (len(offsets) - 1)
    left -= first[2]
    match = window >> (left - low) & (len(matches) - 1)
    for remaining in range(count - 1, -1, -1):
        if left < 0:
            _refuse("the sequences end too early")
        # the 16 bytes below the place of reading; a sequence with its step takes 89 bits at most
        end = (left + 7) >> 3
        window, low = int.from_bytes(padded[end : end + 16], "little"), 8 * end - 128
        length_base, length_bits, length_step, length_next = lengths[length]
        offset_base, offset_bits, offset_step, offset_next = offsets[offset]
        match_base, match_bits, match_step, match_next = matches[match]
        at = left - low - offset_bits
        distance = offset_base + (window >> at & ((1 << offset_bits) - 1))
        at -= match_bits
        copied = match_base + (window >> at & ((1 << match_bits) - 1))
        at -= length_bits
        yield length_base + (window >> at & ((1 << length_bits) - 1)), distance, copied
        if remaining:
            at -= length_step
            length = length_next + (window >> at & ((1 << length_step) - 1))
            at -= match_step
            match = match_next + (window >> at & ((1 << match_step) - 1))
            at -= offset_step
            offset = offset_next + (window >> at & ((1 << offset_step) - 1))
        left = at + low
    _need(left == 0, "the sequences are of another length than their stream")


def _execute(steps: Iterator[Step], literals: bytes, memory: _Memory, out: bytearray, room: int) -> None:
    """Appends what the steps say to `out`, at most `room` bytes; what is left of the literals comes last."""
    end, at = len(out) + room, 0
    first, second, third = memory.offsets
    for length, written, match in steps:
        if at + length > len(literals) or len(out) + length + match > end:
            _refuse("a sequence of more bytes than there are")
        out += literals[at : at + length]
        at += length
        if written > 3:
            first, second, third = written - 3, first, second
        else:  # one of the last three offsets, counted one further after no literals
            which = written + (length == 0)
            if which == 2:
                first, second = second, first
            elif which == 3:
                first, second, third = third, first, second
            elif which == 4:
                first, second, third = first - 1, first, second
        if not 0 < first <= len(out):
            _refuse("an offset before the content")
        start = len(out) - first
        piece = out[start : start + match]
        out += piece if match <= first else (piece * (match // first + 1))[:match]
    memory.offsets = [first, second, third]
    _need(len(out) + len(literals) - at <= end, "a block of more bytes than allowed")
    out += literals[at:]
