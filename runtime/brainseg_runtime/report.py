"""A result as one page of HTML that needs nothing else: slices to scroll, volumes, flags, what ran.

Nothing on a page comes from elsewhere: pictures are data URIs, and a content security policy forbids
every request and every script but the page's own. Whatever a user or a file named is escaped.
"""

import base64
import hashlib
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from brainseg_runtime.errors import BrainsegError
from brainseg_runtime.files import write_atomically
from brainseg_runtime.outputs import DISCLAIMER, attachment_path
from brainseg_runtime.preview import panel, shown_modalities
from brainseg_runtime.spec import ModelSpec
from brainseg_runtime.views import PLANES, Colour, Scene, label_colours, region_colours
from brainseg_runtime.volume import Segmentation

__all__ = ["MAX_VOXELS", "draw_report", "write_index"]

MAX_VOXELS = 4_000_000
"""Voxels of a page's scene: a head at 1 mm has fewer. At 4 modalities they take some 3 MB."""
JPEG_QUALITY = 80
THUMBNAIL_PIXELS = 160

Contents = Mapping[str, Any]


def draw_report(head: Scene, segmentation: Segmentation, spec: ModelSpec, contents: Contents) -> bytes:
    """The page of one scan; ``contents`` is what its JSON says."""
    reduced = head.reduced(MAX_VOXELS)
    sheets = {name: _jpeg(_Sheet.of(reduced).lay(image)) for name, image in reduced.images.items()}
    sheets["labels"] = _label_sheet(reduced, label_colours(segmentation))
    thumbnail = _thumbnail(head, segmentation, shown_modalities(spec)[0])
    body = "\n".join(
        (
            f"<header><h1>{escape(segmentation.scan)}</h1>{_disclaimer()}</header>",
            "<main>",
            _flags(contents),
            _viewer(reduced, segmentation, spec, thumbnail),
            '<div class="columns">',
            _volumes(segmentation, contents),
            _facts(contents),
            "</div>",
            "</main>",
            f"<footer>{escape(DISCLAIMER)} {escape(_made_by(contents))}</footer>",
            *(
                f'<img class="sheet" id="sheet-{escape(k)}" src="{v}" alt="" hidden>'
                for k, v in sheets.items()
            ),
            f'<script type="application/json" id="scan">{_data(reduced)}</script>',
        )
    )
    return _page(segmentation.scan, body, icon=thumbnail, script=_asset("page.js"))


def write_index(
    folder: Path | str, records: Sequence[Contents], failed: Mapping[str, BrainsegError]
) -> Path | None:
    """Write ``index.html``: a card a record of a folder, and the scans that failed; None without any."""
    cards = [_card(Path(folder), record) for record in records]
    if not cards and not failed:
        return None
    body = "\n".join(
        (
            f"<header><h1>Segmented scans</h1>{_disclaimer()}</header>",
            "<main>",
            _refused(failed),
            f'<ul class="scans">{"".join(cards)}</ul>',
            "</main>",
        )
    )
    path = Path(folder) / "index.html"
    write_atomically(path, _page("Segmented scans", body))
    return path


# The frame of a page.


def _page(title: str, body: str, *, icon: str = "", script: str = "") -> bytes:
    style = _asset("page.css")
    allowed = f"style-src {_digest(style)}; img-src data:" + (
        f"; script-src {_digest(script)}" if script else ""
    )
    lines = (
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; {escape(allowed)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="referrer" content="no-referrer">',
        f"<title>{escape(title)}</title>",
        f'<link rel="icon" href="{icon or "data:,"}">',
        f"<style>{style}</style>",
        "</head>",
        "<body>",
        body,
        f"<script>{script}</script>" if script else "",
        "</body>",
        "</html>",
    )
    return ("\n".join(lines) + "\n").encode()


def _asset(name: str) -> str:
    return files(__package__).joinpath("page", name).read_text("utf-8")


def _digest(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def _disclaimer() -> str:
    return f'<p class="faint">{escape(DISCLAIMER)}</p>'


def _made_by(contents: Contents) -> str:
    software = ", ".join(f"{name} {version}" for name, version in contents.get("software", {}).items())
    return f"Made by {software}." if software else ""


# The slices.


@dataclass(frozen=True)
class _Sheet:
    """Axial slices side by side on one picture, so that one JPEG holds a whole modality."""

    tile: tuple[int, int]
    """(width, height) that a slice is given."""
    columns: int
    count: int

    @classmethod
    def of(cls, scene: Scene) -> "_Sheet":
        across, deep, down = scene.shape
        # Whole blocks of the JPEG, so that a slice's edge never bleeds into its neighbour.
        tile = (-(-across // 8) * 8, -(-deep // 8) * 8)
        return cls(tile, max(1, math.isqrt(down)), down)

    def lay(self, array: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(L, P, I) -> (rows, columns)."""
        width, height = self.tile
        sheet = np.zeros((-(-self.count // self.columns) * height, self.columns * width), dtype=np.uint8)
        for k in range(self.count):
            top, left = k // self.columns * height, k % self.columns * width
            sheet[top : top + array.shape[1], left : left + array.shape[0]] = array[:, :, k].T
        return sheet


def _jpeg(pixels: NDArray[np.uint8]) -> str:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return _uri(stream, "image/jpeg")


def _label_sheet(scene: Scene, colours: Mapping[int, Colour]) -> str:
    """Labels as a picture of their colours, clear where there is none; lossless."""
    from PIL import Image

    image = Image.fromarray(_Sheet.of(scene).lay(scene.labels), mode="P")
    palette = np.zeros((256, 3), dtype=np.uint8)
    for value, colour in colours.items():
        palette[value] = colour
    image.putpalette(palette.tobytes())
    stream = io.BytesIO()
    image.save(stream, "PNG", transparency=0)
    return _uri(stream, "image/png")


def _thumbnail(head: Scene, segmentation: Segmentation, modality: str) -> str:
    from PIL import Image

    plane = PLANES[0]
    scale = THUMBNAIL_PIXELS / max(plane.size(head.extent))
    stream = io.BytesIO()
    Image.fromarray(panel(head, plane, modality, segmentation, scale)).save(stream, "JPEG", quality=80)
    return _uri(stream, "image/jpeg")


def _uri(stream: io.BytesIO, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _data(scene: Scene) -> str:
    """What the page's script must know, as JSON that cannot end its element."""
    sheet = _Sheet.of(scene)
    data = {
        "shape": scene.shape,
        "spacing": [round(mm, 5) for mm in scene.spacing],
        "focus": scene.focus,
        "tile": sheet.tile,
        "columns": sheet.columns,
    }
    return json.dumps(data).replace("<", "\\u003c")


def _viewer(scene: Scene, segmentation: Segmentation, spec: ModelSpec, thumbnail: str) -> str:
    first = shown_modalities(spec)[0]
    choices = "".join(
        f'<label class="choice"><input type="radio" name="modality" value="{escape(name)}"'
        f"{' checked' if name == first else ''}><span>{escape(name.upper())}</span></label>"
        for name in scene.images
    )
    figures = "".join(
        f'<figure data-plane="{plane.name}" data-sides="{" ".join(plane.sides)}">'
        f"<figcaption><b>{plane.name}</b><output></output></figcaption>"
        f'<div class="stage"><canvas tabindex="0" role="img" aria-label="{plane.name} slice; arrow keys '
        f'scroll, a click shows the same place in the other planes"></canvas></div>'
        f'<input type="range" min="0" max="{scene.shape[plane.axis] - 1}" value="{scene.focus[plane.axis]}" '
        f'aria-label="{plane.name} slice"></figure>'
        for plane in PLANES
    )
    colours = label_colours(segmentation)
    legend = "".join(f"<li>{_dot(colours[v])}{escape(segmentation.names[v])}</li>" for v in colours)
    return f"""<section aria-label="Slices">
<form class="controls" id="controls" autocomplete="off">
<fieldset><legend>Modality</legend>{choices}</fieldset>
<label class="row"><input type="checkbox" name="overlay" checked> Segmentation</label>
<label class="row wide">Opacity <input type="range" name="opacity" min="0" max="100" value="45"></label>
</form>
<div class="planes">{figures}</div>
<ul class="legend" aria-label="Labels">{legend}</ul>
<p class="faint" id="trouble">R is the patient's right. Scroll with the wheel, the arrow keys, or by
dragging sideways; a click shows the same place in the other planes.</p>
<noscript><p>Slices need JavaScript; this is the largest cut.</p>
<img src="{thumbnail}" alt="axial slice"></noscript>
</section>"""


def _dot(colour: Colour) -> str:
    return (
        '<svg class="dot" viewBox="0 0 12 12" aria-hidden="true">'
        f'<rect width="12" height="12" rx="2" fill="rgb{colour}"/></svg>'
    )


# What was found, and what ran.


def _flags(contents: Contents) -> str:
    """Flags and warnings; nothing where there are none."""
    flags = contents.get("flags", ())
    items = [f"<li>{escape(f['words'])} <code>{escape(f['code'])}</code></li>" for f in flags]
    told = " ".join(f["words"] for f in flags).lower()
    items += [
        f"<li>{escape(str(w))}</li>" for w in contents.get("warnings", ()) if str(w).lower() not in told
    ]
    if not items:
        return ""
    return f'<section class="flags"><h2>Look twice</h2><ul>{"".join(items)}</ul></section>'


def _volumes(segmentation: Segmentation, contents: Contents) -> str:
    colours = region_colours(segmentation)
    ranges = contents.get("volume_ranges_ml", {})
    rows = []
    for region, ml in contents["volumes_ml"].items():
        doubt = ranges.get(region)
        between = f"{doubt['surely_ml']:.2f} to {doubt['perhaps_ml']:.2f}" if doubt else ""
        made_of = ", ".join(segmentation.names[v] for v in segmentation.regions[region])
        rows.append(
            f'<tr><th scope="row">{_dot(colours[region])}{escape(region)}'
            f'<div class="faint">{escape(made_of)}</div></th><td class="number">{ml:.2f}</td>'
            + (f'<td class="number">{between}</td>' if ranges else "")
            + "</tr>"
        )
    before = ", ".join(
        f"{region} {doubt['decided_ml']:.2f}"
        for region, doubt in ranges.items()
        if doubt["decided_ml"] - contents["volumes_ml"].get(region, 0.0) > 0.005
    )
    dropped = (
        f" Ranges are of what was found before small pieces were dropped: {before} ml." if before else ""
    )
    more = '<th scope="col" class="number">range</th>' if ranges else ""
    note = (
        '<p class="faint">Range: the volume if a voxel had to be likelier, or could be less likely, to '
        f"belong to the region (probability 0.65 and 0.35 where the threshold is 0.5).{escape(dropped)}</p>"
        if ranges
        else ""
    )
    return (
        "<section><table><caption>Volumes in ml</caption>"
        f'<thead><tr><th scope="col">region</th><th scope="col" class="number">ml</th>{more}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>{note}{_type(contents)}</section>"
    )


def _type(contents: Contents) -> str:
    """The type of the tumour, where the model tells it and found one."""
    told = contents.get("type")
    if not told:
        return ""
    shares = ", ".join(f"{name} {share:.2f}" for name, share in told["probabilities"].items())
    return f"<p>Type, as the model estimates it: {escape(told['name'])}. Probabilities: {escape(shares)}.</p>"


def _facts(contents: Contents) -> str:
    """Everything else that the JSON says, a row each."""
    rows = [(name.replace("_", " "), _words(contents[name])) for name in FACTS if contents.get(name)]
    rows += [
        (f"input {s['modality']}", f"{s['file']}, sha256 {s['sha256']}") for s in contents.get("inputs", ())
    ]
    if "mask" in contents:
        rows.append(("mask", f"{contents['mask']['file']}, sha256 {contents['mask']['sha256']}"))
    body = "".join(f'<tr><th scope="row">{escape(k)}</th><td>{escape(v)}</td></tr>' for k, v in rows)
    return f'<section><table class="facts"><caption>What ran</caption><tbody>{body}</tbody></table></section>'


FACTS = ("model", "engine", "engine_choice", "options", "reference", "seconds", "peak_memory_mb")
"""What a page tells of the JSON, in this order."""


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        told = {key: _words(inner) for key, inner in value.items() if inner not in (None, "", {})}
        return ", ".join(text if key in ("name", "engine") else f"{key} {text}" for key, text in told.items())
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(_words(inner) for inner in value)
    return str(value)


# The index.


def _card(folder: Path, contents: Contents) -> str:
    scan = str(contents["scan"])
    page = attachment_path(folder, scan, "report")
    volumes = ", ".join(f"{name} {ml:.1f} ml" for name, ml in contents["volumes_ml"].items())
    flags = ", ".join(dict.fromkeys(str(flag["code"]) for flag in contents.get("flags", ())))
    look = f'<p class="faint">look twice: {escape(flags)}</p>' if flags else ""
    title, picture = escape(scan), '<div class="blank"></div>'
    if "report" in contents.get("attachments", {}) and page.is_file():
        link = escape("./" + quote(page.name))
        title = f'<a href="{link}">{title}</a>'
        picture = (
            f'<a href="{link}"><img src="{_icon_of(page)}" alt="largest axial cut of {escape(scan)}"></a>'
        )
    return f"<li>{picture}<div><h2>{title}</h2><p>{escape(volumes)}</p>{look}</div></li>"


def _icon_of(page: Path) -> str:
    """The thumbnail that a page carries as its icon."""
    with page.open("rb") as file:
        start = file.read(1 << 16).decode("utf-8", "replace")
    found = re.search(r'<link rel="icon" href="(data:image/jpeg;base64,[A-Za-z0-9+/=]+)">', start)
    return found[1] if found else "data:,"


def _refused(failed: Mapping[str, BrainsegError]) -> str:
    if not failed:
        return ""
    items = "".join(
        f"<li><b>{escape(scan)}</b>: {escape(error.received)} {escape(error.remedy)} "
        f"<code>{escape(error.code)}</code></li>"
        for scan, error in failed.items()
    )
    return f'<section class="flags"><h2>Without a result</h2><ul>{items}</ul></section>'
