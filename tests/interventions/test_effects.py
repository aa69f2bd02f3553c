"""Effects load as they were saved, and tables show them."""

import io

import numpy as np
import pytest
from cells_by_hand import OTHER, PROMPT
from rich.console import Console

import lenscope as ls
from lenscope.display.numbers import signed_figure
from lenscope.interventions.activation_patching import activation_patching
from lenscope.interventions.attention_knockout import attention_knockout
from lenscope.interventions.causal_tracing import causal_tracing
from lenscope.interventions.effects import load_effects


@pytest.mark.parametrize("suffix", [".parquet", ".json"])
def test_saved_effects_load_equal(lm64, tmp_path, suffix):
    path = tmp_path / f"e{suffix}"
    for found in (
        causal_tracing(lm64, [PROMPT, OTHER], ["cat", "dog"], samples=1),
        activation_patching(lm64, PROMPT, PROMPT, "o", "e", layers=[0, 3], positions=[1, -1]),
        attention_knockout(lm64, PROMPT, "cat"),
    ):
        found.save(path)
        loaded = load_effects(path)
        assert loaded.to_json() == found.to_json()
        assert all(loaded.measures[k].dtype == np.float32 for k in loaded.measures)
        assert np.array_equal(loaded.cells(), found.cells())
    path.write_bytes(b"{}")
    with pytest.raises(ls.LenscopeError, match="is no table of effects"):
        load_effects(path)


def shown(table, width=None):
    console = Console(width=width or 400, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_tables_show_numbers_tokens_and_what_does_not_fit(lm64):
    found = causal_tracing(lm64, PROMPT, "cat", "o", samples=2)
    text = shown(found.table())
    assert "indirect effect" in text
    assert "answer 'o'" in text
    value = found.cells()[-1, -1]
    assert signed_figure(value, True) in text
    narrow = shown(found.table("log_effect", width=40), 40)
    assert max(map(len, narrow.splitlines())) <= 40
    assert "do not fit" in " ".join(narrow.split())
    assert "–" in shown(causal_tracing(lm64, PROMPT, "cat", samples=1).table("standard_error"))
    assert "cat" in shown(attention_knockout(lm64, PROMPT, "cat").table())
