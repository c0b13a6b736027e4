"""Numbers as messages say them: counts with their noun, durations, sizes, and lists of similar lines."""

import re
from collections.abc import Iterable

_IRREGULAR = {"copy": "copies", "entry": "entries", "query": "queries", "is": "are", "has": "have", "was": "were"}
_DIGITS = re.compile(r"\d+")


def count(number: int, noun: str) -> str:
    """A count with its noun: `1 file`, `1,200 files`, `1 further image`. The last word of `noun` takes the plural."""
    return f"{number:,} {plural(number, noun)}"


def plural(number: int, noun: str) -> str:
    """The noun (or `is`, `has`, `was`) as it stands after a number; the last word takes the plural."""
    if number == 1:
        return noun
    first, space, last = noun.rpartition(" ")
    ending = "es" if last.endswith(("s", "x", "ch", "sh")) else "s"
    return f"{first}{space}{_IRREGULAR.get(last, last + ending)}"


def duration(seconds: float) -> str:
    """A duration in its two largest units: `42 s`, `3 min 5 s`, `7 h 12 min`, `10 days 4 h`."""
    total = max(0, round(seconds))
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return _two_units(total, 60, "min", 1, "s")
    if total < 86_400:
        return _two_units(total, 3600, "h", 60, "min")
    days = total // 86_400
    return _two_units(total, 86_400, plural(days, "day"), 3600, "h")


def _two_units(total: int, large: int, large_unit: str, small: int, small_unit: str) -> str:
    whole, rest = divmod(total, large)
    return f"{whole:,} {large_unit}" + (f" {rest // small} {small_unit}" if rest // small else "")


def size(bytes: float) -> str:
    """A number of bytes with a decimal unit: 1,234 is `1 kB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if bytes < 1000:
            return f"{bytes:.0f} {unit}"
        bytes /= 1000
    return f"{bytes:,.1f} TB"


def rate(per_second: float, unit: str) -> str:
    """A rate with as many digits as it needs: `1,234 images/s`, `12.3 images/s`, `0.045 images/s`."""
    digits = f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"
    return f"{digits} {unit}/s"


def kind(line: str) -> str:
    """What lines have in common that differ in numbers only, such as those about two shards."""
    return _DIGITS.sub("0", line)


def group(lines: Iterable[str], shown: int = 10) -> list[str]:
    """Lines that differ in numbers only become one: the first of them, with the number of the others.

    Args:
        lines: The lines.
        shown: Largest number of groups. The last line says how many lines belong to the others.
    """
    groups: dict[str, list[str]] = {}
    for line in lines:
        groups.setdefault(kind(line), []).append(line)
    ordered = sorted(groups.values(), key=len, reverse=True)
    grouped = [
        f"{members[0]} (and {count(len(members) - 1, 'more line')} like this)" if len(members) > 1 else members[0]
        for members in ordered[:shown]
    ]
    if rest := sum(map(len, ordered[shown:])):
        grouped.append(f"{count(rest, 'further line')} of other kinds; the log has them all")
    return grouped
