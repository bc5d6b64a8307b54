"""Backbones of several libraries: dilation, freezing, weights; and vision transformers, whose tokens become maps."""

import numpy as np
import pytest
import pytorch_lightning as pl
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
import yaml
from timm.layers.selective_kernel import SelectiveKernelAttn
from torch import nn

from datamodules.errors import InputError
from datamodules.images import IMAGENET_MEAN, IMAGENET_STD
from datamodules.seed_cache import SeedCache
from seeds import pretrained_weights as weights
from seeds.backbones import build_backbone
from seeds.classifier import Classifier, ClassifierTask
from seeds.gradcam import GradCAM
from seeds.pretrained_weights import load_weights
from tests.seeds.conftest import IDS
from training.cli import main

TINY = "tu-vit_tiny_patch16_224"


@pytest.mark.parametrize(
    "name",
    [
        "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "tu-resnet18",
        "tu-resnetv2_50", "mobileone_s0",  # a block has several strided branches, in any order
        "timm-skresnet18",  # some convolutions are dilated as published
    ],
)  # fmt: skip
@pytest.mark.parametrize("stride", [8, 16])
def test_dilation_computes_the_published_network_at_more_places(name, stride, monkeypatch):
    def no_attention(_module, paths):  # it averages over the map, which has other positions
        return torch.full_like(paths[:, :, :, :1, :1], 0.5)

    monkeypatch.setattr(SelectiveKernelAttn, "forward", no_attention)
    torch.manual_seed(0)
    published = build_backbone(name, 32).eval()
    fine = build_backbone(name, stride).eval()
    fine.load_state_dict(published.state_dict())
    image = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        coarse, dense = published(image), fine(image)
    assert dense.shape == (1, published.out_channels, 96 // stride, 96 // stride)
    step = 32 // stride
    torch.testing.assert_close(dense[:, :, ::step, ::step], coarse, rtol=1e-3, atol=1e-4 * float(coarse.abs().max()))


@pytest.mark.parametrize(
    ("name", "mean"),
    [
        ("resnet18", IMAGENET_MEAN), ("vgg16", IMAGENET_MEAN), ("mobilenet_v2", IMAGENET_MEAN),
        ("efficientnet_b0", IMAGENET_MEAN), ("efficientnet_v2_s", IMAGENET_MEAN),
        ("efficientnet_v2_l", (0.5, 0.5, 0.5)), ("timm-tf_efficientnet_lite0", (0.5, 0.5, 0.5)),
        ("tu-tf_efficientnet_lite0", (0.5, 0.5, 0.5)), ("xception", (0.5, 0.5, 0.5)),
        ("dpn68", (124 / 255, 117 / 255, 104 / 255)),
    ],
)  # fmt: skip
def test_the_mean_with_which_a_library_trained(name, mean):
    assert tuple(weights.published_statistics(name, is_file=False)[0]) == tuple(mean)


def test_weights_of_another_normalisation_see_the_same_images(tmp_path):
    """In the middle of the map; at its border, zero padding is another colour."""
    torch.manual_seed(0)
    name, middle = "timm-tf_efficientnet_lite0", np.s_[:, :, 1:-1, 1:-1]
    published = build_backbone(name, 32).encoder.eval()
    torch.save(published.state_dict(), tmp_path / "weights.pth")
    adapted = build_backbone(name, 32, str(tmp_path / "weights.pth")).encoder.eval()
    pixels = torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(each)[:, None, None] for each in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        expected, found = published((pixels - 0.5) / 0.5)[1], adapted((pixels - mean) / std)[1]
    torch.testing.assert_close(found[middle], expected[middle], rtol=1e-4, atol=1e-5)


def test_weights_of_another_normalisation_that_cannot_be_adapted(capsys):
    encoder = build_backbone("tu-resnetv2_50x1_bit", 32).encoder  # its first layer standardises its weights
    state = {key: value.clone() for key, value in encoder.state_dict().items()}
    weights.adapt_normalization(encoder, state, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert all(torch.equal(value, state[key]) for key, value in encoder.state_dict().items())
    assert "trained with mean (0.5, 0.5, 0.5) and std (0.5, 0.5, 0.5)" in capsys.readouterr().err


def test_vgg16_of_deeplab():
    trunk = build_backbone("vgg16", 8).encoder
    pools = [m for m in trunk.modules() if isinstance(m, nn.MaxPool2d)]
    convs = [m for m in trunk.modules() if isinstance(m, nn.Conv2d)]
    assert [pool.stride for pool in pools] == [2, 2, 2, 1, 1]
    assert [conv.dilation[0] for conv in convs] == [1] * 10 + [2] * 3
    with torch.no_grad():
        assert trunk.eval()(torch.zeros(1, 3, 321, 321)).shape == (1, 512, 41, 41)


@pytest.mark.parametrize("name", ["vgg11", "vgg11_bn"])
def test_vgg_as_published_is_torchvisions(name):
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name).eval()
    ours = build_backbone(name, 32).eval()
    ours.encoder.load_state_dict({k: v for k, v in theirs.state_dict().items() if k.startswith("features.")})
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(image), theirs.features(image))


def test_vgg_without_weights_is_initialised_as_torchvisions():
    """Normal weights of variance 2 / (9 · output channels), and biases of 0."""
    torch.manual_seed(0)
    for module in build_backbone("vgg11", 8).modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.std().item() == pytest.approx((2 / (9 * module.out_channels)) ** 0.5, rel=0.1)
            assert not module.bias.any()


@pytest.mark.parametrize("name", ["resnet18", "vgg11", TINY, "tu-resnet18"])
def test_a_new_backbone_is_in_training_mode(name):
    """Its strides are measured in eval mode; Lightning trains a network in the mode that it finds."""
    assert all(module.training for module in build_backbone(name, 16).modules())


def test_default_saliency_layers():
    assert build_backbone("vgg16", 8).saliency_layer == "encoder.features.22"  # conv4_3, rectified
    assert build_backbone("resnet18", 8).saliency_layer == "encoder.layer2.1"
    assert build_backbone("mobilenet_v2", 16).saliency_layer == "encoder.features.6"


def test_saliency_is_not_read_where_only_the_average_follows():
    assert build_backbone("resnet18", 8, depth=3).saliency_layer == "encoder.layer1.1"


def test_frozen_stages_stay_as_they_are():
    backbone = build_backbone("mobilenet_v2", 16)
    backbone.freeze(8)
    backbone.train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    graph = {}
    blocks = dict(backbone.encoder.features.named_children())
    for name, block in blocks.items():
        block.register_forward_hook(lambda _m, _i, out, name=name: graph.__setitem__(int(name), out.requires_grad))
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    backbone(torch.randn(2, 3, 64, 64)).square().mean().backward()
    optimizer.step()
    changed = {
        int(key.split(".")[2]) for key, value in backbone.state_dict().items() if not torch.equal(value, before[key])
    }
    assert changed == set(range(7, 19))  # features.7 is the first block of stride 16
    assert [graph[i] for i in range(19)] == [False] * 7 + [True] * 12


def test_freezing_by_stage_ignores_dilation():
    """With output stride 8 the last stages compute at stride 8 as well, and are still trained."""
    backbone = build_backbone("resnet18", 8)
    backbone.freeze(8)
    learning = {name.split(".")[1] for name, p in backbone.named_parameters() if p.requires_grad}
    assert learning == {"layer3", "layer4"}
    backbone.freeze(0)
    assert all(p.requires_grad for p in backbone.parameters())


@pytest.mark.parametrize(
    ("make", "words"),
    [(lambda: build_backbone("nothing"), r"no backbone nothing .*; there are vgg16"),
     (lambda: build_backbone("mobilenetv2"), r"no backbone mobilenetv2 .*did you mean 'mobilenet_v2'\?"),
     (lambda: build_backbone("tu-resnet_18"), r"did you mean 'tu-resnet18'\?"),
     (lambda: build_backbone("resnet18", 12), "output_stride 12"),
     (lambda: build_backbone("swin_t"), r"backbone swin_t: its last map has the shape \(1, 2, 2, 768\), and must be"),
     (lambda: build_backbone("vgg11", 4), "output_stride 4"),
     (lambda: build_backbone("convnext_tiny", 8), "output_stride 8 is not possible with this encoder, only 32"),
     (lambda: build_backbone("resnet18").freeze(3), "freeze_stride 3"),
     (lambda: build_backbone("resnet18").freeze(32), "freezes the whole backbone"),
     (lambda: build_backbone(TINY, 16).freeze(16), "this encoder has no stages to tell apart; set it to 0"),
     (lambda: build_backbone("efficientnet_v2_s", 32, depth=3),
      "efficientnet_v2_s cannot be built at depth 3: depth is 5, or for encoders of"),
     (lambda: build_backbone("resnet18", 32, "/no/such.pth"), "neither 'none' nor 'imagenet' nor a file")],
)  # fmt: skip
def test_bad_input(make, words):
    with pytest.raises(InputError, match=words):
        make()


@pytest.mark.parametrize("nested", [False, True])
def test_torchvisions_files_load(tmp_path, nested):
    """Also those of trainings that store more beside the weights."""
    theirs = torchvision.models.resnet18()
    state = theirs.state_dict()
    torch.save({"epoch": 3, "state_dict": state} if nested else state, tmp_path / "r18.pth")
    backbone = build_backbone("resnet18", 16, str(tmp_path / "r18.pth"))
    assert torch.equal(backbone.encoder.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)


@pytest.mark.parametrize(
    ("in_channels", "expected"),
    [(1, [6.0]), (2, [1.5, 3.0]), (3, [1.0, 2.0, 3.0]), (5, [0.6, 1.2, 1.8, 0.6, 1.2])],
)
def test_weights_of_rgb_images_are_adapted(tmp_path, in_channels, expected):
    """Red 1, green 2, blue 3: repeated in turn, times 3/N; summed for one channel."""
    state = torchvision.models.resnet18().state_dict()
    state["conv1.weight"][:] = torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    torch.save(state, tmp_path / "r18.pth")
    backbone = build_backbone("resnet18", 16, str(tmp_path / "r18.pth"), in_channels=in_channels)
    assert backbone.in_channels == in_channels
    assert torch.allclose(backbone.encoder.conv1.weight[7, :, 2, 3], torch.tensor(expected))
    assert torch.equal(backbone.encoder.layer1[0].conv1.weight, state["layer1.0.conv1.weight"])


@pytest.mark.parametrize(
    "name",
    ["mobilenet_v2", "vgg11", "tu-vit_small_patch16_224.dino", "efficientnet_b0", "convnext_tiny", "tu-resnet18"],
)
def test_every_kind_of_backbone_takes_other_numbers_of_channels(tmp_path, name):
    """With the same weights for each colour a gray image in three channels and in four gives the same map."""
    stride = 32 if name == "convnext_tiny" else 16
    rgb = build_backbone(name, stride)
    weight = next(module for module in rgb.modules() if isinstance(module, torch.nn.Conv2d)).weight
    weight.data[:, 1:] = weight.data[:, :1]
    torch.save(rgb.encoder.state_dict(), tmp_path / "weights.pth")
    four = build_backbone(name, stride, str(tmp_path / "weights.pth"), in_channels=4)
    gray = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = four.eval()(gray.expand(1, 4, 64, 64)), rgb.eval()(gray.expand(1, 3, 64, 64))
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_a_classifiers_checkpoint_gives_its_trunk(checkpoint):
    backbone = build_backbone("resnet18", 8, str(checkpoint))
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]["model.features.encoder.layer1.0.conv1.weight"]
    assert torch.equal(backbone.encoder.layer1[0].conv1.weight, saved)


@pytest.mark.parametrize(
    ("change", "words"),
    [(lambda s: s.pop("conv1.weight"), 'Missing key.*"conv1.weight"'),
     (lambda s: s.update(extra=torch.zeros(1)), 'Unexpected key.*"extra"'),
     (lambda s: s.update({"bn1.weight": torch.zeros(3)}), "size mismatch for bn1.weight"),
     (lambda s: s.update({"bn1.weight": 3}), "holds no weights"),
     (lambda s: s.update(state_dict=3), "holds no weights")],
)  # fmt: skip
def test_files_that_do_not_fit(tmp_path, change, words):
    state = torchvision.models.resnet18().state_dict()
    change(state)
    torch.save(state, tmp_path / "r18.pth")
    with pytest.raises(InputError, match=words):
        build_backbone("resnet18", 32, str(tmp_path / "r18.pth"))


@pytest.mark.parametrize("error", [OSError, Exception])  # those of a proxy have no class of Python's
@pytest.mark.parametrize("name", ["resnet18", "vgg16"])
def test_imagenet_without_a_network(monkeypatch, name, error):
    def offline(*_args, **_kwargs):
        raise error("no route to host")

    monkeypatch.setattr(weights, "get_encoder", offline)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(InputError, match=rf"weights of {name} cannot be downloaded \(no route to host\): give"):
        build_backbone(name, 32, "imagenet")


def test_real_imagenet_weights(real_data):
    path = real_data / "imagenet" / "mobilenet_v2_imagenet.pth"
    backbone = build_backbone("mobilenet_v2", 16, str(path))
    stored = torch.load(path, weights_only=True)
    assert torch.equal(backbone.encoder.features[18][0].weight, stored["features.18.0.weight"])
    with pytest.raises(InputError, match="do not fit backbone resnet18"):
        build_backbone("resnet18", 16, str(path))


LITE = "tf_efficientnet_lite0"  # trained with mean and std 0.5


def test_timms_files_load_and_take_images_of_imagenets_normalisation(tmp_path):
    """The first layer computes what timm's does for its own normalisation; the other weights stay as they are."""
    theirs = timm.create_model(LITE).eval()
    with torch.no_grad():
        theirs.bn1.running_mean.normal_()
        theirs.bn1.running_var.uniform_(0.5, 2)
    torch.save(theirs.state_dict(), tmp_path / "lite.pth")
    backbone = build_backbone(f"tu-{LITE}", 16, str(tmp_path / "lite.pth")).eval()
    pixels = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(each)[:, None, None] for each in (IMAGENET_MEAN, IMAGENET_STD))
    own = backbone.encoder.model
    with torch.no_grad():
        first = own.bn1(own.conv_stem((pixels - mean) / std))
        wanted = theirs.bn1(theirs.conv_stem((pixels - 0.5) / 0.5))
    torch.testing.assert_close(first[..., 1:-1, 1:-1], wanted[..., 1:-1, 1:-1], rtol=1e-4, atol=1e-4)
    assert torch.equal(own.blocks[6][0].conv_pwl.weight, theirs.blocks[6][0].conv_pwl.weight)


def test_a_classifiers_checkpoint_is_not_adapted_again(tmp_path):
    task = ClassifierTask(["a", "b"], backbone=f"tu-{LITE}")
    trainer = pl.Trainer(max_epochs=0, accelerator="cpu", logger=False, enable_progress_bar=False)
    trainer.strategy.connect(task)
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    again = build_backbone(f"tu-{LITE}", 16, str(tmp_path / "c.ckpt"))
    for key, value in task.model.features.encoder.state_dict().items():
        assert torch.equal(again.encoder.state_dict()[key], value), key


def test_real_weights_of_timm(real_data):
    path = real_data / "imagenet" / f"{LITE}_imagenet.pth"
    backbone = build_backbone(f"tu-{LITE}", 16, str(path))
    stored = torch.load(path, weights_only=True)
    assert torch.equal(backbone.encoder.model.blocks[3][1].conv_pw.weight, stored["blocks.3.1.conv_pw.weight"])
    with pytest.raises(InputError, match=f"do not fit backbone tu-{LITE}"):
        build_backbone(f"tu-{LITE}", 16, str(real_data / "imagenet" / "mobilenet_v2_imagenet.pth"))


# --- vision transformers


def test_a_vision_transformers_map_is_the_tokens_in_their_places():
    torch.manual_seed(0)
    backbone = build_backbone(TINY, 16).eval()
    images = torch.rand(2, 3, 48, 80)
    with torch.no_grad():
        found, tokens = backbone(images), backbone.encoder.forward_features(images)
    assert found.shape == (2, backbone.out_channels, 3, 5)
    assert torch.equal(found[1, :, 2, 1], tokens[1, 1 + 2 * 5 + 1])  # behind the class token
    assert set(backbone.strides.values()) == {16}
    assert backbone.saliency_layer == "encoder.blocks.10"


def test_gradcam_of_a_vision_transformers_map_is_cam():
    torch.manual_seed(0)
    model = Classifier(build_backbone(TINY, 16), 3).eval()
    images, labels = torch.rand(1, 3, 32, 32), torch.ones(1, 3)
    with torch.no_grad():
        cam = torch.einsum("ck,bkhw->bchw", model.head.weight, model.features(images)).relu() / 4
    np.testing.assert_allclose(GradCAM(model, "features")(images, labels), cam, atol=1e-5)


def test_weights_of_dino_and_of_another_grid(tmp_path):
    """DINO's own names are timm's; positions learned for 7x7 patches are resampled to 14x14."""
    torch.manual_seed(0)
    source = build_backbone(TINY, 16).encoder
    state = dict(source.state_dict()) | {"head.last_layer.weight": torch.zeros(2, 2)}
    state["pos_embed"] = torch.randn(1, 1 + 49, 192)
    torch.save(state, tmp_path / "dino.pth")
    network = build_backbone(TINY, 16).encoder
    load_weights(network, str(tmp_path / "dino.pth"), TINY)
    found = network.state_dict()
    assert torch.equal(found["blocks.3.attn.qkv.weight"], state["blocks.3.attn.qkv.weight"])
    assert torch.equal(found["pos_embed"][:, 0], state["pos_embed"][:, 0])
    assert found["pos_embed"].shape == (1, 197, 192)


def clip_names(state):
    """The names of OpenAI's CLIP for a vision transformer's weights of timm."""
    own = {
        "cls_token": "class_embedding", "pos_embed": "positional_embedding", "patch_embed.proj.weight": "conv1.weight",
        "norm_pre": "ln_pre", "norm": "ln_post",
    }  # fmt: skip
    parts = {
        "norm1": "ln_1",
        "norm2": "ln_2",
        "attn.proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    renamed = {}
    for key, value in state.items():
        if key.startswith("blocks."):
            _, index, *rest = key.split(".")
            name = ".".join(rest)
            name = name.replace("attn.qkv.", "attn.in_proj_")
            for timm_name, clip_name in parts.items():
                name = name.replace(f"{timm_name}.", f"{clip_name}.")
            renamed[f"visual.transformer.resblocks.{index}.{name}"] = value
        else:
            stem, _, last = key.rpartition(".")
            name = own.get(key) or f"{own[stem]}.{last}"
            inner = {"pos_embed": (0,), "cls_token": (0, 0)}.get(key, ())
            renamed[f"visual.{name}"] = value[inner]
    return renamed | {"visual.proj": torch.zeros(192, 8), "logit_scale": torch.zeros(())}


def test_weights_of_clip(tmp_path):
    torch.manual_seed(0)
    name = "tu-vit_base_patch32_clip_quickgelu_224.openai"
    source = build_backbone(name, 32).encoder.state_dict()
    torch.save(clip_names(source), tmp_path / "clip.pt")
    network = build_backbone(name, 32).encoder
    load_weights(network, str(tmp_path / "clip.pt"), name)
    adapted = ("patch_embed.proj.weight", "pos_embed")  # to ImageNet's mean and std
    assert all(torch.equal(value, source[key]) for key, value in network.state_dict().items() if key not in adapted)


@pytest.mark.parametrize(
    "name",
    ["vit_tiny_patch16_224.augreg_in21k", "vit_small_patch16_224.dino", "vit_small_patch14_dinov2.lvd142m",
     "vit_small_patch14_reg4_dinov2.lvd142m", "vit_base_patch32_clip_quickgelu_224.openai"],
)  # fmt: skip
def test_features_are_those_of_timm_for_its_own_mean_and_std(name, tmp_path):
    """With class and register tokens, and positions of another grid."""
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=0, dynamic_img_size=True).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # timm initialises many by 0
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    patch = theirs.patch_embed.patch_size[0]
    backbone = build_backbone(f"tu-{name}", 32 if patch == 32 else 16, str(tmp_path / "vit.pth")).eval()
    config, pixels = timm.get_pretrained_cfg(name), torch.rand(2, 3, 6 * patch, 4 * patch)
    ours, own = ([torch.tensor(each)[:, None, None] for each in pair]
                 for pair in ((IMAGENET_MEAN, IMAGENET_STD), (config.mean, config.std)))  # fmt: skip
    with torch.no_grad():
        found = backbone((pixels - ours[0]) / ours[1])
        tokens = theirs.forward_features((pixels - own[0]) / own[1])[:, theirs.num_prefix_tokens :]
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), tokens, rtol=1e-5, atol=1e-5)


def test_features_of_clip_are_those_of_open_clip(monkeypatch):
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    theirs = open_clip.create_model("ViT-B-32-quickgelu", load_weights=False).visual.eval()
    theirs.output_tokens = True
    state = {f"visual.{key}": value for key, value in theirs.state_dict().items()}
    monkeypatch.setattr(weights, "read_weights", lambda _path: (state, True))
    backbone = build_backbone("tu-vit_base_patch32_clip_quickgelu_224.openai", 32, "clip.safetensors").eval()
    pixels = torch.rand(2, 3, 224, 224)
    mean, std = (torch.tensor(each)[:, None, None] for each in (IMAGENET_MEAN, IMAGENET_STD))
    clip_mean, clip_std = (torch.tensor(each)[:, None, None] for each in (theirs.image_mean, theirs.image_std))
    with torch.no_grad():
        found = backbone((pixels - mean) / std)
        _, tokens = theirs((pixels - clip_mean) / clip_std)
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), tokens, rtol=1e-5, atol=1e-5)


def test_a_tag_that_does_not_exist():
    with pytest.raises(InputError, match=r"there is no backbone tu-vit_small_patch16_224\.dinoo .*224\.dino'"):
        ClassifierTask(["a"], backbone="tu-vit_small_patch16_224.dinoo")


def test_a_name_without_a_tag_where_the_mean_depends_on_it(tmp_path, capsys):
    name = "tu-vit_small_patch16_224"
    torch.save(build_backbone(name, 16).encoder.state_dict(), tmp_path / "vit.pth")
    with pytest.raises(InputError, match=r"depend on who trained tu-vit_small_patch16_224: name .*tu-\S+224\.dino"):
        build_backbone(name, 16, str(tmp_path / "vit.pth"))
    build_backbone(f"{name}.dino", 16, str(tmp_path / "vit.pth"))
    name = "tu-vit_base_patch32_clip_224.openai"
    torch.save(clip_names(build_backbone(name, 32).encoder.state_dict()), tmp_path / "clip.pt")
    build_backbone(name, 32, str(tmp_path / "clip.pt"))
    assert "choose tu-vit_base_patch32_clip_quickgelu_224.openai" in "".join(capsys.readouterr())


def test_vision_transformer_mistakes(tmp_path):
    with pytest.raises(InputError, match="patches of 16 pixels: output_stride 8"):
        build_backbone(TINY, 8)
    with pytest.raises(InputError, match="48x40 pixels do not divide into patches of 16"):
        build_backbone(TINY, 16)(torch.rand(1, 3, 48, 40))
    small = build_backbone("tu-vit_small_patch16_224", 16).encoder
    torch.save(small.state_dict(), tmp_path / "small.pth")
    with pytest.raises(InputError, match="do not fit backbone"):
        build_backbone(TINY, 16, str(tmp_path / "small.pth"))
    distilled = timm.create_model("deit_tiny_distilled_patch16_224")  # two tokens before those of the patches
    torch.save(distilled.state_dict(), tmp_path / "distilled.pth")
    with pytest.raises(InputError, match=r"distilled\.pth do not fit backbone"):
        build_backbone(TINY, 16, str(tmp_path / "distilled.pth"))


def test_seeds_of_a_vision_transformer(voc, tmp_path):
    """Train for an epoch by the command line, then generate seeds."""
    config = {
        "model": {"class_path": "ClassifierTask",
                  "init_args": {"backbone": TINY, "output_stride": 16, "lr": 1e-4}},
        "data": {"class_path": "VOCDataModule", "init_args": {
            "root": str(voc), "train_split": "train", "size": 64, "batch_size": 3, "num_workers": 0,
        }},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
    }  # fmt: skip
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", f"--config={tmp_path / 'fit.yaml'}", f"--output={tmp_path / 'run'}"]) == 0
    words = ["--checkpoint", str(tmp_path / "run/last.ckpt"), "--output", str(tmp_path / "seeds"), "--size", "96"]
    assert (
        main(["seeds", "generate", *words, "--accelerator", "cpu", "--cue_stride", "16", "--scales", "[1.0,1.5]"]) == 0
    )
    cache = SeedCache(tmp_path / "seeds")
    assert cache.maps(IDS[2])[1].shape == (2, 6, 6)
    assert (cache.cues(IDS[2]) == 0).any()


@pytest.mark.parametrize("name", ["resnet18", "tu-resnet18"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_of_a_whole_segmentation_network(tmp_path, name, prefix):
    """Of SMP, also as DistributedDataParallel saves it: the encoder's are taken."""
    network = smp.Unet(name, encoder_weights=None)
    torch.save({f"{prefix}{key}": value for key, value in network.state_dict().items()}, tmp_path / "unet.pth")
    encoder = smp.encoders.get_encoder(name, weights=None)
    load_weights(encoder, str(tmp_path / "unet.pth"), name)
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, network.encoder.state_dict()[key])
