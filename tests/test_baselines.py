"""The benchmark's methods: their networks, what a fit learns, and that it is kept and gone on with."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from lfmri_runtime.backends import open_backend
from lfmri_runtime.bundle import open_bundle
from lfmri_runtime.errors import InputRefused, UsageError
from lfmri_runtime.slices import noise_volume, padded_shape
from lfmri_trainer.baselines import METHODS, fitting
from lfmri_trainer.baselines.anisotropic_network import AnisotropicUNet
from lfmri_trainer.baselines.dictionary import DeepDictionary, DictionarySettings, _order
from lfmri_trainer.baselines.dictionary_network import DictionaryNetwork, _tiled
from lfmri_trainer.baselines.fitted import Fitted, change, load_arrays, save_arrays
from lfmri_trainer.baselines.fitting import Batch, Moment, NetworkSettings
from lfmri_trainer.baselines.flow import Flow
from lfmri_trainer.baselines.forest import FEATURES, Forest, ForestSettings, leaf_of
from lfmri_trainer.baselines.interpolation import Interpolation, MatchedInterpolation
from lfmri_trainer.baselines.method import Request
from lfmri_trainer.baselines.networks import NetworkMethod
from lfmri_trainer.baselines.pairs import TrainingPairs
from lfmri_trainer.baselines.regression import Regression, RegressionSettings
from lfmri_trainer.baselines.siqt import Siqt, SiqtSettings
from lfmri_trainer.network.unet import parameter_count
from lfmri_trainer.simulation.pairs import read_pairs
from lfmri_trainer.working import WorkingPair, working_pairs

from .bundles import SHARE, MakeBundle, contract, numpy_euler
from .training_fixtures import SIDE, tiny_settings, write_tiny_pairs

Array = NDArray[np.float32]
SMALL = {"batch": 2, "crop": 32, "precision": "32-true", "seed": 4}
#: Fits that take seconds, at rates that so few steps need.
FITS: dict[type[Fitted], Any] = {
    Regression: RegressionSettings(steps=20, learning_rate=1e-3, preset="iqt-cfm-edge", **SMALL),
    DeepDictionary: DictionarySettings(steps=20, learning_rate=1e-3, **SMALL),
    Siqt: SiqtSettings(steps=20, learning_rate=5e-3, **SMALL),
    Forest: ForestSettings(patches=20_000, trees=2, leaf=400, seed=4),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small lose by sharing their work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_pairs(tmp_path_factory.mktemp("tiny") / "pairs")


@pytest.fixture(scope="module")
def training(pairs: Path) -> TrainingPairs:
    return TrainingPairs.open(pairs, read_pairs(pairs), contract().processing)


@pytest.fixture(scope="module")
def unseen(pairs: Path) -> WorkingPair:
    rows = [row for row in read_pairs(pairs) if row.split == "test"]
    return working_pairs(pairs, rows, contract().processing)[0]


@pytest.fixture(scope="module")
def fitted(training: TrainingPairs, tmp_path_factory: pytest.TempPathFactory) -> Callable[[type[Fitted]], Fitted]:
    """Fit each method once."""
    folder, made = tmp_path_factory.mktemp("fitted"), {}

    def fit(kind: type[Fitted]) -> Fitted:
        if kind not in made:
            made[kind] = kind(FITS[kind]).fit(training, checkpoint=folder / "checkpoint.npz")
            assert not (folder / "checkpoint.npz").exists()
        return made[kind]

    return fit


def request_of(pair: WorkingPair, *, indices: tuple[int, ...] = (12, 20, 27)) -> Request:
    return Request(y=pair.condition.astype(np.float32), thick_axis=pair.thick_axis, normal=1, indices=indices)


def truth_of(pair: WorkingPair, request: Request) -> Array:
    return request.slices(pair.target[tuple(slice(0, n) for n in request.y.shape)].astype(np.float32))


def squared(a: Array | float, b: Array) -> float:
    return float(np.square(a - b).mean())


def test_the_published_parameter_counts() -> None:
    assert parameter_count(DictionaryNetwork()) == 9_337_203
    assert parameter_count(DictionaryNetwork(1)) == 9_302_899
    assert Regression(RegressionSettings()).parameters == 5_253_249
    assert Regression(RegressionSettings(preset="iqt-cfm-edge")).parameters == 5_253_249


@pytest.mark.parametrize("kind", [Regression, DeepDictionary, Siqt])
def test_a_fit_halves_its_loss(
    kind: type[NetworkMethod], fitted: Callable[[type[Fitted]], Fitted], training: TrainingPairs
) -> None:
    after, before = fitted(kind), kind(FITS[kind])
    assert isinstance(after, NetworkMethod)
    batch = before.samples(training)(999)  # of the same pairs, but none that was fitted on
    losses = []
    for method in (after, before):
        with torch.no_grad():
            losses.append(float(method.loss(batch, Moment(step=2000, share=0.5))))
    assert losses[0] < 0.55 * losses[1]


@pytest.mark.parametrize("kind", FITS)
def test_a_fit_beats_the_mean(
    kind: type[Fitted], fitted: Callable[[type[Fitted]], Fitted], training: TrainingPairs, unseen: WorkingPair
) -> None:
    """On an unseen subject, squared error: far below that of the training targets' mean; RF's below interpolation's."""
    request = request_of(unseen)
    truth = truth_of(unseen, request)
    mean = float(np.mean([pair.target.astype(np.float32).mean() for pair in training.pairs]))
    trivial = squared(Interpolation().enhance(request), truth) if kind is Forest else 0.6 * squared(mean, truth)
    assert squared(fitted(kind).enhance(request), truth) < trivial


@pytest.mark.parametrize("kind", FITS)
def test_what_is_kept_gives_the_same_bytes(
    kind: type[Fitted], fitted: Callable[[type[Fitted]], Fitted], unseen: WorkingPair, tmp_path: Path
) -> None:
    method, request = fitted(kind), request_of(unseen)
    method.save(tmp_path / "one.npz")
    loaded = kind.load(tmp_path / "one.npz")
    loaded.save(tmp_path / "two.npz")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    assert loaded.enhance(request).tobytes() == method.enhance(request).tobytes()
    assert (loaded.parameters, loaded.settings, loaded.budget) == (method.parameters, method.settings, method.budget)
    assert loaded.about is not None
    assert loaded.about.subjects == ("s1", "s2")
    other = next(one for one in FITS if one is not kind)
    with pytest.raises(InputRefused, match=f"it holds '{kind.key}'"):
        other.load(tmp_path / "one.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "one.npz").read_bytes()[:-2000])
    with pytest.raises(InputRefused, match=r"cut\.npz"):
        kind.load(tmp_path / "cut.npz")


@pytest.mark.parametrize("kind", METHODS.values())
def test_every_method_answers_in_one_shape(
    kind: Any, fitted: Callable[[type[Fitted]], Fitted], unseen: WorkingPair, make_bundle: MakeBundle
) -> None:
    bundle = open_bundle(make_bundle())
    others: dict[Any, Any] = {
        Interpolation: lambda: Interpolation(),
        MatchedInterpolation: lambda: MatchedInterpolation(contract().processing.high_field),
        Flow: lambda: Flow(bundle, open_backend(bundle, threads=1), 1),
    }
    method = others.get(kind, lambda: fitted(kind))()
    request = request_of(unseen)
    images = method.enhance(request)
    assert images.shape == (3, SIDE - 3, SIDE)
    assert images.dtype == np.float32
    assert method.slices_computed(request) in (3, SIDE)
    one = method.enhance(replace(request, indices=(20,)))
    np.testing.assert_allclose(one[0], images[1], atol=1e-5)


def test_the_flow_is_the_runtimes_loop_on_the_volumes_own_noise(unseen: WorkingPair, make_bundle: MakeBundle) -> None:
    bundle, request = open_bundle(make_bundle("noisy")), request_of(unseen)
    x_0 = noise_volume(padded_shape(request.y.shape, 8), std=0.5, seed=0, sample=0)
    rows, columns = request.y.shape[2], request.y.shape[0]
    for steps in (1, 5):
        expected = [
            numpy_euler(x_0[:, index].T[:rows, :columns], request.y[:, index].T, share=SHARE, steps=steps)
            for index in request.indices
        ]
        found = Flow(bundle, open_backend(bundle, threads=1), steps).enhance(request)
        np.testing.assert_allclose(found, np.stack(expected), atol=1e-5)


def test_atoms_are_tiled_as_the_coefficients_say() -> None:
    torch.manual_seed(0)
    coefficients, atoms = torch.rand(2, 64, 3, 5), torch.rand(64, 1, 4, 4)
    expected = sum(torch.kron(coefficients[:, k], atoms[k, 0][None]) for k in range(64))
    torch.testing.assert_close(_tiled(coefficients, atoms)[:, 0], expected)


def test_compensation_changes_nothing_at_the_border_and_atoms_come_from_leaves() -> None:
    torch.manual_seed(0)
    network = DictionaryNetwork().eval()
    atoms = network.dictionary()
    assert atoms.shape == (64, 1, 4, 4)
    assert atoms.abs().max() <= 1, "tanh at the leaves"
    assert len(atoms.flatten(1).unique(dim=0)) == 64
    detail = torch.rand(1, 1, 32, 32)
    changed = network._compensated(detail, torch.rand(1, 64, 8, 8), atoms) != detail
    assert changed[..., 2:-2, 2:-2].all()
    assert changed.sum() == 28 * 28
    x = torch.rand(1, 1, 8, 8).expand(-1, 3, -1, -1)
    order = torch.randperm(64)
    assert not torch.allclose(network(x), network(x, order))
    grey = DictionaryNetwork(1).eval()
    assert grey(x[:, :1]).shape == (1, 1, 32, 32)


def test_the_dictionary_is_shuffled_first_and_frozen_last() -> None:
    method = DeepDictionary(FITS[DeepDictionary])
    rest, dictionary = (sum(p.numel() for p in group) for group in method.groups())
    assert dictionary == 126 * 2 * (16 * 16 + 16)
    assert rest + dictionary == 9_337_203
    assert [method.rates(share)[1] for share in (0.0, 0.85, 0.9, 0.99)] == [5e-3, 2.5e-3, 0.0, 0.0]
    orders = [_order(Moment(step=step, share=0.01), 0) for step in (0, 0, 1)]
    assert all(order is not None and sorted(order.tolist()) == list(range(64)) for order in orders)
    assert orders[0] is not None
    assert torch.equal(orders[0], orders[1])  # type: ignore[arg-type]
    assert not torch.equal(orders[0], orders[2])  # type: ignore[arg-type]
    assert _order(Moment(step=1000, share=0.01), 0) is None
    assert _order(Moment(step=10, share=0.5), 0) is None


def test_slices_are_raised_along_the_thick_axis_only() -> None:
    network = AnisotropicUNet().eval()
    with torch.no_grad():
        for z, side in ((8, 32), (16, 48)):
            assert network(torch.zeros(1, 1, z, side, side)).shape == (1, 1, 4 * z, side, side)


@pytest.mark.parametrize("shape", [(45, 37, 70), (20, 32, 33)])
def test_overlapping_patches_meet(shape: tuple[int, ...]) -> None:
    """With a network that repeats each thick slice, the tiles must give the repeated slices back."""
    method = Siqt(FITS[Siqt])
    method.network.forward = lambda x: x.repeat_interleave(4, dim=2)  # type: ignore[method-assign]
    y = np.random.default_rng(0).random(shape, np.float32)
    expected = np.repeat(y[::4], 4, axis=0)[: shape[0]]
    np.testing.assert_allclose(method.enhance_volume(y), expected, atol=1e-6)


def test_a_forests_gap_begins_at_its_own_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    method, centre = Forest(FITS[Forest]), 1 * 25 + 12  # the second of four slices, the middle of 5 x 5
    monkeypatch.setattr(method, "predict", lambda x: np.repeat(x[:, centre : centre + 1], 4, axis=1))
    y = np.random.default_rng(0).random((21, 9, 7), np.float32)
    np.testing.assert_array_equal(method.enhance_volume(y), np.repeat(y[::4], 4, axis=0)[:21])


def test_a_forest_finds_piecewise_linear_data_again() -> None:
    """Two linear laws, told apart by every feature: whatever a tree splits on, leaves hold one law, and know it."""
    rng = np.random.default_rng(1)
    laws, offsets = rng.normal(size=(2, FEATURES, 4)), np.array([[0.0], [400.0]])
    pieces = rng.integers(2, size=6000)
    x = (rng.random((6000, FEATURES)) + 3.0 * pieces[:, None]).astype(np.float32)
    z = (np.einsum("nf,nfo->no", x, laws[pieces]) + offsets[pieces]).astype(np.float32)
    forest = Forest(ForestSettings(trees=3, leaf=600, ridge=1e-7, seed=2))
    forest.fit_patches(x[:5000], z[:5000])
    assert all(len(tree["leaves"]) > 2 for tree in forest.trees)
    assert np.abs(forest.predict(x[5000:]) - z[5000:]).max() < 0.01 * z.std()


def test_walking_a_tree_is_what_scikit_learn_does() -> None:
    from sklearn.tree import DecisionTreeRegressor

    rng = np.random.default_rng(3)
    x, z = 2 * rng.integers(10, size=(2000, 10)).astype(np.float32), rng.random((2000, 2))
    model = DecisionTreeRegressor(min_samples_leaf=5, random_state=0).fit(x, z)
    tree = {n: getattr(model.tree_, n) for n in ("children_left", "children_right", "feature", "threshold")}
    other = rng.integers(20, size=(500, 10)).astype(np.float32)  # the odd ones lie on thresholds
    np.testing.assert_array_equal(leaf_of(tree, other), model.apply(other))
    stump = DecisionTreeRegressor(max_leaf_nodes=None, min_samples_leaf=2000).fit(x, z).tree_
    assert not leaf_of({n: getattr(stump, n) for n in tree}, other).any()


@pytest.mark.parametrize(
    ("name", "value"), [("children_left", 0), ("children_right", 10**6), ("feature", FEATURES), ("feature", -1)]
)
def test_a_tree_that_leads_nowhere_is_refused(
    name: str, value: int, fitted: Callable[[type[Fitted]], Fitted], tmp_path: Path
) -> None:
    method = fitted(Forest)
    arrays = {key: array.copy() for key, array in method.arrays().items()}
    arrays[f"1/{name}"][0] = value
    method.save(tmp_path / "good.npz")
    with np.load(tmp_path / "good.npz") as archive:
        about = archive["about"]
    save_arrays(tmp_path / "bad.npz", arrays, json.loads(str(about)))
    with pytest.raises(InputRefused, match="a tree's"):
        Forest.load(tmp_path / "bad.npz")


class StoppedError(Exception):
    """Stands for whatever stops a fit."""


@pytest.mark.parametrize("kind", [Regression, DeepDictionary])
def test_a_stopped_fit_ends_where_one_in_one_go_ends(
    kind: type[Fitted], training: TrainingPairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", 0.0)
    settings, checkpoint = replace(FITS[kind], steps=5), tmp_path / "checkpoint.npz"
    whole = kind(settings).fit(training, checkpoint=tmp_path / "other.npz").arrays()

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        kind(settings).fit(training, checkpoint=checkpoint, progress=stop)
    with pytest.raises(UsageError, match="other settings or pairs"):
        kind(replace(settings, seed=9)).fit(training, checkpoint=checkpoint)
    seen: list[int] = []
    again = kind(settings).fit(training, checkpoint=checkpoint, progress=lambda done, total: seen.append(done))
    assert seen == [3, 4, 5]
    for name, array in again.arrays().items():
        np.testing.assert_array_equal(array, whole[name])
    assert not checkpoint.exists()
    checkpoint.write_bytes(b"not an archive")
    with pytest.raises(InputRefused, match="expected a checkpoint"):
        kind(settings).fit(training, checkpoint=checkpoint)


def test_a_budget_of_minutes_counts_the_time_that_steps_take(
    training: TrainingPairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(fitting.time, "monotonic", lambda: 3.0 * next(clock))  # a step takes three seconds
    method = Regression(replace(FITS[Regression], minutes=0.25, steps=1))
    method.fit(training, checkpoint=tmp_path / "checkpoint.npz")
    assert method.budget == "0.25 minutes: 5 steps of 2 crops of 32"


def test_regression_may_start_from_a_run(training: TrainingPairs, tmp_path: Path) -> None:
    start = Regression(FITS[Regression])
    np.savez(tmp_path / "weights.npz", allow_pickle=False, **start.arrays())
    summary = json.dumps({"steps_in_all": 30, "training_subjects": ["s0", "s1"], "presets": ["first"]})
    (tmp_path / "summary.json").write_text(summary)
    tiny_settings(tmp_path).save(tmp_path)
    settings = replace(FITS[Regression], steps=1, learning_rate=1e-9, seed=5, initial=str(tmp_path))
    method = Regression(settings).fit(training, checkpoint=tmp_path / "checkpoint.npz")
    for name, value in start.arrays().items():
        np.testing.assert_allclose(method.arrays()[name], value, atol=1e-6)
    assert method.budget == "1 steps of 2 crops of 32, after 30 steps of flow matching"
    assert method.about is not None
    assert method.about.subjects == ("s0", *training.subjects)
    method.save(tmp_path / "regression.npz")
    about = Regression.load(tmp_path / "regression.npz").about
    assert about is not None
    assert about.presets == ("first", "tiny")
    arrays, text = load_arrays(tmp_path / "regression.npz")
    save_arrays(tmp_path / "earlier.npz", arrays, {key: value for key, value in text.items() if key != "presets"})
    earlier = Regression.load(tmp_path / "earlier.npz").about
    assert earlier is not None
    assert earlier.presets == (), "made before presets were kept"


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_a_fit_has_the_precision_that_is_asked_for(training: TrainingPairs, tmp_path: Path, precision: str) -> None:
    method = Regression(replace(FITS[Regression], steps=1, precision=precision))
    loss, seen = method.loss, []

    def noting(batch: Batch, moment: Moment) -> torch.Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return loss(batch, moment)

    method.loss = noting  # type: ignore[method-assign]
    arrays = method.fit(training, checkpoint=tmp_path / "checkpoint.npz").arrays()
    assert seen == [precision == "bf16-mixed"]
    assert all(np.isfinite(array).all() for array in arrays.values())


@pytest.mark.parametrize("kind", [DeepDictionary, Siqt])
def test_a_loss_under_autocast_is_finite(kind: type[NetworkMethod], training: TrainingPairs) -> None:
    method = kind(FITS[kind])
    batch = method.samples(training)(0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(method.loss(batch, Moment(step=0, share=0.5)))


def test_a_loss_that_runs_away_is_said(training: TrainingPairs, tmp_path: Path) -> None:
    method = Regression(replace(FITS[Regression], steps=2))
    method.loss = lambda batch, moment: functional.relu(batch["y"]).sum() * torch.nan  # type: ignore[method-assign]
    with pytest.raises(InputRefused, match="the loss is nan at step 0"):
        method.fit(training, checkpoint=tmp_path / "checkpoint.npz")


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (Regression, {"crop": "30"}, "multiple of 8"),
        (Regression, {"preset": "u-net"}, "expected one of iqt-cfm"),
        (Regression, {"steps": "0"}, "at least"),
        (Regression, {"minutes": "-1"}, "no negative number"),
        (Regression, {"precision": "8"}, "bf16-mixed or 32-true"),
        (Regression, {"steps": "many"}, "expected a value like 20000"),
        (Regression, {"stps": "3"}, "no setting 'stps'"),
        (DeepDictionary, {"crop": "48"}, "multiple of 32"),
        (Siqt, {"crop": "16"}, "multiple of 32"),
        (Forest, {"trees": "0"}, "at least one patch"),
    ],
)
def test_settings_that_cannot_work_are_refused(kind: type[Fitted], changes: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        kind(change(kind.Settings(), changes, kind.key))


def test_without_training_pairs_nothing_is_fitted(pairs: Path) -> None:
    rows = [row for row in read_pairs(pairs) if row.split == "test"]
    with pytest.raises(InputRefused, match="no pair has the split train"):
        TrainingPairs.open(pairs, rows, contract().processing)


def test_settings_are_said_in_full() -> None:
    assert isinstance(DictionarySettings(), NetworkSettings)
    assert (DictionarySettings().batch, DictionarySettings().crop) == (32, 192), "patches of 48 after reduction by 4"
