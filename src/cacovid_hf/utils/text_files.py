"""Text files as they come from other people's machines: in UTF-8 or UTF-16, with or without a byte order mark."""

import codecs
import json
from pathlib import Path

WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
"""The first bytes of files whose characters are wider than a byte."""


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8, UTF-16 or UTF-32, without its byte order mark; line ends stay as they are.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is in none of them.
    """
    content = path.read_bytes()
    text = content.decode(json.detect_encoding(content))
    return text.removeprefix("\ufeff")
