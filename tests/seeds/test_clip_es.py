"""Maps by CLIP-ES: against a plain implementation of the paper on OpenAI's network, and by hand."""

import cv2
import numpy as np
import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional

from datamodules.errors import InputError
from datamodules.images import IMAGENET_MEAN, IMAGENET_STD
from seeds import pretrained_weights
from seeds.backbones import build_backbone
from seeds.cam_methods.clip_es import ClipES, box_mask, record_attention, spread_by_attention
from seeds.classifier import Classifier, TextHead
from tests.seeds.networks import small_vit

NAME = "tu-vit_base_patch32_clip_quickgelu_224.openai"
PATCH = 32


def paper(visual, texts, background, scale, image):
    """CLIP-ES for one image: visual of open_clip, its own normalisation; texts (C, E) and background (K, E) unit.

    Returns the maps (C, h, w) before the last scaling to 0..1.
    """
    height, width = image.shape[1] // PATCH, image.shape[2] // PATCH
    tokens = visual.conv1(image[None]).flatten(2).transpose(1, 2)
    tokens = torch.cat([visual.class_embedding[None, None], tokens], dim=1)
    tokens = visual.ln_pre(tokens + visual.positional_embedding)
    attention = []
    for block in visual.transformer.resblocks[:-1]:
        normed = block.ln_1(tokens)
        change, weights = block.attn(normed, normed, normed, need_weights=True)
        tokens = tokens + change
        tokens = tokens + block.mlp(block.ln_2(tokens))
        attention.append(weights[0])
    last = visual.transformer.resblocks[-1]
    layer = last.ln_1(tokens).detach().requires_grad_()
    change, weights = last.attn(layer, layer, layer, need_weights=True)
    attention.append(weights[0])
    tokens = tokens + change
    tokens = tokens + last.mlp(last.ln_2(tokens))
    feature = visual.ln_post(tokens)[0, 1:].mean(0) @ visual.proj
    logits = scale * torch.cat([texts, background]) @ functional.normalize(feature, dim=0)
    transition = torch.stack(attention[-8:]).mean(0)[1:, 1:].detach()
    for _ in range(3):
        transition = transition / transition.sum(0, keepdim=True)
        transition = transition / transition.sum(1, keepdim=True)
    transition = (transition + transition.T) / 2
    transition = transition @ transition
    maps = []
    for index in range(len(texts)):
        (gradient,) = torch.autograd.grad(logits.softmax(0)[index], layer, retain_graph=True)
        cam = (layer[0, 1:] * gradient[0, 1:].mean(0)).sum(1).relu().detach()
        cam = (cam - cam.min()) / (cam.max() - cam.min())
        grid = cam.reshape(height, width).numpy()
        inside = np.zeros_like(grid)
        contours, _ = cv2.findContours((grid > 0.4).astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
        for contour in contours:
            x, y, w, h = cv2.boundingRect(contour)
            inside[y : y + h, x : x + w] = 1
        masked = transition * torch.from_numpy(inside).flatten()
        maps.append((masked @ cam).reshape(height, width))
    return torch.stack(maps)


def test_maps_are_those_of_a_plain_implementation_on_open_clips_network(monkeypatch):
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    theirs = open_clip.create_model("ViT-B-32-quickgelu", load_weights=False).visual.eval()
    state = {f"visual.{key}": value for key, value in theirs.state_dict().items()}
    monkeypatch.setattr(pretrained_weights, "read_weights", lambda _path: (state, True))
    texts = functional.normalize(torch.randn(7, 512), dim=1)  # of 4 classes and of the background
    ours = Classifier(build_backbone(NAME, 32, "clip.safetensors"), 4, TextHead(768, 512, 4, 3))
    ours.head.projection.weight.data = theirs.proj.data.T
    ours.head.texts.data = 20 * texts
    pixels = torch.rand(3, 3, 224, 224)
    mean, std = (torch.tensor(each)[:, None, None] for each in (IMAGENET_MEAN, IMAGENET_STD))
    clip_mean, clip_std = (torch.tensor(each)[:, None, None] for each in (theirs.image_mean, theirs.image_std))
    labels = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]])
    assert ours.default_layer == "features.encoder.blocks.11.norm1"
    found = ClipES(ours, ours.default_layer)((pixels - mean) / std, labels)
    assert found.shape == (3, 4, 7, 7)
    assert (found[labels == 0] == 0).all()
    for image, present, maps in zip((pixels - clip_mean) / clip_std, labels.bool(), found, strict=True):
        if present.any():
            expected = paper(theirs, texts[:4][present], texts[4:], 20, image)
            torch.testing.assert_close(maps[present], expected, rtol=1e-3, atol=1e-4 * float(expected.max()))


def test_scores_of_a_text_head_are_log_odds_against_the_background():
    torch.manual_seed(0)
    head = TextHead(6, 5, 2, 3)
    features = torch.randn(4, 6)
    projected = features.double() @ head.projection.weight.T.double()
    logits = projected / projected.norm(dim=1, keepdim=True) @ head.texts.T.double()
    for c in range(2):
        alone = torch.cat([logits[:, c : c + 1], logits[:, 2:]], dim=1).softmax(1)[:, 0]
        torch.testing.assert_close(head(features)[:, c].sigmoid().double(), alone, rtol=1e-5, atol=1e-6)


def test_the_map_of_a_class_that_is_certain_does_not_vanish():
    """In float32 its probability rounds to 1, whose gradient is 0; with one class the map is that of any score."""
    torch.manual_seed(0)
    network, images = small_vit(), torch.randn(1, 3, 32, 48)
    labels = torch.tensor([[0, 1, 0, 0]])
    expected = ClipES(network, "blocks.2.norm1")(images, labels)
    assert float(expected.max()) > 0.01
    with torch.no_grad():
        network.head.bias[1] += 40
    torch.testing.assert_close(ClipES(network, "blocks.2.norm1")(images, labels), expected, rtol=1e-3, atol=1e-5)


def test_boxes_contain_the_parts_above_the_threshold():
    scaled = np.zeros((5, 6), np.float32)
    scaled[0, 0], scaled[1, 1], scaled[4, 4:] = 1, 0.41, 0.5  # two parts, the first joined by a corner
    scaled[3, 1] = 0.4  # not above
    expected = np.zeros((5, 6), bool)
    expected[:2, :2] = expected[4, 4:] = True
    assert np.array_equal(box_mask(scaled), expected)


def test_attention_without_a_preference_spreads_a_map_evenly():
    maps = torch.zeros(1, 2, 2, 3)
    maps[0, 0, 1, 2] = 7
    spread = spread_by_attention(maps, torch.full((1, 8, 8), 1 / 8))  # two tokens before the patches
    torch.testing.assert_close(spread[0, 0], torch.full((2, 3), 1 / 6))
    assert (spread[0, 1] == 0).all()


def test_maps_are_scaled_from_their_minimum_to_their_maximum_and_spread_between_patches_alone():
    attention = torch.tensor([[0.0, 0, 0, 1], [0, 0.5, 0.5, 0], [0, 0.5, 0.5, 0], [1, 0, 0, 1]])[None]  # a class token
    for maps, expected in (([3.0, 4, 5], [0.25, 0.25, 1]), ([7.0, 7, 7], [0, 0, 0])):
        assert spread_by_attention(torch.tensor(maps).view(1, 1, 1, 3), attention).flatten().tolist() == expected


def test_attention_is_balanced_and_symmetric():
    """Three steps of Sinkhorn and Knopp, columns first, the mean with the transpose, and its square, in float64."""
    generator = np.random.default_rng(0)
    attention = np.exp(3 * generator.normal(size=(2, 13, 13)))
    attention /= attention.sum(axis=2, keepdims=True)
    maps = generator.uniform(size=(2, 3, 3, 4))
    maps[..., 0, 0], maps[..., 2, 3] = 0, 1  # from 0 to 1, in boxes of the whole map
    maps[..., 0, 1:] = maps[..., 1:, 0] = 0.6
    found = spread_by_attention(torch.tensor(maps).float(), torch.tensor(attention).float())
    for image in range(2):
        balanced = attention[image, 1:, 1:]
        for _ in range(3):
            balanced = balanced / balanced.sum(axis=0)
            balanced = balanced / balanced.sum(axis=1)[:, None]
        symmetric = (balanced + balanced.T) / 2
        for one, spread in zip(maps[image], found[image], strict=True):
            kept = np.where(box_mask(one), one, 0).ravel()
            np.testing.assert_allclose(spread.ravel(), symmetric @ symmetric @ kept, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [("vit_tiny_patch16_224", {}), ("vit_small_patch14_reg4_dinov2", {}), ("vit_tiny_patch16_224", {"qk_norm": True})],
)
def test_recorded_attention_is_that_of_the_network(name, options):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=2, dynamic_img_size=True, depth=9, **options).eval()
    patch = network.patch_embed.patch_size[0]
    images = torch.randn(2, 3, 2 * patch, 3 * patch)
    outputs = {}
    attn = network.blocks[8].attn
    handles = [
        attn.qkv.register_forward_hook(lambda _m, _i, out: outputs.update(value=out)),
        attn.proj.register_forward_hook(lambda _m, inputs, _o: outputs.update(mixed=inputs[0])),
    ]
    with record_attention(network) as attention, torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    assert len(attention) == 8  # not of the first block
    torch.testing.assert_close(attention[-1].sum(-1), torch.ones(2, 6 + network.num_prefix_tokens))
    # each head's attention is what mixes its values: solved for by least squares
    heads = attn.num_heads
    value = outputs["value"].reshape(2, -1, 3, heads, attn.head_dim)[:, :, 2]
    mixed = outputs["mixed"].reshape(2, -1, heads, attn.head_dim)
    weights = torch.linalg.lstsq(value.permute(0, 2, 3, 1).double(), mixed.permute(0, 2, 3, 1).double()).solution
    torch.testing.assert_close(weights.mean(1).mT.float(), attention[-1], rtol=1e-3, atol=1e-4)


def test_classes_compete_and_indices_and_functions_are_labels_of_one_class():
    torch.manual_seed(0)
    method, images = ClipES(small_vit(), "blocks.2.norm1"), torch.randn(3, 3, 32, 48)
    classes = torch.tensor([2, 0, 1])
    rows = torch.arange(3)
    alone = method(images, functional.one_hot(classes, 4))
    assert alone.shape == (3, 4, 4, 6)
    assert (alone.amax((2, 3)) > 0).sum() == 3
    torch.testing.assert_close(method(images, classes)[:, 0], alone[rows, classes])
    torch.testing.assert_close(method(images, lambda scores: scores[rows, classes])[:, 0], alone[rows, classes])
    together = method(images, torch.ones(3, 4))
    assert not torch.allclose(together[rows, classes], alone[rows, classes], rtol=0.01)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_maps_on_a_gpu_are_those_of_the_processor():
    torch.manual_seed(0)
    network, images, labels = (
        small_vit(),
        torch.randn(3, 3, 64, 48),
        torch.tensor([[1, 0, 1, 1], [0] * 4, [0, 1, 0, 0]]),
    )
    expected = ClipES(network, "blocks.2.norm1")(images, labels)
    found = ClipES(network.cuda(), "blocks.2.norm1")(images.cuda(), labels.cuda())
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-4)


def test_a_network_without_a_transformer():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(InputError, match="method clip needs a network with one vision transformer of timm"):
        ClipES(model, "0")(torch.rand(1, 3, 8, 8), torch.ones(1, 4))
    parallel = timm.create_model("vit_small_patch16_18x2_224", depth=1, num_classes=2)
    with pytest.raises(InputError, match="blocks with one attention each"), record_attention(parallel):
        pass
    two = [VisionTransformer(img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=1) for _ in range(2)]
    with pytest.raises(InputError, match="the ModuleList has 2"), record_attention(nn.ModuleList(two)):
        pass
