"""The default layer in networks of several libraries, and Grad-CAM of tokens and of compiled networks."""

import pytest
import torch
import torchvision
from torch import nn

from datamodules.errors import InputError
from seeds.cam_methods.class_activation_maps import CAM
from seeds.default_layer import default_layer
from seeds.gradcam import GradCAM
from tests.seeds.networks import small_vgg


@pytest.mark.parametrize(
    ("name", "layer"),
    [("alexnet", "features.11"), ("resnet18", "layer4"), ("densenet121", "features"), ("mobilenet_v2", "features"),
     ("efficientnet_b0", "features"), ("convnext_tiny", "features"), ("swin_t", "norm"),
     ("squeezenet1_1", "classifier.1"), ("swin_v2_t", "norm")],
)  # fmt: skip
def test_layer_found_in_torchvision(name, layer):
    torch.manual_seed(0)
    model = torchvision.models.get_model(name)
    before = [module.training for module in model.modules()]
    assert default_layer(model, torch.randn(1, 3, 96, 96)) == layer
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize(
    ("name", "layer"),
    [("vit_tiny_patch16_224", "blocks.11.norm1"), ("swin_tiny_patch4_window7_224", "norm"), ("resnet18", "layer4"),
     ("efficientnet_b0", "bn2"), ("deit_tiny_distilled_patch16_224", "blocks.11.norm1")],
)  # fmt: skip
def test_layer_found_in_timm(name, layer):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    images = torch.randn(1, 3, 224, 224)
    model = timm.create_model(name, num_classes=5)
    method = GradCAM(model)
    maps = method(images, torch.tensor([3]))
    assert (method.layer, maps.shape[-1]) == (layer, 14 if "patch16" in name else 7)
    assert maps.max() > 0


def test_tokens_by_the_formula():
    """A ViT's first norm of its last block: the class token apart, the tokens on their grid."""
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=3).eval()
    nn.init.normal_(model.heads.head.weight)
    images = torch.randn(2, 3, 32, 32)
    kept = {}
    block = model.encoder.layers[-1]
    handle = block.ln_1.register_forward_hook(lambda _m, _i, out: kept.update(out=out))
    score = model(images)[:, 1].sum()
    handle.remove()
    slope = torch.autograd.grad(score, kept["out"])[0][:, 1:]
    value = kept["out"].detach()[:, 1:]
    expected = (value * slope.mean(1, keepdim=True)).sum(2).relu().view(2, 1, 4, 4)
    method = GradCAM(model)
    torch.testing.assert_close(method(images, torch.tensor([1, 1])), expected)
    assert method.layer == "encoder.layers.encoder_layer_1.ln_1"
    assert expected.max() > 0
    with pytest.raises(InputError, match="no map"):
        GradCAM(model, "heads")(images, torch.tensor([1, 1]))


def test_nothing_to_find():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 2))
    with pytest.raises(InputError, match="no layer of the Sequential gives a map"):
        GradCAM(model)(torch.randn(1, 3, 8, 8), torch.tensor([0]))


def test_the_last_layer_before_pooling():
    torch.manual_seed(0)
    assert default_layer(small_vgg(), torch.randn(1, 3, 48, 48)) == "features.7"


@pytest.mark.parametrize("how", ["function", "method", "part"])
def test_compiled(how):
    torch.manual_seed(0)
    images, labels = torch.randn(2, 3, 48, 48), torch.ones(2, 4)
    model = small_vgg().eval()
    expected = GradCAM(model, "features.4")(images, labels)
    if how == "part":
        model.features = torch.compile(model.features, backend="eager")
    elif how == "method":
        model.compile(backend="eager")
    else:
        model = torch.compile(model, backend="eager")
    scores = model(images)
    assert torch.equal(GradCAM(model, "features.4")(images, labels), expected)
    assert torch.equal(model(images), scores)
    with pytest.raises(InputError, match="global average pooling"):
        CAM(model, "features.4")(images, labels)
