"""The map is true: the picture is what the code says, every room is in the table, files that pages name are there."""

import re
import subprocess
import sys

import house

DOCS = house.ROOT / "docs"
PAGES = [*(p for p in sorted(DOCS.glob("*.md")) if p.name != "log.md"), house.ROOT / "README.md"]


def test_the_picture_of_the_house_is_current():
    done = subprocess.run([sys.executable, DOCS / "draw_house.py", "--check"], check=False)
    assert done.returncode == 0, "draw it again: python docs/draw_house.py"


def test_the_table_of_rooms_has_every_room_on_its_floor():
    page = (DOCS / "design.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (`[^|]+`) \|", page, re.MULTILINE)
    table = [(int(floor), name) for floor, names in rows for name in re.findall(r"`(\w+)`", names)]
    assert sorted(table) == sorted((floor, room) for room, floor in house.FLOOR.items() if room != "_version")
    assert [floor for floor, _ in table] == sorted(floor for floor, _ in table)


def test_files_that_pages_name_are_there():
    missing = []
    for page in PAGES:
        for name in re.findall(r"`((?:\w+/)+\w+\.\w+)(?: [^`]*)?`", page.read_text()):
            places = (house.SOURCE, house.ROOT, house.ROOT / "tests", house.ROOT / "tests" / "support")
            if name.endswith(".py") and not any((place / name).exists() for place in places):
                missing.append(f"{page.name}: {name}")
        missing += [
            f"{page.name}: lenscope.{name}"
            for name in re.findall(r"\blenscope((?:\.[a-z_]+)+)\b", page.read_text())
            if name.count(".") > 1 and not any(
                m == name[1:] or m == name[1:].rpartition(".")[0] for m in house.files()
            ) and name[1:].partition(".")[0] in house.FLOOR
            and not hasattr(__import__("lenscope." + name[1:].rpartition(".")[0], fromlist=["x"]), name.rpartition(".")[2])
        ]  # fmt: skip
    assert not missing, "\n".join(missing)
