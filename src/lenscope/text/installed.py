"""English text that is there without a download: what came with Python and the installed packages.

Knows: where it lies. Does not know: what it is for.
"""

from importlib.metadata import distributions


def installed_texts() -> list[str]:
    """English that is there without a download: Python's language reference, and what the installed packages say."""
    descriptions = {d.name: (d.read_text("METADATA") or "").partition("\n\n")[2] for d in distributions()}
    texts = [descriptions[name] for name in sorted(descriptions) if descriptions[name].strip()]
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some systems package it apart
        return texts
    return [*topics.values(), *texts]
