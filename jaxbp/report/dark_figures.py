"""SVG figures that turn dark where their page does: paper and ink change places, and the palette grows lighter.

An SVG in an ``<img>`` follows the reader's colour scheme by a rule of its own. What is drawn on a colour of the data, text above all,
must stay as it is, so that only text in a colour of the ink changes, and no picture does.
"""

from collections.abc import Mapping

# What figures draw paper, regions, lines, words and data in, and what it becomes: the page's own colours where it has the same.
DARK: Mapping[str, str] = {
    "#ffffff": "#14181c",
    "#e8eef4": "#303943",
    "#e4e4e4": "#3a424b",
    "#cccccc": "#4a525b",
    "#999999": "#8a939c",
    "#888888": "#98a1ab",
    "#777777": "#a5aeb8",
    "#666666": "#a5aeb8",
    "#555555": "#b9c1c9",
    "#444444": "#c3cad1",
    "#000000": "#e6e9ec",
    "#0072b2": "#4aa6e8",
    "#d55e00": "#ff9152",
    "#009e73": "#3ecf9b",
    "#cc79a7": "#e5a3c8",
    "#439cd0": "#9fd8fa",
    "#c88700": "#f6c04d",
}
_PAPER = "#ffffff"
_END_OF_STYLE = b"</style>"


def with_dark_colours(svg: bytes) -> bytes:
    """The file of matplotlib with a rule for dark pages added to its style.

    Raises:
      ValueError: it has no style to which a rule can be added.
    """
    before, end, after = svg.partition(_END_OF_STYLE)
    if not end:
        raise ValueError("an SVG file of matplotlib has a <style>, this one has none")
    return before + _rules().encode() + end + after


def _rules() -> str:
    rules = ["text { fill: #000000 }", "@media screen and (prefers-color-scheme: dark) {", f"text {{ fill: {DARK['#000000']} }}"]
    for light, dark in DARK.items():
        not_text = ":not(text, tspan)" if light == _PAPER else ""  # white words stand on a colour of the data
        rules += [f'{not_text}[style*="{name}: {light}"] {{ {name}: {dark} !important }}' for name in ("fill", "stroke")]
    return "\n".join(["", *rules, "}", ""])
