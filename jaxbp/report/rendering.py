"""From blocks, verdicts and studies to HTML, by the templates beside this module.

Every value that a template writes is escaped, and its control characters are replaced.
"""

import functools
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from jaxbp.claims.claim_map import value_text
from jaxbp.report import blocks, claim_maps, outcomes, text
from jaxbp.runtime.outside_text import plain_text

_FOLDER = Path(__file__).with_name("templates")


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER, encoding="utf-8"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_plain,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "along_sentences": claim_maps.along_sentences,
        "all_passed": lambda controls: all(control.passed for control in controls),
        "beside_paper": outcomes.beside_paper,
        "boundary_text": claim_maps.boundary_text,
        "caveat": outcomes.control_caveat,
        "cell_text": blocks.cell_text,
        "facts": outcomes.facts,
        "fragment": text.fragment,
        "interval_text": text.format_interval,
        "noise_text": claim_maps.noise_text,
        "path": text.relative_path,
        "plural": text.plural,
        "power_sentence": outcomes.power_sentence,
        "prose": text.prose,
        "tally": outcomes.tally,
        "value_text": value_text,
    }
    environment.tests |= {
        "picture": lambda block: isinstance(block, blocks.Picture),
        "section": lambda block: isinstance(block, blocks.Section),
    }
    environment.globals |= {"draw_result": outcomes.draw_result, "AGAINST": outcomes.AGAINST}
    return environment


def _plain(value: Any) -> Any:
    return value if isinstance(value, Markup | jinja2.Undefined) else plain_text(str(value), keep="\t\n\r")


def render_page(**content: Any) -> str:
    """The whole page; ``content`` is what ``page.html.j2`` names."""
    style = Markup((_FOLDER / "page.css").read_text("utf-8"))
    return _environment().get_template("page.html.j2").render(style=style, **content)


def render_map(**content: Any) -> str:
    """The page of a map; ``content`` is what ``map.html.j2`` names."""
    style = Markup("".join((_FOLDER / name).read_text("utf-8") for name in ("page.css", "map.css")))
    return _environment().get_template("map.html.j2").render(style=style, **content)


def _macros(name: str) -> Any:
    return _environment().get_template(f"{name}.html.j2").module


def render_block(block: "str | blocks.Table | blocks.Picture | blocks.Section") -> str:
    """A block of a section."""
    return str(_macros("blocks").any_block(block))


def render_interval(drawing: outcomes.IntervalDrawing) -> str:
    """The drawing of an interval, as inline SVG."""
    return str(_macros("verdicts").interval_svg(drawing))
