"""Plots that stay readable in grey and for those who see few colours, against CIE's formula worked out here."""

from __future__ import annotations

import itertools

from launch.measure.drawing import COLORS, HATCHES, LEAST_GAP, MARKERS, Look, label_ends, new_figure, png_of, spread


def lightness(color: str) -> float:
    """CIE L* of an sRGB colour."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    y = sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return 116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y


def test_neighbours_differ_in_grey() -> None:
    shades = [lightness(color) for color in COLORS]
    assert all(abs(a - b) >= 15 for a, b in itertools.pairwise(shades))
    assert lightness("#FFFFFF") == 100


def test_no_two_of_a_plot_look_the_same() -> None:
    looks = [Look(n).line() for n in range(len(COLORS) * 4)]
    assert len({(one["color"], one["marker"], one["linestyle"]) for one in looks}) == len(looks)
    assert len(set(MARKERS)) > len(COLORS)
    assert len(set(HATCHES)) == len(COLORS)


def test_labels_keep_apart_and_inside() -> None:
    wanted = [0.99, 1.0, 0.98, 0.01, 0.0, 0.5]
    places = spread(wanted, LEAST_GAP)
    assert all(0 <= place <= 1 for place in places)
    ordered = sorted(places)
    assert all(b - a >= LEAST_GAP - 1e-9 for a, b in itertools.pairwise(ordered))
    assert sorted(range(6), key=places.__getitem__) == sorted(range(6), key=wanted.__getitem__)
    assert places[5] == 0.5
    crowd = sorted(spread([0.5] * 60, LEAST_GAP))
    assert crowd[0] >= -1e-9
    assert crowd[-1] <= 1 + 1e-9


def test_a_figure_with_labels_is_a_picture() -> None:
    figure, ((panel,),) = new_figure(1, 1, (3, 2))
    panel.plot([1, 2], [1, 2], **Look(0).line())
    label_ends(panel, [(2, 2, "a line", Look(0).color)])
    assert [text.get_text() for text in panel.texts] == ["a line"]
    assert png_of(figure).startswith(b"\x89PNG")
