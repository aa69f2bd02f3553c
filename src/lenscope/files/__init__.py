"""How anything is written, whole or not at all, and read within limits; the hub as a place of files."""
