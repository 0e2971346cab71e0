"""The comparison page: its pictures, its text, and what a browser makes of it."""

import base64
import io
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage.color import rgb2lab

from lfmri_runtime.errors import BackendMissing, InputRefused, UsageError
from lfmri_runtime.evaluation import Evaluation, evaluate
from lfmri_runtime.page import Panel, pictures, write_page

from .peers import require_peer

Array = NDArray[np.float32]
SHAPE = (18, 20, 24)
VOXEL = (2.0, 1.0, 1.5)
#: Values of 255 that JPEG at the page's quality may be off in smooth pictures.
JPEG = 8
HOSTILE = '<script>alert("1")</script>&\'"'


@pytest.fixture(scope="module")
def ramp() -> Array:
    """Rises towards right (i), anterior (j) and superior (k), each by another amount; within [0, 1]."""
    i, j, k = np.meshgrid(*(np.linspace(0, 1, n, dtype=np.float32) for n in SHAPE), indexing="ij")
    return (0.2 * i + 0.3 * j + 0.5 * k).astype(np.float32)


@pytest.fixture(scope="module")
def panels(ramp: Array) -> list[Panel]:
    return [
        Panel(name="Input", volume=ramp * np.float32(0.5)),
        Panel(name=f"Enhanced {HOSTILE}", volume=ramp),
        Panel(name="Error", volume=ramp * np.float32(0.2), kind="error"),
        Panel(name="Uncertainty", volume=ramp * np.float32(0.1), kind="uncertainty"),
    ]


@pytest.fixture(scope="module")
def figures(ramp: Array) -> dict[str, Evaluation]:
    return {
        "interpolation": evaluate(ramp * np.float32(0.5), ramp, axis=0),
        "enhanced <b>5</b>": evaluate(ramp * np.float32(0.9), ramp, axis=0),
    }


@pytest.fixture(scope="module")
def page(panels: list[Panel], figures: dict[str, Evaluation], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    settings = {"steps": 5, "bundle": HOSTILE}
    write_page(path, title=f"A scan {HOSTILE}", volumes=panels, voxel_size=VOXEL, figures=figures, settings=settings)
    return path


def decoded(jpeg: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(jpeg))))


def drawn(panels: list[Panel]) -> dict[str, pictures.Pictures]:
    return {drawn.plane.name: drawn for drawn in pictures.draw(panels, pictures.find_windows(panels))}


def test_letters_say_where_the_picture_lies(panels: list[Panel], ramp: Array) -> None:
    """Each picture's edge with a letter is the volume's end that the letter names."""
    ends = {"R": (0, -1), "L": (0, 0), "A": (1, -1), "P": (1, 0), "S": (2, -1), "I": (2, 0)}
    high = pictures.find_windows(panels)["image"][1]
    for entry in drawn(panels).values():
        plane = entry.plane
        position = len(entry.indices) // 3
        picture = decoded(entry.jpegs[1][position]).astype(float)
        edges = {"top": picture[0], "bottom": picture[-1], "left": picture[:, 0], "right": picture[:, -1]}
        for side, values in edges.items():
            axis, end = ends[getattr(plane, side)]
            line = np.take(ramp, [end], axis).take([entry.indices[position]], plane.axis)
            expected = np.clip(np.sort(line.ravel()) / high, 0, 1) * 255
            np.testing.assert_allclose(np.sort(values), expected, atol=JPEG)
    assert {(p.left, p.right) for p in pictures.PLANES if p.column_axis == 0} == {("R", "L")}


def test_pictures_keep_every_slice_and_the_plane_of_the_volume(panels: list[Panel], ramp: Array) -> None:
    for name, axis, size in (("Axial", 2, (20, 18)), ("Coronal", 1, (24, 18)), ("Sagittal", 0, (24, 20))):
        entry = drawn(panels)[name]
        assert entry.indices == tuple(range(SHAPE[axis]))
        assert len(entry.jpegs) == len(panels)
        assert {len(row) for row in entry.jpegs} == {SHAPE[axis]}
        assert decoded(entry.jpegs[0][0]).shape == size
        means = [decoded(jpeg).mean() for jpeg in entry.jpegs[1]]
        assert means == sorted(means)
        assert means[-1] > means[0] + 20


def test_windows_are_common_to_a_kind(panels: list[Panel], ramp: Array) -> None:
    windows = pictures.find_windows(panels)
    assert windows["image"] == (0.0, pytest.approx(np.percentile(ramp, 99.9)))
    assert windows["error"] == (0.0, pytest.approx(0.2 * np.percentile(ramp, 99.5)))
    axial = drawn(panels)["Axial"]
    dim, bright = (decoded(axial.jpegs[n][12]).astype(float) for n in (0, 1))
    np.testing.assert_allclose(dim, bright / 2, atol=JPEG)
    black = [Panel(name="empty", volume=np.zeros(SHAPE, np.float32))]
    assert pictures.find_windows(black) == {"image": (0.0, 1.0)}
    assert decoded(drawn(black)["Axial"].jpegs[0][0]).max() == 0


@pytest.mark.parametrize("kind", ["image", "error", "uncertainty"])
def test_colour_maps_rise_evenly_in_lightness(kind: pictures.Kind) -> None:
    table = pictures.colour_table(kind)
    assert table.shape == (256, 3)
    lightness = rgb2lab(table[None] / 255)[0, :, 0]
    coarse = np.diff(lightness[::15])
    assert coarse.min() > 0.5 * coarse.mean()
    assert coarse.max() < 1.5 * coarse.mean()


def test_maps_are_drawn_in_their_colours(panels: list[Panel], ramp: Array) -> None:
    axial = drawn(panels)["Axial"]
    for n, kind in ((2, "error"), (3, "uncertainty")):
        high = pictures.find_windows(panels)[kind][1]
        share = np.clip(panels[n].volume[:, :, 12].T[::-1, ::-1] / high, 0, 1)
        expected = pictures.colour_table(kind)[np.rint(share * 255).astype(int)]
        found = decoded(axial.jpegs[n][12]).astype(float)
        assert np.abs(found - expected).mean() < JPEG
    assert decoded(axial.jpegs[0][12]).ndim == 2


def test_a_page_stays_small(monkeypatch: pytest.MonkeyPatch, panels: list[Panel], tmp_path: Path) -> None:
    whole = sum(len(jpeg) for entry in drawn(panels).values() for row in entry.jpegs for jpeg in row)
    monkeypatch.setattr(pictures, "MAX_CHARACTERS", whole // 4)
    fewer = drawn(panels)
    assert sum(len(jpeg) for entry in fewer.values() for row in entry.jpegs for jpeg in row) <= whole // 4
    for name, axis in (("Axial", 2), ("Coronal", 1), ("Sagittal", 0)):
        entry = fewer[name]
        assert SHAPE[axis] // 2 in entry.indices
        assert set(np.diff(entry.indices)) == {entry.stride}
    assert fewer["Axial"].stride > 3
    write_page(tmp_path / "page.html", title="x", volumes=panels, voxel_size=VOXEL)
    assert f"One slice in {fewer['Axial'].stride} is shown." in (tmp_path / "page.html").read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Collects tags, attributes and the text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] not in ("script", "style"):
            self.text += data


def test_the_text_is_there_and_escaped(page: Path, figures: dict[str, Evaluation]) -> None:
    reader = Reader(page.read_text(encoding="utf-8"))
    assert "Not a medical device." in reader.text
    assert "Radiological convention" in reader.text
    assert f"A scan {HOSTILE}" in reader.text
    assert f"bundle{HOSTILE}" in reader.text
    assert reader.text.count(f"Enhanced {HOSTILE}") == 3
    alternatives = [attributes["alt"] for tag, attributes in reader.tags if tag == "img"]
    assert alternatives[1] == f"Enhanced {HOSTILE}, axial slice 13 of 24"
    assert "enhanced <b>5</b>" in reader.text
    summary = figures["interpolation"].summary["psnr_db"]
    assert f"{summary.mean:.2f} ± {summary.std:.2f}" in reader.text
    assert [attributes.get("type") for tag, attributes in reader.tags if tag == "script"] == ["application/json", None]
    strong = re.findall(r"<strong>([^<]*)</strong>", page.read_text(encoding="utf-8"))
    assert len(strong) == len(figures["enhanced <b>5</b>"].summary)
    assert strong[0].startswith(f"{figures['enhanced <b>5</b>'].summary['psnr_db'].mean:.2f}")


def test_the_page_reaches_for_nothing(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    readable = re.sub(r"[A-Za-z0-9+/=]{200,}", "", text)
    assert not re.search(r"(?i)\b(https?|wss?|ftp):|//[a-z0-9]|@import|url\(", readable)
    for tag, attributes in Reader(text).tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "srcset", "action"):
            assert (attributes.get(name) or "data:").startswith("data:")
    policy = next(a["content"] for t, a in Reader(text).tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_pictures_have_the_shape_of_the_patient(page: Path) -> None:
    ratios = re.findall(r"aspect-ratio:([0-9.]+)", page.read_text(encoding="utf-8"))
    expected = [18 * 2.0 / 20.0] * 4 + [18 * 2.0 / 36.0] * 4 + [20.0 / 36.0] * 4
    np.testing.assert_allclose([float(ratio) for ratio in ratios], expected, atol=1e-4)


def test_sliders_are_labelled(page: Path) -> None:
    tags = Reader(page.read_text(encoding="utf-8")).tags
    sliders = [attributes for tag, attributes in tags if tag == "input"]
    assert [s["id"] for s in sliders] == ["axial", "coronal", "sagittal"]
    assert [a["for"] for tag, a in tags if tag == "label"] == ["axial", "coronal", "sagittal"]
    assert [s["max"] for s in sliders] == ["23", "19", "17"]
    assert all(attributes.get("alt") for tag, attributes in tags if tag == "img")


def test_slices_are_counted_in_the_volume_that_was_cut(panels: list[Panel], tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_page(path, title="x", volumes=panels[:1], voxel_size=VOXEL, first=(1, 2, 3), whole=(30, 40, 50))
    tags = Reader(path.read_text(encoding="utf-8")).tags
    assert [a["alt"] for tag, a in tags if tag == "img"] == [
        "Input, axial slice 16 of 50",
        "Input, coronal slice 13 of 40",
        "Input, sagittal slice 11 of 30",
    ]
    planes = [a for tag, a in tags if tag == "section" and a.get("data-plane")]
    assert [a["data-length"] for a in planes] == ["50", "40", "30"]
    assert [a["data-indices"] for a in planes] == [
        str(list(range(first, first + length))) for first, length in ((3, 24), (2, 20), (1, 18))
    ]


def test_figures_and_settings_may_be_left_out(panels: list[Panel], tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", title="x", volumes=panels[:1], voxel_size=VOXEL)
    text = Reader((tmp_path / "page.html").read_text(encoding="utf-8")).text
    assert "Figures" not in text
    assert "Settings" not in text
    assert "Absolute error" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_input_that_cannot_be_shown_is_refused(ramp: Array, tmp_path: Path) -> None:
    fine, path = Panel(name="fine", volume=ramp), tmp_path / "page.html"
    with pytest.raises(UsageError, match="at least one"):
        write_page(path, title="x", volumes=[], voxel_size=VOXEL)
    for volume in (ramp[1:], ramp[0]):
        with pytest.raises(InputRefused, match="expected one 3-D grid"):
            write_page(path, title="x", volumes=[fine, Panel(name="odd", volume=volume)], voxel_size=VOXEL)
    with pytest.raises(InputRefused, match="odd holds values that are not finite"):
        write_page(
            path,
            title="x",
            volumes=[fine, Panel(name="odd", volume=np.where(ramp > 0.5, np.nan, ramp))],
            voxel_size=VOXEL,
        )
    for voxel_size in ((1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 1.0, np.nan)):
        with pytest.raises(InputRefused, match="voxel sizes"):
            write_page(path, title="x", volumes=[fine], voxel_size=voxel_size)
    assert not path.exists()


def test_a_missing_extra_names_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, ramp: Array, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(BackendMissing, match=r"Pillow is not installed.*pip install 'lfmri\[evaluate\]'"):
        write_page(tmp_path / "x.html", title="x", volumes=[Panel(name="a", volume=ramp)], voxel_size=VOXEL)


def chromium(page: Path, folder: Path, *options: str) -> str:
    """Open a page without a screen or a network and return what is written to standard output."""
    program = shutil.which("chromium")
    require_peer("Debian's chromium", program is not None)
    assert program is not None
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    quiet += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder / 'profile'}"]
    command = [program, *quiet, "--window-size=1280,1600", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_the_script_runs_in_a_browser(page: Path, tmp_path: Path) -> None:
    dom = chromium(page, tmp_path, "--virtual-time-budget=3000", "--dump-dom")
    outputs = re.findall(r"<output[^>]*>([^<]*)</output>", dom)
    assert outputs == [
        "slice 13 of 24, 18.0 mm from the bottom",
        "slice 11 of 20, 10.0 mm from the back",
        "slice 10 of 18, 18.0 mm from the left",
    ]
    assert 'aria-valuetext="slice 13 of 24, 18.0 mm from the bottom"' in dom


def test_a_slider_moves_all_pictures_of_its_plane(page: Path, panels: list[Panel], tmp_path: Path) -> None:
    """A second script plays the user, in a copy whose policy allows it: it moves one slider to its end."""
    move = 'const s=document.getElementById("axial");s.value=23;s.dispatchEvent(new Event("input"));'
    text = page.read_text(encoding="utf-8").replace("script-src ", "script-src 'unsafe-inline' ")
    text = re.sub(r"'sha256-[^']*'", "", text, count=1)
    (tmp_path / "moved.html").write_text(text.replace("</body>", f"<script>{move}</script></body>"), encoding="utf-8")
    dom = chromium(tmp_path / "moved.html", tmp_path, "--virtual-time-budget=3000", "--dump-dom")
    outputs = re.findall(r"<output[^>]*>([^<]*)</output>", dom)
    assert outputs[0] == "slice 24 of 24, 34.5 mm from the bottom"
    assert outputs[1] == "slice 11 of 20, 10.0 mm from the back"
    images = [a for tag, a in Reader(dom).tags if tag == "img"]
    axial = drawn(panels)["Axial"]
    for n, panel in enumerate(panels):
        assert images[n]["src"] == f"data:image/jpeg;base64,{axial.jpegs[n][23]}"
        assert images[n]["alt"] == f"{panel.name}, axial slice 24 of 24"


def test_a_foreign_script_does_not_run(page: Path, tmp_path: Path) -> None:
    foreign = '<script>document.querySelector("output").textContent="foreign"</script></body>'
    text = page.read_text(encoding="utf-8").replace("</body>", foreign)
    (tmp_path / "foreign.html").write_text(text, encoding="utf-8")
    dom = chromium(tmp_path / "foreign.html", tmp_path, "--virtual-time-budget=3000", "--dump-dom")
    assert re.findall(r"<output[^>]*>([^<]*)</output>", dom)[0] == "slice 13 of 24, 18.0 mm from the bottom"


def test_the_page_is_drawn(page: Path, tmp_path: Path) -> None:
    shot = tmp_path / "shot.png"
    chromium(page, tmp_path, f"--screenshot={shot}")
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert pixels.shape == (1600, 1280, 3)
    magma = pictures.colour_table("error")[180].astype(int)
    assert (np.abs(pixels - magma).sum(2) < 30).sum() > 300
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 500
