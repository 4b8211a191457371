"""Pictures of results as plain SVG: text stays text, coordinates have two digits, and an element takes a line."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl

_SVG = "http://www.w3.org/2000/svg"
_NAMESPACES = {"": _SVG, "xlink": "http://www.w3.org/1999/xlink"}
_GROUP = f"{{{_SVG}}}g"
_FONTS = "DejaVu Sans, Verdana, sans-serif"
"""What matplotlib measures text by, one as wide for systems without it, and whatever there is."""
_FONT_FAMILY = re.compile(r"font-family: [^;]*(; )?")
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")


def pyplot(font_size: int) -> Any:
    """Matplotlib's drawing functions, set so that the same results give the same file."""
    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "gradtrail", "svg.fonttype": "none", "font.size": font_size})
    from matplotlib import pyplot

    return pyplot


def save_svg(figure: Any, path: Path) -> None:
    """Write a figure without glyphs, without groups that say nothing, and without what matplotlib says of itself."""
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    for prefix, uri in _NAMESPACES.items():
        ElementTree.register_namespace(prefix, uri)
    root = ElementTree.fromstring(drawn.getvalue())  # noqa: S314 - matplotlib's own words
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    _simplify(root)
    root.set("font-family", _FONTS)
    ElementTree.indent(root, space="")
    path.write_text(ElementTree.tostring(root, encoding="unicode") + "\n", "utf-8")


def _simplify(element: ElementTree.Element) -> None:
    """Round coordinates, and put the members of groups without attributes in their place."""
    for name, value in element.items():
        element.set(name, _LONG_NUMBER.sub(_rounded, _FONT_FAMILY.sub("", " ".join(value.split()))))
    kept: list[ElementTree.Element] = []
    for child in element:
        if child.tag == _GROUP:
            child.attrib.pop("id", None)
        _simplify(child)
        kept.extend(child if child.tag == _GROUP and not child.attrib else [child])
    element[:] = kept


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")
