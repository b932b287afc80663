"""Texts from files and standard input: UTF-8, without a byte order mark, with "\\n" at the end of lines."""

from __future__ import annotations

import codecs
import io
from pathlib import Path

from mpc.errors import ConfigurationError

_MARKS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}


def decode_text(data: bytes, where: str) -> str:
    """Return the text of some bytes. Raises `ConfigurationError` naming `where` they come from and the byte that is
    wrong.

    >>> decode_text(b"two\\r\\nlines", "standard input")
    'two\\nlines'
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        encoding = _MARKS.get(data[:2], "ITS-ENCODING")
        raise ConfigurationError(
            f"{where} is not a UTF-8 text: byte {error.start + 1} (0x{data[error.start]:02x}) does not belong there; "
            f"convert it first: iconv -f {encoding} -t UTF-8"
        ) from None
    return io.StringIO(text.removeprefix("\ufeff"), newline=None).read()


def read_text_file(path: Path, option: str) -> str:
    """Return a file's text. Raises `ConfigurationError` naming the option and the file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{option} {path} cannot be read: {error.strerror}") from None
    return decode_text(data, f"{option} {path}")
