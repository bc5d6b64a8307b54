"""Networks by name, LargeFOV's geometry and weights, freezing."""

import pytest
import pytorch_lightning as pl
import torch
import torchvision
from segmentation_models_pytorch.decoders.fpn.decoder import MergeBlock
from torch.nn import functional as F  # noqa: N812

from datamodules.errors import InputError
from seeds.classifier import ClassifierTask
from training.largefov import LargeFOV, largefov_state
from training.networks import ARCHITECTURES, build_network

SMALL = {"network_args": {"decoder_channels": 16}}


@pytest.mark.parametrize(
    ("architecture", "encoder", "stride", "arguments", "grid"),
    [
        ("DeepLabV3", "mobilenet_v2", 8, {"decoder_channels": 16}, 8),
        ("DeepLabV3", "resnet18", 16, {"decoder_channels": 16}, 4),
        ("DeepLabV3Plus", "mobilenet_v2", 8, {"decoder_channels": 16}, 16),
        ("FPN", "mobilenet_v2", None, {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32}, 16),
        ("Unet", "resnet18", None, {"decoder_channels": [16] * 5}, 64),
        ("Segformer", "mit_b0", None, {"decoder_segmentation_channels": 16}, 16),
        ("DeepLabV3Plus", "tu-mobilenetv3_small_100", 16, {"decoder_channels": 16}, 16),
    ],
)
def test_scores_come_on_the_networks_own_grid(architecture, encoder, stride, arguments, grid):
    network = build_network(architecture, 4, encoder=encoder, output_stride=stride, network_args=arguments).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 3, 64, 64)).shape == (1, 4, grid, grid)
    assert not any(isinstance(module, torch.nn.Upsample) for module in network.model.segmentation_head)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"architecture": "DeeplabV3plus"}, ["DeeplabV3plus", "DeepLabV3Plus"]),
        ({"architecture": "LargeFov"}, ["LargeFOV"]),
        ({"architecture": "Unet", "encoder": "mobilnet_v2"}, ["mobilnet_v2", "mobilenet_v2"]),
        ({"architecture": "Unet", "output_stride": 8}, ["Unet has no choice of output_stride, which is 8"]),
        ({"architecture": "DeepLabV3", "output_stride": 4}, ["DeepLabV3", "4"]),
        ({"architecture": "FPN", "network_args": {"decoder_chanels": 3}}, ["decoder_chanels", "decoder_dropout"]),
        ({"architecture": "FPN", "weights": "nowhere.pth"}, ["nowhere.pth"]),
        ({"architecture": "LargeFOV", "network_args": {"a": 1}}, ["LargeFOV"]),
        ({"architecture": "LargeFOV", "output_stride": 16}, ["LargeFOV", "output_stride 8"]),
        ({"architecture": "FPN", "network_args": {"aux_params": {"classes": 1}}}, ["aux_params"]),
        ({"architecture": "FPN", "network_args": {"activation": "softmax2d"}}, ["activation"]),
    ],
)
def test_what_cannot_be_built_is_one_sentence(settings, words):
    with pytest.raises(InputError) as caught:
        build_network(num_classes=3, **settings)
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in words)


def test_a_size_the_architecture_cannot_take_is_one_sentence():
    network = build_network("DeepLabV3", 3, output_stride=8, **SMALL)
    with pytest.raises(InputError, match=r"multiples of 8, not 321x321: .* 320"):
        network(torch.zeros(1, 3, 321, 321))


def test_every_architecture_is_offered():
    assert {"LargeFOV", "DeepLabV3", "DeepLabV3Plus", "Unet", "FPN", "PSPNet"} <= set(ARCHITECTURES)


# --- LargeFOV


@pytest.mark.parametrize(("side", "positions"), [(321, 41), (65, 9), (97, 13)])
def test_largefov_grid(side, positions):
    """321 -> 41, as in Caffe: every pool rounds up. Counted without computing."""
    with torch.device("meta"):
        assert LargeFOV(21)(torch.empty(1, 3, side, side)).shape == (1, 21, positions, positions)


def test_largefov_layers_are_the_papers():
    network = LargeFOV(21)
    convolutions = [m for m in network.features if isinstance(m, torch.nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    assert [m.dilation[0] for m in convolutions] == [1] * 10 + [2] * 3
    pools = [m for m in network.features if isinstance(m, torch.nn.MaxPool2d)]
    assert [(m.kernel_size, m.stride, m.padding) for m in pools] == [(3, 2, 1)] * 3 + [(3, 1, 1)] * 2
    assert (network.fc6.kernel_size, network.fc6.dilation, network.fc6.out_channels) == ((3, 3), (12, 12), 1024)
    assert (network.fc7.kernel_size, network.fc7.out_channels) == ((1, 1), 1024)
    assert network.dropout.p == 0.5
    assert list(network.head_layers) == [network.fc8]
    assert network.fc8.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert not any(module.bias.any() for module in network.modules() if isinstance(module, torch.nn.Conv2d))


def test_largefovs_scores_step_by_step():
    """The 3x3 mean, a ReLU and dropout behind fc6 and fc7 each, and nothing behind fc8."""
    torch.manual_seed(0)
    network = LargeFOV(4)
    for layer in (network.fc6, network.fc7, network.fc8):
        torch.nn.init.normal_(layer.bias)
    image = torch.randn(1, 3, 65, 65)
    with torch.no_grad():
        x = F.avg_pool2d(network.features(image), 3, stride=1, padding=1)
        x = F.conv2d(x, network.fc6.weight, network.fc6.bias, padding=12, dilation=12).clamp(min=0)
        x = F.conv2d(x, network.fc7.weight, network.fc7.bias).clamp(min=0)
        torch.testing.assert_close(network.eval()(image), F.conv2d(x, network.fc8.weight, network.fc8.bias))
        dropped = []
        network.dropout.register_forward_hook(lambda _module, given, output: dropped.append((given[0], output)))
        network.train()(image)
    assert len(dropped) == 2
    for given, output in dropped:
        assert (given >= 0).all()
        assert 0.4 < (output[given > 0] == 0).float().mean() < 0.6


def vgg16_features():
    return torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])


def test_vgg16_becomes_largefov():
    generator = torch.Generator().manual_seed(0)
    vgg = {f"features.{key}": value for key, value in vgg16_features().state_dict().items()}
    fc6 = torch.rand(4096, 512 * 49, generator=generator, dtype=torch.float16)
    fc7 = torch.rand(4096, 4096, generator=generator, dtype=torch.float16)
    vgg |= {"classifier.0.weight": fc6, "classifier.0.bias": torch.arange(4096.0)}
    vgg |= {"classifier.3.weight": fc7, "classifier.3.bias": torch.arange(4096.0)}
    state = largefov_state(vgg)
    network = LargeFOV(3)
    problems = network.load_state_dict(state, strict=False)
    assert problems.unexpected_keys == []
    assert problems.missing_keys == ["fc8.weight", "fc8.bias"]
    # unit 8 of fc6 (the 2nd kept), channel 5, rows 0, 3, 6 and columns 0, 3, 6 of the 7x7 window
    window = fc6[8].view(512, 7, 7)[5]
    assert torch.equal(network.fc6.weight[2, 5], window[[0, 3, 6]][:, [0, 3, 6]])
    assert network.fc6.bias[2] == 8
    assert torch.equal(network.fc7.weight[3, 7, 0], fc7[12, 28][None])


def test_vgg16_without_its_fully_connected_layers_leaves_them_newly_initialised(tmp_path):
    trunk = vgg16_features()
    torch.save({f"features.{key}": value for key, value in trunk.state_dict().items()}, tmp_path / "trunk.pth")
    torch.manual_seed(0)
    before = LargeFOV(3).fc6.weight
    torch.manual_seed(0)
    network = LargeFOV(3, str(tmp_path / "trunk.pth"))
    assert torch.equal(network.features[28].weight, trunk[28].weight)
    assert torch.equal(network.fc6.weight, before)


def test_fully_connected_layers_of_other_shapes_are_left_out(tmp_path):
    """Such as those of a VGG-16 for small images."""
    vgg = {f"features.{key}": value for key, value in vgg16_features().state_dict().items()}
    state = largefov_state(vgg | {f"classifier.{i}.weight": torch.zeros(512, 512) for i in (0, 3)})
    assert state.keys() == vgg.keys()


def test_networks_of_five_channels_take_weights_of_three(tmp_path):
    trunk = vgg16_features()
    torch.save({f"features.{key}": value for key, value in trunk.state_dict().items()}, tmp_path / "trunk.pth")
    network = LargeFOV(3, str(tmp_path / "trunk.pth"), in_channels=5)
    adapted = trunk[0].weight[:, [0, 1, 2, 0, 1]] * 3 / 5
    assert torch.allclose(network.features[0].weight, adapted)
    assert torch.equal(network.features[28].weight, trunk[28].weight)
    assert network(torch.zeros(1, 5, 64, 64)).shape == (1, 3, 8, 8)
    classifier = ClassifierTask(["a"], backbone="resnet18")
    torch.save(classifier.model.features.encoder.state_dict(), tmp_path / "r18.pth")
    for architecture in ("Unet", "DeepLabV3Plus"):
        settings = {"encoder": "resnet18", "weights": str(tmp_path / "r18.pth"), "in_channels": 5}
        network = build_network(architecture, 3, **settings)
        adapted = classifier.model.features.encoder.conv1.weight[:, [0, 1, 2, 0, 1]] * 3 / 5
        assert torch.allclose(network.model.encoder.conv1.weight, adapted)
        assert network.eval()(torch.zeros(1, 5, 64, 64)).shape[:2] == (1, 3)


def test_other_weights_are_refused(tmp_path):
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "bad.pth")
    with pytest.raises(InputError, match="not a VGG-16's"):
        LargeFOV(3, str(tmp_path / "bad.pth"))


# --- weights of encoders


def test_a_classifiers_trunk_initialises_the_encoder(tmp_path):
    classifier = ClassifierTask(["a", "b"], backbone="mobilenet_v2")
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)
    trainer.strategy.connect(classifier)
    trainer.save_checkpoint(tmp_path / "classifier.ckpt")
    network = build_network("DeepLabV3", 3, output_stride=8, weights=str(tmp_path / "classifier.ckpt"), **SMALL)
    own = {key.partition("encoder.")[2]: value for key, value in classifier.state_dict().items() if "encoder." in key}
    loaded = network.model.encoder.state_dict()
    assert len(own) > 100
    assert all(torch.equal(loaded[key], value) for key, value in own.items())


def test_dilation_keeps_what_weights_mean():
    """At the positions that stride 32 computes, an encoder at stride 8 computes the same."""
    torch.manual_seed(0)
    plain = build_network("FPN", 3).eval().model.encoder
    dilated = build_network("DeepLabV3", 3, output_stride=8, **SMALL).eval().model.encoder
    dilated.load_state_dict(plain.state_dict())
    image = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        coarse, fine = plain(image)[-1], dilated(image)[-1]
    assert fine.shape[-1] == 4 * coarse.shape[-1]
    torch.testing.assert_close(fine[..., ::4, ::4], coarse, rtol=1e-3, atol=1e-5)


def test_imagenet_file(real_data):
    file = real_data / "imagenet/mobilenet_v2_imagenet.pth"
    network = build_network("DeepLabV3", 3, output_stride=8, weights=str(file), **SMALL)
    state = torch.load(file, weights_only=True)
    assert torch.equal(network.model.encoder.features[0][0].weight, state["features.0.0.weight"])


# --- freezing


def test_frozen_stages_stay_as_they_are():
    network = build_network("DeepLabV3", 3, output_stride=8, **SMALL)
    network.freeze(4)
    network.train()
    frozen = network.model.encoder.features[:4]  # MobileNetV2: features 0 to 3 are strides 2 and 4
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not any(module.training for module in frozen.modules() if module is not frozen)
    rest = network.model.encoder.features[4:]
    assert all(p.requires_grad for p in rest.parameters())
    before = {key: value.clone() for key, value in network.model.encoder.state_dict().items()}
    graphs = []
    frozen[-1].register_forward_hook(lambda _m, _i, output: graphs.append(output.requires_grad))
    network(torch.randn(2, 3, 64, 64)).sum().backward()
    assert graphs == [False]  # ran without a graph
    after = network.model.encoder.state_dict()
    same = {key for key in before if torch.equal(before[key], after[key])}
    assert {
        key for key in before if key.startswith(("features.0.", "features.1.", "features.2.", "features.3."))
    } <= same
    assert "features.4.conv.0.1.running_mean" not in same


def test_largefov_freezes_by_the_strides_of_vgg():
    network = LargeFOV(3)
    network.freeze(2)  # conv1 and conv2
    trained = [i for i, m in enumerate(network.features) if any(p.requires_grad for p in m.parameters())]
    assert trained == [10, 12, 14, 17, 19, 21, 24, 26, 28]
    network.freeze(8)  # up to conv4, though conv5 computes at stride 8 too
    trained = [i for i, m in enumerate(network.features) if any(p.requires_grad for p in m.parameters())]
    assert trained == [24, 26, 28]


@pytest.mark.parametrize("stride", [3, -2])
def test_a_stride_that_is_none_is_refused(stride):
    with pytest.raises(InputError, match=str(stride)):
        LargeFOV(3).freeze(stride)


def test_stages_beyond_the_depth_ask_for_no_gradient():
    """SMP keeps them, and several processes would wait for their gradients."""
    network = build_network(
        "DeepLabV3Plus", 3, encoder="resnet18", output_stride=8, weights="none",
        network_args={"encoder_depth": 3, "decoder_channels": 16},
    )  # fmt: skip
    network(torch.randn(2, 3, 64, 64)).sum().backward()
    for name, weight in network.named_parameters():
        assert (weight.grad is None) == (not weight.requires_grad) == ("layer3" in name or "layer4" in name), name


def test_the_maps_of_fpn_are_added_without_a_copy():
    torch.manual_seed(0)
    network, images = build_network("FPN", 3, "resnet18").eval(), torch.randn(2, 3, 64, 64)
    scores = network(images)
    network.model.decoder.merge = MergeBlock("add")
    torch.testing.assert_close(network(images), scores)
    cat = build_network("FPN", 3, "resnet18", network_args={"decoder_merge_policy": "cat"})
    assert cat(images).shape == scores.shape
