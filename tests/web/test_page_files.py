"""The page's files are read when the server starts, and nothing else can be asked for."""

from lenscope.web.page_files import APP, VIEW, page_files


def test_every_module_style_and_page_is_served_with_its_type():
    files = page_files()
    assert files["/"].content == (APP / "index.html").read_bytes()
    for path in (*APP.iterdir(), *VIEW.iterdir()):
        if path.suffix in (".js", ".css", ".html"):
            file = files[f"/app/{path.name}"]
            assert file.content == path.read_bytes()
            assert file.kind.startswith(
                {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}[path.suffix]
            )
    assert not [path for path in files if path.endswith(".py") or ".." in path]


def test_components_of_all_pages_are_not_hidden_by_the_apps_own_files():
    assert not {path.name for path in APP.iterdir()} & {path.name for path in VIEW.iterdir()}


def test_a_browser_is_told_when_it_has_a_file_already(view):
    first = view.client.get("/view/text.js")
    assert first.headers["content-type"].startswith("text/javascript")
    again = view.client.get("/view/text.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
