"""The law of floors: a room imports from lower floors only, also for types; inside a room no arrow leads back."""

import graphlib

import house
import pytest

MODULES = [m for m in house.files() if m not in house.DOORS]


def test_every_module_lies_on_a_floor():
    assert {house.room_of(m) for m in MODULES} == set(house.FLOOR)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_lower_floors_only(module):
    here = house.room_of(module)
    for name, line in house.imports(module):
        there = house.room_of(name)
        where = f"{house.files()[module].relative_to(house.ROOT)}:{line}"
        assert there == here or house.FLOOR.get(there, 0) < house.FLOOR[here], f"{where} imports {name}"
        # a room of one's own is no lower floor, and its face would come back to the one who asks
        assert not (house.is_face(name) and name in house.FLOOR) or here in ("cli", "__main__") or name == here, (
            f"{where} imports from the face of {name}: name the module"
        )


def test_nobody_imports_experiments_but_the_command_line():
    assert {
        house.room_of(m) for m in MODULES for name, _ in house.imports(m) if house.room_of(name) == "experiments"
    } <= {
        "cli",
        "experiments",
    }


def test_no_arrow_leads_back():
    """No circles among all modules, type-only and late imports included; faces stand beside their rooms."""
    arrows = {
        m: {name for name, _ in house.imports(m) if name != m and not house.is_face(name)}
        for m in MODULES
        if not house.is_face(m)
    }
    graphlib.TopologicalSorter(arrows).prepare()
