"""Names of files for things whose names come from data: tasks, relations, tables.

Knows: what file systems take as a name. Does not know: what is named, which folder it lies in.
"""

import hashlib
import re

# letters that every file system keeps as they are; a dot only between others
_PLAIN = re.compile(r"[A-Za-z0-9_,()+=-](?:[A-Za-z0-9 ._,()+=-]*[A-Za-z0-9_,()+=-])?")
# what Windows takes for devices, whatever follows a dot
_DEVICES = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|com[0-9]|lpt[0-9])(?:\.|\s|$)", re.IGNORECASE)
# how a name ends that was changed
_CHANGED = re.compile(r"-[0-9a-f]{16}")
LONGEST_NAME = 96


def safe_name(text: str) -> str:
    """A name for a file or a folder that stays in its folder, whatever the text: itself, where it is plain.

    Plain are up to 96 letters and digits of ASCII, spaces and `._,()+=-`, with neither a dot nor a space at an end or
    two dots in a row, that are no device of Windows. Of other texts all else becomes `-`, and 16 digits of the text's
    SHA-256 follow, so that different texts have different names. No extension is added.
    """
    plain = _PLAIN.fullmatch(text) and ".." not in text and len(text) <= LONGEST_NAME
    if plain and not _DEVICES.match(text) and not _CHANGED.fullmatch(text[-17:]):
        return text
    plain_part = re.sub(r"[^A-Za-z0-9 _,()+=-]+", "-", text[:LONGEST_NAME]).strip(" -")
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{plain_part or 'name'}-{digest}"
