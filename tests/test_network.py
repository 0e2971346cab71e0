"""The U-Net: the published parameter count, and each mechanism of the paper's section 2.2 by what it does."""

import copy

import pytest
import torch
from torch import Tensor, nn

from lfmri_export.graph import half_weights, parameter_precision
from lfmri_trainer.network.blocks import (
    BottleneckTransformer,
    Downsample,
    MultiScaleInput,
    ResidualBlock,
    SqueezeExcitation,
    TimeEmbedding,
    Upsample,
)
from lfmri_trainer.network.presets import PRESETS, build_network
from lfmri_trainer.network.unet import UNet, parameter_count

presets = pytest.mark.parametrize("preset", PRESETS)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(11)


def inputs(height: int = 32, width: int = 48, batch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(batch, 1, height, width), torch.rand(batch, 1, height, width), torch.full((batch,), 0.3)


@presets
def test_the_published_number_of_parameters(preset: str) -> None:
    assert parameter_count(build_network(preset)) == 5_253_249


@presets
@pytest.mark.parametrize(("height", "width"), [(16, 16), (32, 64), (64, 16), (48, 80)])
@torch.no_grad()
def test_an_image_of_any_allowed_size_gives_one_of_the_same_size(preset: str, height: int, width: int) -> None:
    x_t, y, t = inputs(height, width, batch=2)
    output = build_network(preset)(x_t, y, t)
    assert output.shape == (2, 1, height, width)
    assert output.isfinite().all()


@presets
@torch.no_grad()
def test_a_size_between_the_multiples_is_refused(preset: str) -> None:
    network = build_network(preset)
    multiple = network.configuration.multiple
    assert multiple == {"iqt-cfm": 8, "iqt-cfm-edge": 16}[preset]
    for height, width in ((4 * multiple + multiple // 2, 4 * multiple), (4 * multiple, 4 * multiple + 1)):
        with pytest.raises(RuntimeError):
            network(*inputs(height, width))


@presets
@torch.no_grad()
def test_the_output_depends_on_each_input(preset: str) -> None:
    network = build_network(preset)
    x_t, y, t = inputs()
    output = network(x_t, y, t)
    for changed in ((x_t + 1, y, t), (x_t, y + 1, t), (x_t, y, t + 0.3)):
        assert (network(*changed) - output).abs().max() > 1e-4


@presets
@torch.no_grad()
def test_images_of_a_batch_do_not_mix(preset: str) -> None:
    network = build_network(preset)
    x_t, y, _ = inputs(batch=2)
    t = torch.tensor([0.1, 0.8])
    together = network(x_t, y, t)
    for i in range(2):
        torch.testing.assert_close(network(x_t[i : i + 1], y[i : i + 1], t[i : i + 1])[0], together[i])


@torch.no_grad()
def test_time_embeddings_of_near_times_differ() -> None:
    embedding = TimeEmbedding(32)
    embedded = embedding(torch.linspace(0, 1, 21))
    assert embedded.shape == (21, 32)
    apart = torch.cdist(embedded, embedded) + torch.eye(21)
    assert apart.min() > 1e-2
    phases = torch.tensor([[0.0, 0.0, 1.0, 1.0]])  # sin 0 and cos 0
    first: list[Tensor] = []
    small = TimeEmbedding(4)
    small.perceptron.register_forward_pre_hook(lambda module, arguments: first.append(arguments[0]))
    small(torch.zeros(1))
    torch.testing.assert_close(first[0], phases)


@torch.no_grad()
def test_four_kernels_see_1_3_5_and_7_voxels() -> None:
    branches = MultiScaleInput(2, 5)
    assert [branch.kernel_size for branch in branches.branches] == [(k, k) for k in (1, 3, 5, 7)]
    impulse = torch.zeros(1, 2, 15, 15)
    impulse[:, :, 7, 7] = 1
    answer = (branches(impulse) - branches(torch.zeros_like(impulse))).abs().reshape(4, 5, 15, 15).amax(dim=1) > 0
    assert answer.sum(dim=(1, 2)).tolist() == [1, 9, 25, 49]


@torch.no_grad()
def test_squeeze_and_excitation_rescales_whole_channels() -> None:
    attention = SqueezeExcitation(8)
    x = torch.rand(2, 8, 6, 7) + 0.5
    factors = attention(x) / x
    assert (factors.amax(dim=(2, 3)) - factors.amin(dim=(2, 3))).max() < 1e-5
    assert 0 < factors.min() < factors.max() < 1
    assert factors[0, :, 0, 0].std() > 1e-3
    brighter = attention(x * torch.arange(1.0, 9)[None, :, None, None]) / (
        x * torch.arange(1.0, 9)[None, :, None, None]
    )
    assert (brighter - factors).abs().max() > 1e-3, "the factors are drawn from the image"


@torch.no_grad()
def test_unshuffle_and_shuffle_are_inverse_layouts() -> None:
    down, up = Downsample(3, 12), Upsample(12, 3)
    for conv in (down.conv, up.conv):  # the identity, so that the layouts alone are left
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)
    x = torch.randn(2, 3, 8, 12)
    coarse = down(x)
    assert coarse.shape == (2, 12, 4, 6)
    torch.testing.assert_close(up(coarse), x)
    torch.testing.assert_close(coarse[:, 0], x[:, 0, ::2, ::2])


@torch.no_grad()
def test_the_transformer_attends_over_all_positions() -> None:
    transformer = BottleneckTransformer(16)
    x = torch.randn(1, 16, 5, 6)
    changed = x.clone()
    changed[..., -1, -1] = torch.randn(16)
    difference = (transformer(changed) - transformer(x)).abs().amax(dim=1)[0]
    assert difference.min() > 1e-6, "a far token changes every other"
    order = torch.randperm(30)
    shuffled = x.flatten(2)[..., order].reshape(x.shape)
    torch.testing.assert_close(transformer(shuffled).flatten(2), transformer(x).flatten(2)[..., order])


@torch.no_grad()
def test_the_transformer_is_pytorchs_own_attention() -> None:
    transformer = BottleneckTransformer(16)
    peer = nn.TransformerEncoderLayer(
        16, 4, dim_feedforward=64, dropout=0, activation="gelu", norm_first=True, batch_first=True
    )
    peer.self_attn.in_proj_weight.copy_(transformer.qkv.weight)
    assert peer.self_attn.in_proj_bias is not None
    peer.self_attn.in_proj_bias.copy_(transformer.qkv.bias)
    peer.self_attn.out_proj.load_state_dict(transformer.projection.state_dict())
    peer.linear1.load_state_dict(transformer.perceptron[0].state_dict())
    peer.linear2.load_state_dict(transformer.perceptron[2].state_dict())
    x = torch.randn(2, 16, 3, 4)
    expected = peer(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(transformer(x), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_block_is_its_shortcut_where_its_attention_is_shut() -> None:
    for channels in ((8, 8), (8, 16)):
        block = ResidualBlock(*channels, 4)
        nn.init.constant_(block.attention.excite.bias, -200)
        x, time = torch.randn(2, 8, 4, 4), torch.randn(2, 4)
        torch.testing.assert_close(block(x, time), block.shortcut(x))


@torch.no_grad()
def test_group_norm_takes_out_the_scale_of_a_convolution() -> None:
    block = ResidualBlock(8, 8, 4)
    assert [m.num_groups for m in block.modules() if isinstance(m, nn.GroupNorm)] == [8, 8]
    x, time = torch.randn(2, 8, 4, 4), torch.randn(2, 4)
    before = block(x, time)
    for conv in (block.conv_1, block.conv_2):
        conv.weight *= 7
        assert conv.bias is not None
        conv.bias *= 7
    torch.testing.assert_close(block(x, time), before, atol=1e-3, rtol=1e-3)


@presets
@torch.no_grad()
def test_skips_carry_every_level_but_the_last(preset: str) -> None:
    network = build_network(preset)
    for transformer in network.bottleneck:
        transformer.register_forward_hook(lambda module, arguments, output: torch.zeros_like(output))
    x_t, y, t = inputs()
    output = network(x_t, y, t)
    assert (network(x_t + 1, y, t) - output).abs().max() > 1e-4, "past a bottleneck of zeros, by the skips"
    widths = network.configuration.widths
    assert len(network.decoder) == len(widths) - 1
    for level, blocks in enumerate(network.encoder):
        cut = copy.deepcopy(network)
        cut.encoder[level].register_forward_hook(lambda module, arguments, result: torch.zeros_like(result))
        for later in cut.downsamples[level : level + 1]:  # what goes on down is silent, what is skipped is seen alone
            later.register_forward_hook(lambda module, arguments, result: torch.zeros_like(result))
        changed = (cut(x_t, y, t) - output).abs().max()
        assert (changed > 1e-5) == (level < len(widths) - 1), f"level {level} of {blocks}"


@presets
@torch.no_grad()
def test_half_weights_keep_the_time_embedding_in_float32(preset: str) -> None:
    network = build_network(preset)
    x_t, y, t = inputs()
    expected = network(x_t, y, t)
    half: UNet = half_weights(copy.deepcopy(network))
    kinds = {name: parameter.dtype for name, parameter in half.named_parameters()}
    assert {kind for name, kind in kinds.items() if name.startswith("time_embedding.")} == {torch.float32}
    assert {kind for name, kind in kinds.items() if not name.startswith("time_embedding.")} == {torch.float16}
    assert (parameter_precision(network), parameter_precision(half)) == ("float32", "float16")
    embedded: list[Tensor] = []
    half.time_embedding.register_forward_hook(lambda module, arguments, output: embedded.append(output))
    output = half(x_t, y, t)
    assert output.dtype == torch.float16
    assert embedded[0].dtype == torch.float32
    assert torch.equal(embedded[0], network.time_embedding(t))
    assert (output.float() - expected).abs().max() < 1e-2 * max(1.0, float(expected.abs().max()))
