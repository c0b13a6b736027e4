"""Who this client says it is, and whether an `X-Robots-Tag` header lets it use an image.

The header may occur several times. Each value is a list of directives. A name before a directive, as in
`otherbot: noindex`, limits it and those that follow to that client. A directive may have a value of its own, such as
`max-image-preview: large` or `unavailable_after: Fri, 25 Jun 2010 15:00:00 PST`.
"""

import datetime
import email.utils
import re
from collections.abc import Iterable

BROWSER = "Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:72.0) Gecko/20100101 Firefox/72.0"
_PROJECT = "https://github.com/rom1504/img2dataset"

FORBIDDING = frozenset({"noai", "noimageai", "noml", "noindex", "noimageindex", "none"})
"""Directives that forbid the use of an image."""

_WITH_VALUE = frozenset({"max-snippet", "max-image-preview", "max-video-preview", "unavailable_after"})
_NAMED = re.compile(r"([\w.*/-]+)\s*:\s*(.*)", re.DOTALL)
_WEEKDAY = re.compile(r"(mon|tue|wed|thu|fri|sat|sun)[a-z]*\.?", re.IGNORECASE)
_OWN_NAMES = frozenset({"*", "lotlip-data", "img2dataset"})


def user_agent_header(setting: str | None) -> str:
    """The User-Agent header for the value of `download.user_agent`."""
    if setting is None:
        return BROWSER
    return setting if re.search(r"[/ ]", setting) else f"{BROWSER} (compatible; {setting}; +{_PROJECT})"


def agent_names(setting: str | None) -> frozenset[str]:
    """The names, in lower case, by which an X-Robots-Tag header can address this client."""
    own_text = re.sub(r"\S*://\S*", " ", setting or "")
    return _OWN_NAMES | {name.lower() for name in re.findall(r"[A-Za-z][\w.-]*", own_text)} - {"mozilla"}


def forbids(headers: Iterable[str], names: frozenset[str]) -> bool:
    """Whether X-Robots-Tag headers forbid the use of the image.

    Args:
        headers: The value of each header.
        names: `agent_names` of this client.
    """
    return any(_forbids(header, names) for header in headers)


def _forbids(header: str, names: frozenset[str]) -> bool:
    items, addressed = header.split(","), True
    for index, item in enumerate(items):
        text = item.strip()
        while match := _NAMED.fullmatch(text):
            name = match[1].lower()
            if name == "unavailable_after":
                rest = [part.strip() for part in items[index + 1 : index + 2]] if _WEEKDAY.fullmatch(match[2]) else []
                if addressed and _is_past(" ".join(rest or [match[2]])):
                    return True
            if name in _WITH_VALUE:
                text = match[2].partition(" ")[2]
            elif name in FORBIDDING:
                text = name
            else:  # the name of a client
                addressed, text = name in names, match[2]
        if addressed and not FORBIDDING.isdisjoint(re.findall(r"[\w-]+", text.lower())):
            return True
    return False


def _is_past(text: str) -> bool:
    """Whether a date of RFC 822, RFC 850 or ISO 8601 is in the past. False if it is no such date."""
    now = datetime.datetime.now(datetime.UTC)
    rfc = email.utils.parsedate_to_datetime
    for parse, form in ((datetime.datetime.fromisoformat, text), (rfc, text), (rfc, f"{text} 00:00:00")):
        try:
            date = parse(form)
        except (ValueError, OverflowError):
            continue
        return (date if date.tzinfo else date.replace(tzinfo=datetime.UTC)) < now
    return False
