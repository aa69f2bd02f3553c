"""The documentation site: Sphinx reads the Markdown pages of this folder, and the docstrings of lenscope.

    make site                                                     # sets up .venv, writes docs/_build/html/index.html
    python -m sphinx -b html -W --keep-going -n -q docs docs/_build/html    # the same in an environment at hand

A warning is an error: a link that leads nowhere, a page that no table of contents has, a name in a signature that is
not there.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]

import lenscope  # noqa: E402

project = "lenscope"
author = "the authors of lenscope"
copyright = author
version = release = lenscope.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_copybutton",
    "docstrings",
    "example_notebooks",
    "site_links",
]
exclude_patterns = ["_build", "specs", "figures"]
nitpicky = True

# Markdown as GitHub reads it
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "attrs_inline"]
myst_heading_anchors = 4
myst_links_external_new_tab = False
# notebooks are executed by tests, and shown with the outputs that are in them
nb_execution_mode = "off"
suppress_warnings = ["mystnb.unknown_mime_type"]

# what a copy button copies: commands and code, without prompts and without what was printed
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = True
copybutton_remove_prompts = True
copybutton_line_continuation_character = "\\"
copybutton_selector = "div:not(.highlight-text):not(.highlight-none):not(.output) > div.highlight > pre"

# docstrings: docs/docstrings.py
autosummary_generate = False
autodoc_default_options = {
    "members": True,
    "member-order": "bysource",
    "inherited-members": "object, tuple, Exception, BaseModel, ABC",
}
python_maximum_signature_line_length = 88
smartquotes = False

html_theme = "furo"
html_title = "lenscope"
html_static_path = ["_static"]
html_css_files = ["lenscope.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_theme_options = {
    "sidebar_hide_name": False,
    "light_css_variables": {
        "color-brand-primary": "#1f5f8b",
        "color-brand-content": "#1f5f8b",
        "color-brand-visited": "#5b4a8a",
    },
    "dark_css_variables": {
        "color-brand-primary": "#8cc4ea",
        "color-brand-content": "#8cc4ea",
        "color-brand-visited": "#b9a8e6",
    },
}
pygments_style = "friendly"
pygments_dark_style = "github-dark"


def _shallow_navigation(app, page, template, context, doctree):
    """The list of pages at the side ends with pages: looking through every heading takes half of the build."""
    if "toctree" in context:
        every = context["toctree"]
        context["toctree"] = lambda **how: every(**{**how, "maxdepth": 3})


def setup(app):
    """Sphinx calls this."""
    app.connect("html-page-context", _shallow_navigation, priority=400)
