"""The cookies of one chain of redirects: some hosts show an image only to clients that send back what they set."""

import re
import urllib.request
from email.message import Message
from http.cookiejar import CookieJar

_MAX_COOKIE_LENGTH = 4096
"""Characters of one Set-Cookie header. Browsers ignore longer ones."""

_MAX_COOKIES_PER_ANSWER = 50


class RedirectCookies:
    """Stores the cookies of redirects, and gives each later request of the chain those that its URL may have."""

    def __init__(self) -> None:
        self._jar: CookieJar | None = None

    def store(self, url: str, headers: Message) -> None:
        """Store the cookies of an answer to a request for `url`."""
        values = [value for value in headers.get_all("Set-Cookie", []) if len(value) <= _MAX_COOKIE_LENGTH]
        if not values:
            return
        request = urllib.request.Request(url)
        values = [_without_own_domain(value, request.host.rpartition(":")[0] or request.host) for value in values]
        if self._jar is None:
            self._jar = CookieJar()
        self._jar.extract_cookies(_Answer(values[:_MAX_COOKIES_PER_ANSWER]), request)  # type: ignore[arg-type]  # it has `info`, which is all that the jar uses

    def header(self, url: str) -> dict[str, str]:
        """The `Cookie` header for a request for `url`: no entry if there are no cookies for it."""
        if self._jar is None:
            return {}
        request = urllib.request.Request(url)
        self._jar.add_cookie_header(request)
        value = request.get_header("Cookie") or ""
        return {"Cookie": value} if re.fullmatch(r"[\x20-\x7e\x80-\xff]+", value) else {}


def _without_own_domain(cookie: str, host: str) -> str:
    """The cookie without its domain where that is an address or a name without a dot, which the jar would refuse."""
    has_subdomains = "." in host and not host.rpartition(".")[2].isdigit()
    return cookie if has_subdomains else re.sub(rf";\s*domain={re.escape(host)}(?=\s*(?:;|$))", "", cookie, flags=re.I)


class _Answer:
    def __init__(self, cookies: list[str]) -> None:
        self._headers = Message()
        for cookie in cookies:
            self._headers["Set-Cookie"] = cookie

    def info(self) -> Message:
        return self._headers
