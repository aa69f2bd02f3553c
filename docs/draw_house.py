"""Draw docs/house.svg: the rooms of lenscope on their floors, from the code's own imports.

    python docs/draw_house.py          # write the picture
    python docs/draw_house.py --check  # exit status 1 if it is not what the code says

An arrow from one room to another says that files of the first import files of the second. Left out are arrows that
follow from others, and those to the ground floor, which every room may use.
"""

import sys
from html import escape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import house

PICTURE = Path(__file__).with_name("house.svg")
WIDTH, LEFT, GAP = 1180, 78, 16
LINE, HEAD, STOREY = 15, 32, 34
# lines of a column of files; pixels of a letter of a file's name, and of a room's
LINES, SMALL, LARGE = 5, 6.5, 9.5
COLOURS = (
    *("#f1f3f5", "#e7f5ff", "#e3fafc", "#e6fcf5", "#ebfbee", "#f4fce3"),
    *("#fff9db", "#fff4e6", "#ffe8cc", "#ffe3e3", "#f3f0ff", "#f8f0fc"),
)


def columns() -> dict[str, list[list[str]]]:
    """Each room and its files in columns, without its face; a room that is one file has none."""
    shown: dict[str, list[str]] = {room: [] for room in house.FLOOR}
    for module in sorted(house.files(), key=lambda m: (m.count("."), m)):
        room, _, name = module.partition(".")
        if room not in shown or not name:
            continue
        if house.is_face(module):
            shown[room].append(f"{name}/")
        elif "." in name:
            folder, _, inner = name.partition(".")
            after = [n for n, line in enumerate(shown[room]) if line == f"{folder}/" or line.startswith(f"{folder}: ")]
            shown[room].insert(after[-1] + 1, f"{folder}: {inner}")
        else:
            shown[room].append(name)
    return {
        room: _split([f"   {f.partition(': ')[2]}" if ": " in f else f for f in files]) for room, files in shown.items()
    }


def _split(files: list[str]) -> list[list[str]]:
    count = max(1, -(-len(files) // LINES))
    lines = -(-len(files) // count)
    return [files[n : n + lines] for n in range(0, len(files), lines or 1)]


def arrows() -> dict[str, set[str]]:
    """Room → rooms that it imports from, where no other arrows lead there."""
    direct: dict[str, set[str]] = {room: set() for room in house.FLOOR}
    for module in house.files():
        here = house.room_of(module)
        if here in direct:
            direct[here] |= {house.room_of(name) for name, _ in house.imports(module)} - {here}
    direct = {a: {b for b in direct[a] if house.FLOOR.get(b, 1) > 1} for a in direct}

    def beyond(room: str) -> set[str]:
        reached: set[str] = set()
        ahead = [room]
        while ahead:
            ahead += direct[ahead.pop()] - reached
            reached |= set(ahead)
        return reached

    return {a: {b for b in direct[a] if not any(b in beyond(c) for c in direct[a] - {b})} for a in direct}


def placed(files: dict[str, list[list[str]]]) -> tuple[dict[str, tuple[float, float, float, float]], float]:
    """Room → x, y, width and height in pixels; and the height of the whole picture."""
    boxes, y = {}, 20.0
    for floor in reversed(house.FLOORS):
        widths = [max(len(r) * LARGE + 24, 12 + sum(_wide(c) for c in files[r])) for r in floor]
        tall = HEAD + max((len(c) for r in floor for c in files[r]), default=0) * LINE + 6
        x = LEFT + (WIDTH - LEFT - sum(widths) - GAP * (len(floor) - 1)) / 2
        for room, wide in zip(floor, widths, strict=True):
            boxes[room] = (x, y, wide, tall)
            x += wide + GAP
        y += tall + STOREY
    return boxes, y - STOREY + 20


def _wide(column: list[str]) -> float:
    return max(map(len, column), default=0) * SMALL + 16


def drawn() -> str:
    """The picture as SVG."""
    files = columns()
    boxes, height = placed(files)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" '
        'font-family="system-ui, sans-serif" role="img" aria-label="The rooms of lenscope on their floors">',
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#868e96"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height:.0f}" fill="#ffffff"/>',
    ]
    for number, floor in enumerate(house.FLOORS, 1):
        _, y, _, tall = boxes[floor[0]]
        parts.append(_text(12, y + tall / 2 + 5, 13, "#868e96", f"floor {number}"))
    for a, b in sorted((a, b) for a, below in arrows().items() for b in below):
        (ax, ay, wide, tall), (bx, by, other, _) = boxes[a], boxes[b]
        near = house.FLOOR[a] - house.FLOOR[b] == 1
        x1, x2, y1, bend = ax + wide / 2, bx + other / 2, ay + tall, (by - ay - tall) / 2
        parts.append(
            f'<path d="M{x1:.0f} {y1:.0f} C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {by - bend:.0f} {x2:.0f} {by - 1:.0f}" '
            f'fill="none" stroke="#868e96" opacity="{0.9 if near else 0.45}" marker-end="url(#head)"/>'
        )
    for room, (x, y, wide, tall) in boxes.items():
        parts.append(
            f'<rect x="{x:.0f}" y="{y:.0f}" width="{wide:.0f}" height="{tall:.0f}" rx="7" '
            f'fill="{COLOURS[house.FLOOR[room] - 1]}" stroke="#495057"/>'
        )
        parts.append(_text(x + 12, y + 21, 15, "#212529", room, ' font-weight="600"'))
        for column in files[room]:
            for n, name in enumerate(column):
                parts.append(_text(x + 12, y + HEAD + 9 + n * LINE, 11.5, "#495057", name))
            x += _wide(column)
    return "\n".join([*parts, "</svg>", ""])


def _text(x: float, y: float, points: float, colour: str, text: str, more: str = "") -> str:
    indented = len(text) - len(text.lstrip())
    at = f'x="{x + indented * 4:.0f}" y="{y:.0f}" font-size="{points}" fill="{colour}"{more}'
    return f"<text {at}>{escape(text.strip())}</text>"


if __name__ == "__main__":
    picture = drawn()
    if "--check" in sys.argv:
        sys.exit(PICTURE.read_text(encoding="utf-8") != picture)
    PICTURE.write_text(picture, encoding="utf-8")
