"""Imports go from higher layers to lower ones, and nowhere in a circle."""

from docs import layout


def test_every_package_has_a_layer():
    places = {layout.place_of(module) for module in layout.modules()} - {""}
    assert places == {name for names in layout.LAYERS for name in names}


def test_no_import_goes_upwards():
    assert layout.upward() == []


def test_no_modules_import_each_other_in_a_circle():
    assert layout.circles() == []


def test_the_declared_exception_is_still_needed():
    assert layout.place_edges() >= layout.DECLARED
