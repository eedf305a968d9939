"""PAX extended header records, in both directions.

Source: POSIX.1-2017, pax, "pax Extended Header": ``length SP key=value LF``, length in decimal and including itself.
"""

from __future__ import annotations

import re

from paralayer.tar.header import HeaderError

_DECIMAL = re.compile(rb"[0-9]+\Z")
_TIME = re.compile(rb"(-?)([0-9]*)(?:\.([0-9]*))?\Z")
_LENGTH_DIGITS = 20


def parse_records(block: bytes) -> list[tuple[bytes, bytes]]:
    """Parse records that must fill `block` exactly, in their order."""
    records = []
    at = 0
    while at < len(block):
        space = block.find(b" ", at, at + _LENGTH_DIGITS)
        digits = block[at:space] if space > 0 else b""
        if not _DECIMAL.match(digits):
            raise HeaderError("PAX record without a length", repr(block[at : at + 16])[1:])
        stop = at + int(digits)
        if stop > len(block) or stop <= space + 1 or block[stop - 1] != 0x0A:
            raise HeaderError("PAX record with a wrong length", int(digits))
        key, separator, value = block[space + 1 : stop - 1].partition(b"=")
        if not separator or not key:
            raise HeaderError("PAX record without a key and '='", repr(key[:40])[1:])
        records.append((key, value))
        at = stop
    return records


def parse_integer(key: str, value: bytes) -> int:
    """Parse a decimal number of at most 63 bits."""
    digits = value[1:] if value[:1] == b"-" else value
    if not _DECIMAL.match(digits) or len(digits) > 30 or int(digits) >= 1 << 63:  # noqa: PLR2004 - far above 63 bits
        raise HeaderError(f"PAX {key}: malformed number", repr(value[:40])[1:])
    return int(value)


def parse_time(key: str, value: bytes) -> tuple[int, int]:
    """Parse a time to (seconds, nanoseconds), rounded down; nanoseconds are 0 to 999,999,999."""
    match = _TIME.match(value)
    if not match or not (match[2] or match[3]) or len(match[2]) > 18:  # noqa: PLR2004 - 18 digits are below 63 bits
        raise HeaderError(f"PAX {key}: malformed time", repr(value[:40])[1:])
    seconds = int(match[2] or b"0")
    fraction = match[3] or b""
    nanoseconds = int(fraction[:9].ljust(9, b"0"))
    if not match[1]:
        return seconds, nanoseconds
    if fraction[9:].strip(b"0"):
        nanoseconds += 1
    total = -(seconds * 10**9 + nanoseconds)
    return total // 10**9, total % 10**9


def pack_record(key: bytes, value: bytes) -> bytes:
    """Pack one record."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) != len(str(rest)):
        length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def pack_time(seconds: int, nanoseconds: int) -> bytes:
    """Pack a time, without a fraction where there is none."""
    if not nanoseconds:
        return b"%d" % seconds
    if seconds < 0:
        seconds, nanoseconds = seconds + 1, 10**9 - nanoseconds
        return b"-%d.%s" % (-seconds, (b"%09d" % nanoseconds).rstrip(b"0"))
    return b"%d.%s" % (seconds, (b"%09d" % nanoseconds).rstrip(b"0"))
