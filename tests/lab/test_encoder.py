"""Named backbones of torchvision and timm, fitted to small images."""

from __future__ import annotations

import copy

import pytest
import torch

from hsplugin.lab.data import Images, Split
from hsplugin.lab.encoder import backbone


def images(channels: int, size: int) -> Images:
    split = Split(torch.zeros(4, channels, size, size, dtype=torch.uint8), torch.zeros(4).long())
    return Images(split, split, split, classes=2, flip=False, colour=channels == 3)


@pytest.mark.parametrize("name", ["resnet18", "resnet10t", "shufflenet_v2_x0_5"])
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32)])
def test_the_stem_of_a_resnet_keeps_a_small_image_at_its_size(name, channels, size):
    encoder, features = backbone(name, images(channels, size))
    seen = []
    network = encoder[1]
    network.conv1.register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert encoder(torch.rand(2, channels, size, size)).shape == (2, features)
    assert seen[0].shape[-2:] == (size, size)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "mobilenetv3_small_050", "small-conv"])
def test_other_backbones_give_one_vector_an_image(name):
    encoder, features = backbone(name, images(1, 28))
    assert encoder(torch.rand(3, 1, 28, 28)).shape == (3, features)


def test_a_large_image_meets_the_usual_stem():
    encoder, _ = backbone("resnet18", images(3, 96))
    assert encoder[1].conv1.kernel_size == (7, 7)


@pytest.mark.parametrize("size", [8, 28])
def test_channels_last_changes_no_feature_and_no_gradient(size):
    torch.manual_seed(0)
    encoder, _ = backbone("small-conv", images(1, size))
    assert encoder[3].weight.is_contiguous(memory_format=torch.channels_last)
    plain = torch.nn.Sequential(*(copy.deepcopy(part) for part in encoder))
    plain[-2] = torch.nn.AdaptiveAvgPool2d(1)
    plain = plain.double().to(memory_format=torch.contiguous_format)
    x = torch.rand(6, 1, size, size)
    for network, given in ((encoder, x), (plain, x.double())):
        network(given).square().sum().backward()
    torch.testing.assert_close(encoder(x).double(), plain(x.double()), rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(encoder.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-3, atol=1e-4)
