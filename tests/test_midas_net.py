"""The network against a PyTorch twin, and its operators against formulas worked out in numpy."""

import mindspore as ms
import numpy as np
import pytest
import torch
from conftest import TINY
from torch import nn
from torch_midas import ResidualConvUnit, TorchMidas, lively

from mindspore_hub_conf import create_network
from src.common.errors import UsageError
from src.custom_op import StemMaxPool, Upsample2x
from src.midas_net import MidasNet
from src.weights.checkpoint import load_into, read_weights

# Two float32 networks that add in another order differ by a few units in the last place of each layer.
TOLERANCE = 1e-5
SHAPES = [(2, 64, 64), (1, 96, 160)]


def numpy_asymmetric_2x(x):
    """Bilinear to twice the size, output pixel i taken from position i / 2: (..., H, W) -> (..., 2H, 2W)."""
    for axis in (-2, -1):
        x = np.moveaxis(x, axis, 0)
        following = np.concatenate([x[1:], x[-1:]])  # the border repeats
        doubled = np.empty((2 * len(x), *x.shape[1:]), x.dtype)
        doubled[0::2], doubled[1::2] = x, (x + following) / 2
        x = np.moveaxis(doubled, 0, axis)
    return x


def numpy_same_max_pool(x):
    """3x3 max-pool, stride 2, of (..., H, W) with even sides: the window of output i starts at 2 i."""
    padded = np.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, 1), (0, 1)], constant_values=-np.inf)
    windows = [padded[..., i : i + x.shape[-2] : 2, j : j + x.shape[-1] : 2] for i in range(3) for j in range(3)]
    return np.max([w[..., : x.shape[-2] // 2, : x.shape[-1] // 2] for w in windows], axis=0)


class Asymmetric2x(nn.Module):
    def forward(self, x):
        return torch.from_numpy(numpy_asymmetric_2x(x.numpy()))


class SameMaxPool(nn.Module):
    def forward(self, x):
        return torch.from_numpy(numpy_same_max_pool(x.numpy()))


def make_modelzoo(twin, monkeypatch):
    """Turns a twin of the published network into one of the 2021 suite's."""
    twin.pretrained.layer1[3] = SameMaxPool()
    twin.scratch.output_conv[1] = Asymmetric2x()
    monkeypatch.setattr("torch_midas.interpolate", lambda x, **kwargs: Asymmetric2x()(x))
    for module in twin.modules():
        if isinstance(module, ResidualConvUnit):
            module.relu = nn.ReLU(inplace=False)
    return twin


@pytest.fixture(scope="module")
def twin_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "official.pt"
    torch.save(lively(TorchMidas(**TINY)).state_dict(), path)
    return path


def relative_difference(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("network_ops", ["midas", "modelzoo"])
def test_equals_pytorch(network_ops, twin_file, monkeypatch):
    twin = TorchMidas(**TINY)
    twin.load_state_dict(torch.load(twin_file, weights_only=True))
    if network_ops == "modelzoo":
        make_modelzoo(twin, monkeypatch)
    twin.eval()
    net = MidasNet(**TINY, network_ops=network_ops).set_train(False)
    load_into(net, read_weights(twin_file))
    net.set_inputs(ms.Tensor(shape=[None, 3, None, None], dtype=ms.float32))
    rng = np.random.default_rng(0)
    for batch, height, width in SHAPES:
        image = rng.standard_normal((batch, 3, height, width)).astype(np.float32)
        with torch.no_grad():
            expected = twin(torch.from_numpy(image)).numpy()
        found = net(ms.Tensor(image)).asnumpy()
        assert found.shape == (batch, height, width)
        assert expected.std() > 0.01 * expected.mean() > 0  # the comparison means something
        assert relative_difference(found, expected) <= TOLERANCE


def test_the_two_families_differ(twin_file):
    image = ms.Tensor(np.random.default_rng(1).standard_normal((1, 3, 64, 64)).astype(np.float32))
    outputs = []
    for network_ops in ("midas", "modelzoo"):
        net = MidasNet(**TINY, network_ops=network_ops).set_train(False)
        load_into(net, read_weights(twin_file))
        outputs.append(net(image).asnumpy())
    assert relative_difference(*outputs) > 0.01


@pytest.mark.parametrize("shape", [(1, 2, 4, 6), (2, 1, 8, 8)])
def test_modelzoo_operators_equal_numpy(shape):
    x = np.abs(np.random.default_rng(2).standard_normal(shape)).astype(np.float32)
    assert np.array_equal(StemMaxPool("modelzoo")(ms.Tensor(x)).asnumpy(), numpy_same_max_pool(x))
    found = Upsample2x("asymmetric")(ms.Tensor(x)).asnumpy()
    assert np.allclose(found, numpy_asymmetric_2x(x), rtol=0, atol=1e-6)


def test_numpy_formulas_by_hand():
    row = np.array([[1.0, 3.0, 2.0, 4.0]])
    assert numpy_asymmetric_2x(np.array([[1.0, 3.0]])).tolist() == [[1, 2, 3, 3], [1, 2, 3, 3]]
    # windows (1, 3, 2) and (2, 4, padding)
    assert numpy_same_max_pool(np.concatenate([row, row - 1])).tolist() == [[3, 4]]


@pytest.mark.parametrize(("mode", "align_corners"), [("align_corners", True), ("half_pixel", False)])
def test_midas_operators_equal_pytorch(mode, align_corners):
    x = np.abs(np.random.default_rng(3).standard_normal((2, 3, 6, 10))).astype(np.float32)
    expected = nn.functional.interpolate(
        torch.from_numpy(x), scale_factor=2, mode="bilinear", align_corners=align_corners
    )
    assert np.allclose(Upsample2x(mode)(ms.Tensor(x)).asnumpy(), expected.numpy(), rtol=0, atol=1e-6)
    pooled = nn.functional.max_pool2d(torch.from_numpy(x), 3, 2, 1).numpy()
    assert np.array_equal(StemMaxPool("midas")(ms.Tensor(x)).asnumpy(), pooled)


def test_sizes_that_are_not_multiples_of_32():
    net = MidasNet(**TINY).set_train(False)
    for shape in ((1, 3, 64, 72), (1, 3, 16, 32), (1, 3, 33, 64)):
        with pytest.raises(ValueError, match=rf"multiples of 32, found {shape[2]}x{shape[3]}"):
            net(ms.Tensor(np.zeros(shape, np.float32)))


@pytest.mark.parametrize(("key", "value"), [("features", 12), ("network_ops", "torch")])
def test_arguments_out_of_range(key, value):
    with pytest.raises(ValueError, match=f"{key}: expected .*{value}"):
        MidasNet(**{**TINY, key: value})


def test_encoder_is_what_is_called_backbone():
    net = MidasNet(**TINY)
    encoder = {p.name for p in net.encoder.get_parameters()}
    assert encoder == {p.name for p in net.get_parameters() if "backbone" in p.name}
    assert {"backbone_conv.weight", "backbone_layer2.1.conv2.weight"} <= encoder


def test_untrained_outputs_are_alive():
    image = ms.Tensor(np.random.default_rng(4).standard_normal((1, 3, 64, 64)).astype(np.float32))
    for seed in range(3):
        ms.set_seed(seed)
        output = MidasNet(**TINY).set_train(False)(image).asnumpy()
        assert output.min() > 0
        assert output.std() > 0


def test_network_of_the_hub(twin_file, tmp_path):
    net = create_network("midas", checkpoint=str(twin_file))
    own, theirs = read_weights(twin_file).parameters, {item.name: item.asnumpy() for item in net.get_parameters()}
    assert sorted(own) == sorted(theirs)
    assert all((own[name] == theirs[name]).all() for name in own)
    assert net.network_ops == "midas"
    assert create_network("midas", checkpoint=str(twin_file), network_ops="modelzoo").network_ops == "modelzoo"
    assert sorted(item.name for item in create_network("midas", **TINY).get_parameters()) == sorted(own)
    with pytest.raises(NotImplementedError, match="resnet50: expected midas"):
        create_network("resnet50")
    with pytest.raises(UsageError, match="checkpoint: expected a checkpoint file"):
        create_network("midas", checkpoint=str(tmp_path / "gone.ckpt"))
