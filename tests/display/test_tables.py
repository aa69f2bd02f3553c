"""Tables: they fit where they are shown."""

import io

from drawing import drawn
from rich.console import Console

import lenscope as ls


def test_a_table_fits_where_it_is_shown(lm):
    """Without a width: a terminal's, whatever it is; in a notebook the whole table, which scrolls."""
    t = ls.Lens(lm).trajectory("word " * 12)
    for width in (24, 40, 80, 200):
        assert max(map(len, drawn(t.table(), width).splitlines())) <= width
    html = t.table()._repr_mimebundle_([], [])["text/html"]
    assert "<pre" in html
    notebook = Console(file=io.StringIO(), force_jupyter=True)
    whole = "".join(part.text for part in notebook.render(t.table(), notebook.options))
    heads = whole.splitlines()[0]
    assert len(heads.split()) >= len(t.ids) > 8
    assert "…" not in whole.splitlines()[1]
    assert "colour: max_probability" in whole
    assert t.table()._repr_html_().startswith("<pre")
    assert "colour: max_probability" in str(t.table())
    assert repr(t.table()) == str(t.table())
    assert str(t.table()).splitlines()[1].startswith(str(lm.n_layers))
