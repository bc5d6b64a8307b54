"""Vision transformers as backbones: tokens as maps, weights as DINO and CLIP publish them, seeds of one."""

import numpy as np
import pytest
import torch
import yaml

from datamodules.errors import InputError
from datamodules.seed_cache import SeedCache
from seeds.affinity.affinity_task import BoundaryNetwork
from seeds.backbones import build_backbone
from seeds.classifier import Classifier
from seeds.gradcam import GradCAM
from seeds.pretrained_weights import load_weights
from seeds.vision_transformer import build_vit
from tests.seeds.conftest import IDS
from training.cli import main

TINY = "tu-vit_tiny_patch16_224"


def test_the_map_is_the_tokens_in_their_places():
    torch.manual_seed(0)
    backbone = build_backbone(TINY, 16).eval()
    images = torch.rand(2, 3, 48, 80)
    with torch.no_grad():
        found, tokens = backbone(images), backbone.encoder.forward_features(images)
    assert found.shape == (2, backbone.out_channels, 3, 5)
    assert torch.equal(found[1, :, 2, 1], tokens[1, 1 + 2 * 5 + 1])  # behind the class token
    assert set(backbone.strides.values()) == {16}
    assert backbone.saliency_layer == "encoder.blocks.10"


def test_gradcam_of_its_last_map_is_cam():
    torch.manual_seed(0)
    model = Classifier(build_backbone(TINY, 16), 3).eval()
    images, labels = torch.rand(1, 3, 32, 32), torch.ones(1, 3)
    with torch.no_grad():
        cam = torch.einsum("ck,bkhw->bchw", model.head.weight, model.features(images)).relu() / 4
    np.testing.assert_allclose(GradCAM(model, "features")(images, labels), cam, atol=1e-5)


def test_weights_of_dino_and_of_another_grid(tmp_path):
    """DINO's own names are timm's; positions learned for 7x7 patches are resampled to 14x14."""
    torch.manual_seed(0)
    source = build_vit("tu-vit_tiny_patch16_224")
    state = dict(source.state_dict()) | {"head.last_layer.weight": torch.zeros(2, 2)}
    state["pos_embed"] = torch.randn(1, 1 + 49, 192)
    torch.save(state, tmp_path / "dino.pth")
    network = build_vit(TINY)
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
    name = "tu-vit_base_patch32_clip_224.openai"
    source = build_vit(name).state_dict()
    torch.save(clip_names(source), tmp_path / "clip.pt")
    network = build_vit(name)
    load_weights(network, str(tmp_path / "clip.pt"), name)
    assert all(torch.equal(value, source[key]) for key, value in network.state_dict().items())


def test_mistakes(tmp_path):
    with pytest.raises(InputError, match="patches of 16 pixels: output_stride 8"):
        build_backbone(TINY, 8)
    with pytest.raises(InputError, match="48x40 pixels do not divide into patches of 16"):
        build_backbone(TINY, 16)(torch.rand(1, 3, 48, 40))
    with pytest.raises(InputError, match="backbone of convolutions"):
        BoundaryNetwork(build_backbone(TINY, 16))
    torch.save(build_vit("tu-vit_small_patch16_224").state_dict(), tmp_path / "small.pth")
    with pytest.raises(InputError, match="do not fit backbone"):
        build_backbone(TINY, 16, str(tmp_path / "small.pth"))


def test_seeds_of_one(voc, tmp_path):
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
