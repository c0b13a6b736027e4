"""The ASCII form of a host name: the name that browsers ask for, by UTS 46 without transitional mappings.

Every part that resolves, compares or checks a host uses this form, so that the host that is checked is the host that is
contacted. `str.encode("idna")` of the standard library is IDNA 2003 and gives another host for `ß` and final `ς`.
"""

import ipaddress
import re
from urllib.parse import unquote_to_bytes

import idna

_MAX_LABEL_LENGTH, _MAX_NAME_LENGTH = 63, 253
_FORBIDDEN = re.compile(r"[\x00-\x20\"#%/:<>?@\[\\\]^`{|}\x7f]")
"""Characters that no ASCII host name contains (WHATWG URL, forbidden domain code points)."""
_IPV6 = re.compile(r"[0-9a-fA-F:.]+(?:%[\w.~-]+)?", re.ASCII)


def ascii_host(name: str) -> str:
    """Convert a host name, or an IP address without brackets, to its ASCII form in lower case.

    Raises:
        ValueError: The name is empty, too long, or has a character that host names cannot have, such as a control or
            bidirectional formatting character.
    """
    if ":" in name:
        return _ipv6(name)
    if "%" in name:
        name = unquote_to_bytes(name).decode()  # UnicodeDecodeError is a ValueError
    mapped = name.lower() if name.isascii() else idna.uts46_remap(name, std3_rules=False, transitional=False)
    if _FORBIDDEN.search(mapped):
        raise ValueError("the host name has a character that is not allowed")
    labels = mapped.removesuffix(".").split(".")
    host = ".".join(map(_ascii_label, labels))
    if len(host) > _MAX_NAME_LENGTH or not all(0 < len(label) <= _MAX_LABEL_LENGTH for label in host.split(".")):
        raise ValueError("the host name is empty or too long")
    return host + "." * mapped.endswith(".")


def _ipv6(text: str) -> str:
    if not _IPV6.fullmatch(text):
        raise ValueError("the host name has a character that is not allowed")
    ipaddress.IPv6Address(text)
    return text.lower()


def _ascii_label(label: str) -> str:
    """One label in ASCII. UTS 46 also allows symbols, such as ☃, which IDNA 2008 alone does not."""
    if label.isascii():
        return label
    idna.check_nfc(label)
    idna.check_initial_combiner(label)
    idna.check_bidi(label)
    joiners = [position for position, character in enumerate(label) if character in "\u200c\u200d"]
    if not all(idna.valid_contextj(label, position) for position in joiners):
        raise ValueError("the host name has a joiner in a place where it is not allowed")
    return "xn--" + label.encode("punycode").decode("ascii")
