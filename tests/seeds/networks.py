"""Small networks of known kinds."""

import functools
from collections import OrderedDict
from typing import Any

import torch
import torchvision
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.models.vgg import make_layers


def small_vgg(classes: int = 4, *, norm: bool = False) -> nn.Module:
    """Build a VGG-like network: 3x3 convolutions and pools under ``features``, a fixed grid, linear layers with ReLUs.

    ``features.4`` is the ReLU before the second pool, ``features.7`` (with batch norms ``features.10``) the last one.
    """
    parts = {
        "features": make_layers([8, "M", 16, "M", 24, "M"], batch_norm=norm),
        "avgpool": nn.AdaptiveAvgPool2d(3),
        "flatten": nn.Flatten(),
        "classifier": nn.Sequential(nn.Linear(216, 32), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(32, classes)),
    }
    return nn.Sequential(OrderedDict(parts))


@functools.cache
def network(name: str) -> nn.Module:
    """Return the small VGG, or a network of torchvision with four classes; its weights are random."""
    torch.manual_seed(0)
    return (small_vgg() if name == "vgg" else torchvision.models.get_model(name, num_classes=4)).eval()


def small_vit(classes: int = 4) -> nn.Module:
    """Build a vision transformer of three blocks with patches of 8 pixels, for images of any size."""
    return VisionTransformer(
        img_size=32, patch_size=8, embed_dim=16, depth=3, num_heads=2, num_classes=classes, dynamic_img_size=True
    )


class Captioning(nn.Module):
    """A CNN and an LSTM: the log-probabilities of a sentence's words, each given the words before it."""

    def __init__(self, words: int = 6, width: int = 8) -> None:
        super().__init__()
        self.cnn = nn.Sequential(nn.Conv2d(3, width, 3, stride=4), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU())
        self.start, self.embed = nn.Linear(width, width), nn.Embedding(words, width)
        self.lstm, self.word = nn.LSTM(width, width, batch_first=True), nn.Linear(width, words)

    def forward(self, images, sentence):
        state = self.start(self.cnn(images).mean((2, 3))).unsqueeze(0)
        states, _ = self.lstm(self.embed(sentence[:, :-1]), (state, state.tanh()))
        return self.word(states).log_softmax(2)  # (B, T - 1, words)


class QuestionAnswering(nn.Module):
    """A CNN, an LSTM that reads a question, and one score per reply from the product of both."""

    def __init__(self, words: int = 6, replies: int = 5, width: int = 8) -> None:
        super().__init__()
        self.cnn = nn.Sequential(nn.Conv2d(3, width, 3, stride=4), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU())
        self.embed, self.lstm = nn.Embedding(words, width), nn.LSTM(width, width, batch_first=True)
        self.reply = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, replies))

    def forward(self, images, question):
        _, (state, _) = self.lstm(self.embed(question))
        return self.reply(self.cnn(images).mean((2, 3)) * state[-1])


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Return all that a method must leave as it was: of the network, and of torch."""
    return {
        "modes": [m.training for m in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()],
        "learning": [p.requires_grad for p in model.parameters()],
        "grads": [p.grad for p in model.parameters()],
        "places": [(p.dtype, p.device, p.data_ptr()) for p in model.parameters()],
        "modes of torch": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "functions": len(torch.overrides._get_current_function_mode_stack()),
    }
