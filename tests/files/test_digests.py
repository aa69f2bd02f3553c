"""Digests: what was changed after it was saved is seen, and files of version 0.1.0 need none."""

import numpy as np
import pytest

from lenscope.files.digests import FORMAT, check_format, sealed, stamped, unsealed, unstamped

DOCUMENT = {"kind": "grid", "version": FORMAT, "texts": ["a", "ü"]}
COLUMNS = {"n": np.arange(3), "x": np.array([0.5, np.nan, np.inf]), "t": ["a", "b", ""], "l": (np.array([1, 0, 2]),
           np.arange(3.0))}  # fmt: skip


def test_a_document_is_as_it_was_sealed():
    assert unsealed(sealed(DOCUMENT)) == DOCUMENT
    for changed in ({"texts": ["a", "u"]}, {"kind": "effects"}, {"sha256": "0"}, {"more": 1}):
        with pytest.raises(ValueError, match="damaged or was changed"):
            unsealed({**sealed(DOCUMENT), **changed})
    with pytest.raises(ValueError, match="damaged or was changed"):
        unsealed(DOCUMENT)


def test_version_0_1_0_wrote_no_digests():
    old = {**DOCUMENT, "version": 1}
    assert unsealed(old) == old
    assert unstamped(old, COLUMNS) == old


@pytest.mark.parametrize("name", COLUMNS)
def test_a_head_is_that_of_its_columns(name):
    head = stamped(DOCUMENT, COLUMNS)
    assert unstamped(head, COLUMNS) == DOCUMENT
    reverse = COLUMNS[name][::-1] if name != "l" else (COLUMNS[name][0][::-1], COLUMNS[name][1])
    with pytest.raises(ValueError, match="damaged or was changed"):
        unstamped(head, {**COLUMNS, name: reverse})


@pytest.mark.parametrize("version", [0, FORMAT + 1, "1", True, None, 1.0])
def test_other_formats_are_refused(version):
    with pytest.raises(ValueError, match="this lenscope reads"):
        check_format(version)
