import pytest
import torch
import torchvision
from torch import nn

from datamodules.errors import InputError
from seeds import pretrained_weights as weights
from seeds.backbones import build_backbone


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "tu-resnet18"])
@pytest.mark.parametrize("stride", [8, 16])
def test_dilation_computes_the_published_network_at_more_places(name, stride):
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


def test_vgg16_of_deeplab():
    trunk = build_backbone("vgg16", 8).encoder
    pools = [m for m in trunk.modules() if isinstance(m, nn.MaxPool2d)]
    convs = [m for m in trunk.modules() if isinstance(m, nn.Conv2d)]
    assert [pool.stride for pool in pools] == [2, 2, 2, 1, 1]
    assert [conv.dilation[0] for conv in convs] == [1] * 10 + [2] * 3
    with torch.no_grad():
        assert trunk.eval()(torch.zeros(1, 3, 321, 321)).shape == (1, 512, 41, 41)


def test_vgg16_as_published_is_torchvisions():
    torch.manual_seed(0)
    theirs = torchvision.models.vgg11().eval()
    ours = build_backbone("vgg11", 32).eval()
    ours.encoder.load_state_dict({k: v for k, v in theirs.state_dict().items() if k.startswith("features.")})
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(image), theirs.features(image))


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
    [(lambda: build_backbone("resnet5"), "no backbone resnet5"),
     (lambda: build_backbone("resnet18", 12), "output_stride 12"),
     (lambda: build_backbone("vgg11", 4), "output_stride 4"),
     (lambda: build_backbone("convnext_tiny", 8), "output stride 8, only 32"),
     (lambda: build_backbone("resnet18").freeze(3), "freeze_stride 3"),
     (lambda: build_backbone("resnet18").freeze(32), "freezes the whole backbone"),
     (lambda: build_backbone("resnet18", 32, "/no/such.pth"), "neither 'none' nor 'imagenet' nor a file")],
)  # fmt: skip
def test_bad_input(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_torchvisions_files_load(tmp_path):
    theirs = torchvision.models.resnet18()
    torch.save(theirs.state_dict(), tmp_path / "r18.pth")
    backbone = build_backbone("resnet18", 16, str(tmp_path / "r18.pth"))
    assert torch.equal(backbone.encoder.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)


def test_a_classifiers_checkpoint_gives_its_trunk(checkpoint):
    backbone = build_backbone("resnet18", 8, str(checkpoint))
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]["model.features.encoder.layer1.0.conv1.weight"]
    assert torch.equal(backbone.encoder.layer1[0].conv1.weight, saved)


@pytest.mark.parametrize(
    ("change", "words"),
    [(lambda s: s.pop("conv1.weight"), 'Missing key.*"conv1.weight"'),
     (lambda s: s.update(extra=torch.zeros(1)), 'Unexpected key.*"extra"'),
     (lambda s: s.update({"bn1.weight": torch.zeros(3)}), "size mismatch for bn1.weight"),
     (lambda s: s.update({"bn1.weight": 3}), "holds no weights")],
)  # fmt: skip
def test_files_that_do_not_fit(tmp_path, change, words):
    state = torchvision.models.resnet18().state_dict()
    change(state)
    torch.save(state, tmp_path / "r18.pth")
    with pytest.raises(InputError, match=words):
        build_backbone("resnet18", 32, str(tmp_path / "r18.pth"))


@pytest.mark.parametrize("name", ["resnet18", "vgg16"])
def test_imagenet_without_a_network(monkeypatch, name):
    def offline(*_args, **_kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(weights, "get_encoder", offline)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(InputError, match=f"weights of {name} cannot be downloaded"):
        build_backbone(name, 32, "imagenet")


def test_real_imagenet_weights(real_data):
    path = real_data / "imagenet" / "mobilenet_v2_imagenet.pth"
    backbone = build_backbone("mobilenet_v2", 16, str(path))
    stored = torch.load(path, weights_only=True)
    assert torch.equal(backbone.encoder.features[18][0].weight, stored["features.18.0.weight"])
    with pytest.raises(InputError, match="do not fit backbone resnet18"):
        build_backbone("resnet18", 16, str(path))
