"""PAX extended header records, in both directions.

Source: POSIX.1-2017, pax, "pax Extended Header": ``length SP key=value LF``, length in decimal and including itself.
"""

from __future__ import annotations

import re

from paralayer.tar.header import HeaderError

_TIME = re.compile(rb"(-?)([0-9]+)(?:\.([0-9]*))?\Z")
_MAX_DIGITS = 19  # of 63 bits


def parse_records(block: bytes) -> list[tuple[bytes, bytes]]:
    """Parse records that must fill `block` exactly, in their order."""
    records = []
    at = 0
    while at < len(block):
        space = block.find(b" ", at)
        length = parse_decimal(block[at:space]) if space >= 0 else None
        if length is None:
            raise HeaderError("PAX record without a length", repr(block[at : at + 16])[1:])
        stop = at + length
        if stop > len(block) or stop <= space + 1 or block[stop - 1] != 0x0A:
            raise HeaderError("PAX record with a wrong length", length)
        key, separator, value = block[space + 1 : stop - 1].partition(b"=")
        if not separator or not key or b"\0" in key:
            raise HeaderError("PAX record without a key and '='", repr(key[:40])[1:])
        records.append((key, value))
        at = stop
    return records


def parse_decimal(digits: bytes) -> int | None:
    """Parse a decimal number of at most 63 bits, which may have leading zeros; None if it is not one."""
    significant = digits.lstrip(b"0")
    if not digits.isdigit() or len(significant) > _MAX_DIGITS:
        return None
    value = int(significant or b"0")
    return value if value < 1 << 63 else None


def parse_integer(key: str, value: bytes) -> int:
    """Parse a number of at most 63 bits and a sign."""
    number = parse_decimal(value.removeprefix(b"-"))
    if number is None:
        raise HeaderError(f"PAX {key}: malformed number", repr(value[:40])[1:])
    return -number if value[:1] == b"-" else number


def parse_time(key: str, value: bytes) -> tuple[int, int]:
    """Parse a time to (seconds of 64 bits, nanoseconds from 0 to 999,999,999); further digits are cut."""
    match = _TIME.match(value)
    digits = match[2].lstrip(b"0") if match else b""
    if not match or len(digits) > _MAX_DIGITS:
        raise HeaderError(f"PAX {key}: malformed time", repr(value[:40])[1:])
    total = int(digits or b"0") * 10**9 + int((match[3] or b"")[:9].ljust(9, b"0"))
    seconds, nanoseconds = divmod(-total if match[1] else total, 10**9)
    if not -(1 << 63) <= seconds < 1 << 63:
        raise HeaderError(f"PAX {key}: time out of range", repr(value[:40])[1:], "seconds of 64 bits")
    return seconds, nanoseconds


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
