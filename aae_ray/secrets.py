"""Passwords of addresses: they are used, and never written to a file, a tag, a parameter or the console."""

import re
from urllib.parse import urlsplit, urlunsplit

# user:password@ or token@ behind the scheme of an address, wherever it stands in a text.
# A password may hold an @, so it ends with the last one before the path.
USERINFO = re.compile(r"(?<=://)[^/?#\s'\"]+@")
SECRET_OPTION = re.compile(r"(?i)\b([\w.-]*(?:password|token|secret|api_?key)[\w.-]*)=([^\s&'\"]+)")


def without_userinfo(address: str) -> str:
    """An address without user, password and secret parameters of its query."""
    parts = urlsplit(address)
    if not parts.netloc and "@" not in address and not parts.query:
        return address
    clean = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if parts.netloc else address
    return redact(clean)


def redact(text: str) -> str:
    """A text, such as a library's error or a command line, without the secrets of the addresses in it."""
    return SECRET_OPTION.sub(r"\1=***", USERINFO.sub("", text))
