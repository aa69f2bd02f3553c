"""How pages of the site are made: links that lead out of docs/, docstrings as markup, signatures as written."""

import importlib.util
import inspect

import house
import pytest

import lenscope


def _module(name):
    spec = importlib.util.spec_from_file_location(name, house.ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


docstrings, site_links = _module("docstrings"), _module("site_links")


@pytest.mark.parametrize(
    ("page", "text", "wanted"),
    [
        ("design", "[c](../CHANGELOG.md)", "[c](changelog.md)"),
        ("ideas/index", "[c](../../CHANGELOG.md#added)", "[c](../changelog.md#added)"),
        ("examples/one", "[p](../docs/how-to/pandas.md#rows)", "[p](../how-to/pandas.md#rows)"),
        ("ideas/index", "[g](../glossary.md#lens)", "[g](../glossary.md#lens)"),
        ("design", "[s](../src/lenscope/errors.py)", "[s](../src/lenscope/errors.py)"),
        ("design", "[w](https://a.b/../CHANGELOG.md)", "[w](https://a.b/../CHANGELOG.md)"),
    ],
)
def test_links_out_of_the_pages_lead_to_the_pages_that_show_the_same(page, text, wanted):
    assert site_links.site_links(text, page) == wanted


def test_links_of_files_that_are_shown_as_pages_lead_to_pages():
    text = "[a](docs/design.md#the-house) [b](CHANGELOG.md) [c](constraints.txt) [d](https://a.b/c) [e](#here)"
    wanted = "[a](design.md#the-house) [b](changelog.md) [c](../constraints.txt) [d](https://a.b/c) [e](#here)"
    assert site_links.links_of_the_root(text) == wanted


@pytest.mark.parametrize(
    ("name", "owner", "place"),
    [
        ("Lens", "", "lenscope.Lens"),
        ("lenscope.load", "", "lenscope.load"),
        ("Lens.trajectory", "", "lenscope.Lens.trajectory"),
        ("ls.statistics.select", "", "lenscope.statistics.select"),
        ("TokenRanks", "", "lenscope.lenses.TokenRanks"),
        ("generate", "lenscope.LM", "lenscope.LM.generate"),
        # a field is no page of its own, and a small word alone may be anything
        ("rank", "lenscope.Trajectory", None),
        ("rank", "", None),
        ("layers", "lenscope.Lens", "lenscope.Lens.layers"),
        ("lm.read(x)", "", None),
    ],
)
def test_names_in_docstrings_are_linked_where_they_are_described(name, owner, place):
    assert docstrings.place_of(name, owner) == place


def test_prose_of_a_docstring_is_no_markup():
    text = "Takes `x`, 2 * 3 * 4, items_ and |x|.\n\nArgs:\n    x: a number,\n        such as 1.\n\nThen more."
    assert docstrings.as_rst(text.split("\n")) == [
        "Takes \\ ``x``\\ , 2 \\* 3 \\* 4, items\\_ and \\|x\\|.",
        "",
        "",
        ".. rubric:: Parameters",
        "",
        "* ``x``: a number,",
        "  such as 1.",
        "",
        "Then more.",
    ]


def test_signatures_are_those_of_the_source_with_overloads_in_one():
    arguments, result = docstrings.written_signature(lenscope.LM.generate)
    assert arguments == "(prompts: PromptLike | list[str | Prompt] | list[str], max_new_tokens: int=20)"
    assert result == "Continuation | list[Continuation]"
    assert docstrings.written_fields(lenscope.Estimate) == ["value: float", "low: float", "high: float"]
    assert [f.partition(":")[0] for f in docstrings.written_fields(lenscope.Edit)] == [
        *inspect.signature(lenscope.Edit).parameters
    ]
