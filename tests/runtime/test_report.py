"""A page that needs nothing else: no request leaves it, no name breaks it, a real browser shows it."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest
from brainseg_runtime.batch import Done, Skipped, run
from brainseg_runtime.errors import ScanRefused
from brainseg_runtime.nifti import read_image
from brainseg_runtime.report import draw_report, write_index
from brainseg_runtime.scans import find_scans
from brainseg_runtime.segmenter import Segmenter
from brainseg_runtime.views import scene
from brainseg_runtime.volume import Segmentation, Volume
from PIL import Image
from toys import phantom, toy_engine, toy_spec, toy_volume, write_scan

HOSTILE = "</script><img src=x onerror=document.documentElement.id='hacked'>\"'&<script>hacked()</script>"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def contents_of(segmentation, **more):
    return {
        "scan": segmentation.scan,
        "volumes_ml": segmentation.volumes_ml(),
        "model": {"name": "toy", "sha256": "0" * 64},
        **more,
    }


def page_of(volume, segmentation, **more):
    spec = toy_spec()
    return draw_report(
        scene(volume, segmentation, spec), segmentation, spec, contents_of(segmentation, **more)
    )


@pytest.fixture
def browse(tmp_path):
    """Open a page in a browser that has no network: its document after its scripts, and how it looks."""
    if BROWSER is None:
        pytest.skip("no chromium here; Debian: apt-get install chromium")

    def call(page, fragment="", *, width=1280, height=900, script="", look=False):
        path = tmp_path / "opened.html"
        text = page.decode()
        if script:  # measurements from inside: the page's own policy would rightly forbid them
            text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
            text = text.replace("</body>", f"<script>{script}</script></body>")
            # A frame, since a window of chromium is never narrower than 500 pixels.
            (tmp_path / "framed.html").write_text(text)
            text = FRAME.format(width=width, height=height)
        path.write_text(text)
        common = [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--hide-scrollbars", "--virtual-time-budget=6000", "--host-resolver-rules=MAP * ~NOTFOUND"),
            f"--window-size={width},{height}",
        ]
        url = f"{path.as_uri()}#{fragment}"

        def start(name, *flags):
            profile = tmp_path / f"profile-{name}"
            try:
                command = [*common, f"--user-data-dir={profile}", *flags, url]
                return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
            finally:
                shutil.rmtree(profile, ignore_errors=True)

        dom = start("dom", "--dump-dom")
        if not look:
            return dom
        shot = tmp_path / "shot.png"
        start("shot", f"--screenshot={shot}")
        return dom, np.asarray(Image.open(shot).convert("RGB")).astype(int)

    return call


def test_nothing_on_a_page_comes_from_elsewhere():
    """No address of the web; every picture is a data URI; the policy allows the page's own script alone."""
    page = page_of(*phantom()).decode()
    without_data = re.sub(r"data:image/\w+;base64,[A-Za-z0-9+/=]+", "data:", page)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", without_data.replace("// ", ""))
    assert set(re.findall(r'(?:src|href)="([^"]*)"', without_data)) == {"data:"}
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in html.unescape(policy)


def test_hostile_names_are_words_and_nothing_else():
    """In the names of scan, labels, regions, files and in warnings; the parsed page has no element more."""

    class Elements(HTMLParser):
        def __init__(self):
            super().__init__()
            self.found, self.words = [], []

        def handle_starttag(self, tag, attributes):
            self.found.append((tag, sorted(name for name, _ in attributes)))

        def handle_data(self, data):
            self.words.append(data)

    def parsed(word):
        volume, segmentation = phantom(scan=word)
        named = replace(
            segmentation,
            names={1: word, 2: "ED", 3: "ET"},
            regions={word: (1, 2, 3), "TC": (1, 3), "ET": (3,)},
        )
        page = page_of(
            volume,
            named,
            inputs=[{"modality": word, "file": word, "sha256": word}],
            warnings=[word],
            flags=[{"code": word, "words": word + "!", "region": word, "numbers": {}}],
            options={word: word},
            engine={"engine": word},
            software={word: word},
            mask={"file": word, "sha256": word},
        )
        elements = Elements()
        elements.feed(page.decode())
        return elements

    hostile, harmless = parsed(HOSTILE), parsed("p0")
    assert hostile.found == harmless.found
    assert "".join(hostile.words).count(HOSTILE) >= 8


def test_an_index_links_pages_shows_thumbnails_and_names_failures(tmp_path):
    """A card a scan with volumes, a link that works where there is a page; failures with their code."""
    write_scan(tmp_path / "scans" / "p 0&<b>#%", toy_volume(seed=0))
    write_scan(tmp_path / "scans" / "p1", toy_volume(seed=1))
    write_scan(tmp_path / "scans" / "p2", toy_volume(seed=2))
    spec, out = toy_spec(), tmp_path / "out"
    with Segmenter(spec, toy_engine(spec)) as segmenter:
        found = find_scans(tmp_path / "scans", spec)
        assert [type(o) for o in run(segmenter, found, out)] == [Done] * 3
        assert not (out / "index.html").exists()
        (tmp_path / "scans" / "p1" / "p1-t1c.nii.gz").write_bytes(b"")
        kinds = [type(o) for o in run(segmenter, found, out, attachments=["report"])]
        assert [kind.__name__ for kind in kinds] == ["Done", "Failed", "Done"]
        again = [type(o) for o in run(segmenter, found, out, attachments=["report"])]
        assert again.count(Skipped) == 2
    text = (out / "index.html").read_text()
    # The earlier result of the scan that failed now is there, and not among the results.
    assert (out / "p1_seg.json").is_file()
    assert text.count('<div class="blank">') == 0
    links = {html.unescape(link) for link in re.findall(r'<a href="([^"]+)"', text)}
    assert all(link.startswith("./") and (out / unquote(link)).is_file() for link in links)
    assert len(links) == 2
    assert text.count('<img src="data:image/jpeg;base64,') == 2
    assert "E_EMPTY" in text
    assert "<b>#" not in text
    contents = json.loads((out / "p2_seg.json").read_text())
    assert f"WT {contents['volumes_ml']['WT']:.1f} ml" in text


def test_a_folder_without_results_has_an_index_only_of_failures(tmp_path):
    """Nothing at all makes no index."""
    assert write_index(tmp_path, [], {}) is None
    written = write_index(tmp_path, [], {HOSTILE: ScanRefused("E_EMPTY", HOSTILE, "Try again.")})
    assert HOSTILE not in written.read_text()


def lesion_in(picture):
    """Where the strongly coloured pixels of the stages are, left part and upper part of the wide page."""
    colour = picture.max(-1) - picture.min(-1)
    stage = (picture.sum(-1) < 60).any(axis=1)
    rows = slice(np.flatnonzero(stage)[0], np.flatnonzero(stage)[-1])
    return colour[rows] > 60


def test_a_browser_draws_the_lesion_on_its_side(browse):
    """The left lesion is right of the middle of the axial and coronal stages; switched off it is gone."""
    page = page_of(*phantom("SAL"))
    dom, picture = browse(page, look=True)
    assert 'data-state="drawn"' in dom
    columns = np.nonzero(lesion_in(picture))[1]
    third = (picture.shape[1] - 80) / 3
    stages = [columns[(columns - 40) // third == n] for n in range(3)]
    middles = [(stage.mean() - 40) / third - n for n, stage in enumerate(stages)]
    assert middles[0] > 0.55
    assert middles[1] > 0.55
    assert middles[2] < 0.45
    _, without = browse(page, "overlay=0", look=True)
    assert np.count_nonzero(lesion_in(without)) < 0.02 * len(columns)


def test_a_page_opens_as_its_address_says(browse):
    """Slice, modality, switch and opacity stand in the fragment, so that a view can be shared."""
    dom = browse(page_of(*phantom()), "modality=flair&axial=7&opacity=80&coronal=9999&sagittal=x")
    assert re.search(r'data-plane="axial"[^>]*data-at="7"', dom)
    assert "8 / " in dom
    assert not re.search(r'data-at="9999"', dom)


FRAME = """<!DOCTYPE html><title>silent</title>
<script>onmessage = (event) => {{ document.title = "told " + event.data; }};</script>
<iframe src="framed.html" width="{width}" height="{height}" style="border: 0"></iframe>"""

ACTS = """
addEventListener("load", async () => {
  if (document.documentElement.dataset.state !== "drawn") throw new Error("not drawn");
  const rest = () => new Promise((done) => setTimeout(done, 300));
  const figure = (plane) => document.querySelector(`figure[data-plane=${plane}]`);
  const told = {};
  const look = (name) => { told[name] = ["axial", "coronal", "sagittal"].map((p) => +figure(p).dataset.at); };
  look("start");
  const canvas = figure("axial").querySelector("canvas");
  canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowDown", cancelable: true }));
  await rest(); look("key");
  canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: 90, cancelable: true }));
  await rest(); look("wheel");
  const box = canvas.getBoundingClientRect();
  const at = { clientX: box.left + box.width / 2, clientY: box.top + box.height / 2, buttons: 1 };
  canvas.dispatchEvent(new PointerEvent("pointerdown", at));
  canvas.dispatchEvent(new PointerEvent("pointerup", at));
  await rest(); look("click");
  canvas.dispatchEvent(new PointerEvent("pointerdown", at));
  canvas.dispatchEvent(new PointerEvent("pointermove", { ...at, clientX: at.clientX - box.width }));
  canvas.dispatchEvent(new PointerEvent("pointerup", at));
  await rest(); look("drag");
  const slider = figure("axial").querySelector("input");
  slider.value = 5; slider.dispatchEvent(new Event("input", { bubbles: true }));
  await rest(); look("slider");
  told.width = document.documentElement.scrollWidth;
  told.unnamed = [...document.querySelectorAll("input, canvas")].filter(
    (e) => !e.getAttribute("aria-label") && !e.closest("label")).length;
  told.hash = location.hash;
  parent.postMessage(JSON.stringify(told), "*");
});
"""


@pytest.mark.parametrize("width", [1280, 375])
def test_keys_wheel_touch_and_sliders_scroll(browse, width):
    """A click goes to the same place in the other planes; nothing is wider than a phone or without a name."""
    volume, segmentation = phantom()
    head = scene(volume, segmentation, toy_spec())
    dom = browse(page_of(volume, segmentation), width=width, height=812, script=ACTS)
    told = json.loads(html.unescape(re.search(r"<title>told (.*?)</title>", dom)[1]))
    axial, coronal, sagittal = told["start"]
    assert (sagittal, coronal, axial) == head.focus
    assert told["key"] == [axial + 1, coronal, sagittal]
    assert told["wheel"] == [axial + 4, coronal, sagittal]
    assert told["click"] == [axial + 4, head.shape[1] // 2, head.shape[0] // 2]
    assert told["drag"][0] == 0
    assert told["slider"][0] == 5
    assert told["width"] <= width
    assert told["unnamed"] == 0
    assert "axial=5" in told["hash"]


def test_a_hostile_name_does_nothing_in_a_browser(browse):
    """The page draws, and no script but its own has run."""
    dom = browse(page_of(*phantom(scan=HOSTILE), warnings=[HOSTILE]))
    assert 'data-state="drawn"' in dom
    assert 'id="hacked"' not in re.sub(r"&lt;.*?&gt;", "", dom)


@pytest.mark.data
def test_a_real_scan_fits_into_four_megabytes(data_root):
    """TCGA-FG-6692, four modalities of 240x240x155, the expert's labels."""
    folder = data_root / "tcga-lgg" / "TCGA-FG-6692"
    files = [folder / "raw_bet" / f"OtherEXampleFromTCIA_{m}_bet.nii.gz" for m in ("t1", "t1c", "t2", "fla")]
    images = [read_image(path) for path in files]
    geometry = images[1].geometry
    truth = np.asarray(
        read_image(folder / "gt_from_BraTS20_Training_320_128grid_upsampled.nii.gz").data
    ).astype(np.uint8)
    spec = toy_spec()
    labels = np.where(truth == 4, 3, truth).astype(np.uint8)
    volume = Volume(np.stack([np.asarray(i.data, np.float32) for i in images], axis=-1), geometry)
    segmentation = Segmentation(labels, geometry, spec.label_names, spec.region_labels)
    assert 1_000_000 < len(page_of(volume, segmentation)) < 4_000_000
