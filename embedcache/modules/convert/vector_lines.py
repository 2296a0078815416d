"""Lines of a word and its numbers → words and a float32 table, many lines at a time.

Almost all numbers of word vectors look alike: ``-0.12345``. The digits before and after
their points are loaded eight at a time as one 64-bit integer each, and all of a block's
integers are made into numbers by the same few array operations. That reads 4 to 5 times as
many bytes a second as Python's ``float`` and 3 times as many as ``numpy.loadtxt``. Whatever
looks otherwise (exponents, no point, more than 15 digits) is left to ``float``.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

_SPACE, _NEWLINE, _POINT, _MINUS = b" \n.-"
_NUMBER = re.compile(rb"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_NON_FINITE = re.compile(rb"[+-]?(?:nan|inf(?:inity)?)", re.IGNORECASE)
# So many bytes are loaded before a number's end; the first number needs something there.
_PADDING = 16
# 10¹⁵ < 2⁵³: digits of this number are an exact float64, and so is the power of ten that
# divides them; so the quotient is rounded once, as `float` does it (Clinger 1990).
_MAX_DIGITS = 15
_POWERS = 10 ** np.arange(_MAX_DIGITS + 1, dtype=np.int64)

_FLOAT_POWERS = _POWERS.astype(np.float64)

Indices = NDArray[np.intp]


class LineError(ValueError):
    """A line is not a word and its numbers.

    Attributes:
        position: Which line of the block, from 0.
        reason: What is wrong with it.
    """

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(reason)
        self.position = position
        self.reason = reason


def is_number(field: bytes) -> bool:
    """Whether a field is a decimal number, or stands for NaN or infinity."""
    return bool(_NUMBER.fullmatch(field) or _NON_FINITE.fullmatch(field))


def count_numbers(line: bytes) -> int:
    """How many numbers follow the word of a line: 0 if it is no such line.

    The word may hold spaces: what stands before the numbers that end the line is the word,
    if none of it but its first part is a number itself.
    """
    parts = line.split(b" ")[1:]
    count = 0
    while count < len(parts) and is_number(parts[-1 - count]):
        count += 1
    return 0 if any(map(is_number, parts[: len(parts) - count])) else count


def parse_lines(block: bytes, dim: int) -> tuple[list[bytes], NDArray[np.float32]]:
    r"""Read whole lines: a word, then `dim` numbers, with one space before each number.

    A word may hold spaces: the last `dim` fields are the numbers. Lines may end with one
    space more, and with ``\r\n``.

    Args:
        block: At least one line; each ends with ``\n``.
        dim: How many numbers a line has.

    Returns:
        words: One a line.
        vectors: (lines, dim) float32, each number rounded to float64 and then to float32.

    Raises:
        LineError: for another count of numbers, no word, a carriage return in the middle,
            a field that is no number, and a number that float32 cannot hold.
    """
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n")
    if b" \n" in block:
        block = block.replace(b" \n", b"\n")
    if b"\r" in block:
        position = block.count(b"\n", 0, block.index(b"\r"))
        raise LineError(position, "a carriage return stands inside the line")
    padded = b"\n" * _PADDING + block
    characters = np.frombuffer(padded, np.uint8)
    is_mark = (characters == _SPACE) | (characters == _NEWLINE) | (characters == _POINT)
    # The last newline of the padding stays: it is what the first line begins after.
    marks = np.flatnonzero(is_mark)[_PADDING - 1 :]
    separator_marks = np.flatnonzero(characters[marks] != _POINT)
    separators = marks[separator_marks]
    line_ends = np.flatnonzero(characters[separators] == _NEWLINE)
    _check_counts(block, np.diff(line_ends), dim)
    words = [
        padded[before + 1 : after]
        for before, after in zip(
            separators[line_ends[:-1]].tolist(),
            separators[line_ends[1:] - dim].tolist(),
            strict=True,
        )
    ]
    _check_words(words, np.diff(line_ends) - dim)
    numbers = (line_ends[1:, np.newaxis] - np.arange(dim - 1, -1, -1)).ravel()
    starts, ends = separators[numbers - 1] + 1, separators[numbers]
    has_point = separator_marks[numbers] - separator_marks[numbers - 1] == 2
    points = marks[separator_marks[numbers] - 1]
    values, is_plain = _parse_plain(characters, starts, points, ends)
    for place in np.flatnonzero(~(is_plain & has_point)).tolist():
        field = padded[starts[place] : ends[place]]
        values[place] = float(field) if is_number(field) else np.nan
    with np.errstate(over="ignore"):  # what becomes infinite is refused below
        vectors = values.astype(np.float32)
    if not np.isfinite(vectors).all():
        place = int(np.argmin(np.isfinite(vectors)))
        raise _number_fault(padded[starts[place] : ends[place]], place, dim)
    return words, vectors.reshape(-1, dim)


def shown(field: bytes) -> str:
    """A field of a file on one line, and not too long."""
    text = field.decode("utf-8", "replace")
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _parse_plain(
    characters: NDArray[np.uint8], starts: Indices, points: Indices, ends: Indices
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Parse numbers of the form ``-0.12345``.

    Args:
        characters: The text, with `_PADDING` characters before the first number.
        starts: (n,) where each number starts.
        points: (n,) where its point is; anywhere if it has none.
        ends: (n,) where it ends.

    Returns:
        values: (n,) float64; anything where the number has another form.
        is_plain: (n,) whether it has this form, provided that it has one point.
    """
    windows: NDArray[np.uint64] = np.ndarray(
        (len(characters) - 7,), "<u8", characters.data, strides=(1,)
    )
    is_negative = characters[starts] == _MINUS
    num_whole = points - starts - is_negative
    num_decimals = ends - points - 1
    num_digits = num_whole + num_decimals
    is_plain = (num_digits >= 1) & (num_digits <= _MAX_DIGITS) & (num_whole <= 8)
    digits, is_valid = _parse_digits(windows[points - 8], num_whole)
    is_plain &= is_valid
    num_decimals = np.clip(num_decimals, 0, _MAX_DIGITS)
    digits *= _POWERS[num_decimals]
    low_digits, is_valid = _parse_digits(windows[ends - 8], num_decimals)
    is_plain &= is_valid
    digits += low_digits
    if num_decimals.max() > 8:
        high_digits, is_valid = _parse_digits(windows[ends - 16], num_decimals - 8)
        is_plain &= is_valid
        digits += high_digits * _POWERS[8]
    values = digits / _FLOAT_POWERS[num_decimals]
    np.negative(values, out=values, where=is_negative)
    return values, is_plain


def _parse_digits(
    letters: NDArray[np.uint64], counts: Indices
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Parse the last `counts` of 8 characters as one whole number, for many at once.

    Args:
        letters: (n,) 8 ASCII characters each, the first one in the lowest byte; changed.
        counts: (n,) how many of them count; more than 8 is 8, less than 0 is 0.

    Returns:
        numbers: (n,) their values; anything where one of them is no digit.
        is_valid: (n,) whether they are all digits.
    """
    wide = np.uint64
    letters ^= wide(0x3030303030303030)  # "0" is 0x30: digits become their values
    unused_bits = ((8 - np.clip(counts, 0, 8)) * 8).astype(wide)
    letters >>= unused_bits
    letters <<= unused_bits
    # A byte above 9 reaches its highest bit when 0x76 is added, or has it already.
    above_nine = (letters + wide(0x7676767676767676)) | letters
    is_valid = (above_nine & wide(0x8080808080808080)) == 0
    # Neighbours are joined, first to two digits, then to four, then to eight.
    letters *= wide(10 << 8 | 1)
    letters >>= wide(8)
    letters &= wide(0x00FF00FF00FF00FF)
    letters *= wide(100 << 16 | 1)
    letters >>= wide(16)
    letters &= wide(0x0000FFFF0000FFFF)
    letters *= wide(10_000 << 32 | 1)
    letters >>= wide(32)
    return letters.astype(np.int64), is_valid


def _check_counts(block: bytes, num_fields: Indices, dim: int) -> None:
    if (num_fields > dim).all():
        return
    position = int(np.argmax(num_fields <= dim))
    count = count_numbers(block.split(b"\n", position + 1)[position])
    raise LineError(position, f"{count} of {dim} numbers follow the word")


def _check_words(words: list[bytes], num_parts: Indices) -> None:
    """Raise if a word is empty, or if its last part should be a number of the vector."""
    if b"" in words:
        raise LineError(words.index(b""), "the line begins with a space, so its word is empty")
    for position in np.flatnonzero(num_parts > 1).tolist():
        last = words[position].rpartition(b" ")[2]
        if is_number(last):
            raise LineError(
                position, f"more numbers than expected: {shown(last)} stands before the last ones"
            )


def _number_fault(field: bytes, place: int, dim: int) -> LineError:
    position, column = divmod(place, dim)
    reason = "is beyond float32" if _NUMBER.fullmatch(field) else "is not a finite number"
    if not is_number(field):
        reason = "is not a number"
    return LineError(position, f"number {column + 1} of {dim}, {shown(field)}, {reason}")
