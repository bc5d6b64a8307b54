"""Targets: indices, labels, functions, captions, replies to questions; and refused ones."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from datamodules.errors import InputError
from seeds.cam_methods import class_activation_maps as cams
from seeds.cam_methods import excitation_backprop, input_gradients
from seeds.cam_methods.clip_es import ClipES
from seeds.cam_methods.registry import METHODS, method_class
from seeds.gradcam import Counterfactual, GradCAM
from tests.seeds.networks import Captioning, QuestionAnswering, small_vgg

IMAGES = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]])


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return small_vgg()


@pytest.mark.parametrize("name", [name for name in METHODS if name != "clip"])  # its classes compete
def test_indices_and_functions_are_labels_of_one_class(model, name):
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=4) if name == "cam" else model
    method = METHODS[name](network, "layer4" if name == "cam" else "features.4")
    classes = torch.tensor([2, 0, 1])
    every = method(IMAGES, torch.ones(3, 4))
    some = method(IMAGES, -0.25 * LABELS)  # any number but 0 selects a class
    assert every.abs().amax() > 0
    keep = LABELS.view(3, 4, *[1] * (some.dim() - 2))
    scale = 1e-5 * float(every.abs().max())
    torch.testing.assert_close(some, every * keep, rtol=1e-4, atol=scale)
    chosen = every[torch.arange(3), classes][:, None]
    torch.testing.assert_close(method(IMAGES, classes), chosen, rtol=1e-4, atol=scale)
    if name not in ("cam", "mwp", "c-mwp"):  # these explain scores of a linear layer only
        found = method(IMAGES, lambda scores: scores[torch.arange(3), classes])
        torch.testing.assert_close(found, chosen, rtol=1e-4, atol=scale)


def by_hand(model, cnn, number):
    """Grad-CAM by its formula, in float64."""
    model = model.double()
    activation = cnn(IMAGES.double()).detach().requires_grad_()
    gradients = torch.autograd.grad(number(activation).sum(), activation)[0]
    maps = (gradients.mean((2, 3), keepdim=True) * activation).sum(1, keepdim=True).relu().float()
    model.float()
    return maps.detach()


def test_captioning():
    """The log-probability of a sentence."""
    torch.manual_seed(0)
    model = Captioning()
    sentence = torch.tensor([[0, 3, 1, 2], [0, 1, 1, 5], [0, 4, 2, 2]])

    def log_probability(words):  # (B, T - 1, words) -> (B,)
        return words.gather(2, sentence[:, 1:, None]).sum((1, 2))

    maps = GradCAM(partial(model, sentence=sentence), "cnn")(IMAGES, log_probability)

    def head(activation):
        state = model.start(activation.mean((2, 3))).unsqueeze(0)
        states, _ = model.lstm(model.embed(sentence[:, :-1]), (state, state.tanh()))
        return log_probability(model.word(states).log_softmax(2))

    expected = by_hand(model, model.cnn, head)
    torch.testing.assert_close(maps, expected, rtol=1e-3, atol=1e-5 * float(expected.max()))
    assert expected.max() > 0


def test_visual_question_answering():
    """The score of a reply; another question gives another map."""
    torch.manual_seed(0)
    model = QuestionAnswering()
    questions = torch.tensor([[1, 2, 3], [4, 5, 1], [2, 2, 2]])
    replies = torch.tensor([4, 0, 2])
    maps = GradCAM(partial(model, question=questions), "cnn")(IMAGES, replies)

    def head(activation):
        _, (state, _) = model.lstm(model.embed(questions))
        return model.reply(activation.mean((2, 3)) * state[-1])[torch.arange(3), replies]

    expected = by_hand(model, model.cnn, head)
    torch.testing.assert_close(maps, expected, rtol=1e-3, atol=1e-5 * float(expected.max()))
    other = GradCAM(partial(model, question=questions.flip(0)), "cnn")(IMAGES, replies)
    assert not torch.allclose(maps, other)


def test_the_code_of_the_docs_runs(model):
    """The code of ``docs/pages/reference/cam-methods.md``, with networks of its names."""
    torch.manual_seed(0)
    page = (Path(__file__).parents[2] / "docs/pages/reference/cam-methods.md").read_text(encoding="utf-8")
    first, second = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    network = torchvision.models.resnet18(num_classes=4)
    names: dict[str, Any] = {"model": network, "images": IMAGES, "labels": LABELS}
    exec(first, names)
    assert names["maps"].shape == (3, 4, 2, 2)
    sentence, question = torch.randint(6, (3, 4)), torch.randint(6, (3, 3))
    names = {
        "images": IMAGES,
        "captioner": Captioning(),
        "sentence": sentence,
        "vqa": QuestionAnswering(),
        "question": question,
    }
    names["reply_indices"] = torch.tensor([4, 0, 2])
    caption, reply = second.split("# visual question answering")
    exec(caption, names)
    assert names["maps"].shape == (3, 1, 14, 14)
    exec("#" + reply, names)
    assert names["maps"].shape == (3, 1, 14, 14)
    assert names["maps"].any()


@pytest.mark.parametrize(
    ("target", "words"),
    [(torch.tensor([0, 4, 1]), "class index 4 is out of range: the model gives 4 scores"),
     (torch.tensor([0, -1, 1]), "class index -1 is out of range"),
     (torch.tensor([0, 1]), "be 3 integer class indices, not \\(2,\\)"),
     (torch.ones(3, 3), r"labels of shape \(3, 3\) do not fit the model, which gives scores \(3, 4\)"),
     (torch.tensor([0.0, 1.0, 1.0]), "not \\(3,\\) of torch.float32"),
     (lambda scores: scores, r"one real number an image, shape \(3,\), not \(3, 4\)"),
     (lambda scores: scores.sum(), r"one real number an image, shape \(3,\), not \(\)"),
     (lambda scores: scores.argmax(1), r"one real number .*, not \(3,\), torch.int64"),
     (lambda _: [1.0, 2.0], "not a list"), ("dog", "not a str"),
     (lambda _: torch.zeros(3), "no score of the model depends on layer features.4")],
)  # fmt: skip
def test_bad_targets(model, target, words):
    with pytest.raises(InputError, match=words):
        GradCAM(model, "features.4")(IMAGES, target)


def test_models_that_give_no_scores():
    with pytest.raises(InputError, match=r"gives a list"):
        GradCAM(Outputs(), "conv")(IMAGES, torch.tensor([0, 0, 0]))
    maps = GradCAM(Outputs(), "conv")(IMAGES, lambda output: output[1].mean((1, 2, 3)))
    assert maps.shape == (3, 1, 16, 16)


class Outputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 4, stride=4)

    def forward(self, x):
        y = self.conv(x)
        return [y.mean((2, 3)), y]


@pytest.mark.parametrize("name", ["gradcam", "gradient", "guided-gradcam", "mwp"])
@pytest.mark.parametrize(
    ("images", "words"),
    [(IMAGES[0], "images must have shape"), (IMAGES[:, :1], r"cannot take images of shape \(3, 1, 64, 64\)"),
     (IMAGES[:, :, :2, :2], r"cannot take images of shape \(3, 3, 2, 2\)"),
     (IMAGES.double(), "torch.float64")],
)  # fmt: skip
def test_bad_images(model, name, images, words):
    before = [module.training for module in model.modules()]
    with pytest.raises(InputError, match=words) as caught:
        METHODS[name](model, "features.4")(images, torch.tensor([0, 1, 2]))
    assert "\n" not in str(caught.value)
    assert [module.training for module in model.modules()] == before


def test_not_a_network():
    with pytest.raises(InputError, match=r"a network .* is needed, not a function"):
        GradCAM(lambda x: x, "conv")(IMAGES, torch.tensor([0, 0, 0]))


def test_names_of_the_methods():
    expected = {
        "gradcam": GradCAM, "counterfactual": Counterfactual, "cam": cams.CAM, "gradcam++": cams.GradCAMPlusPlus,
        "layercam": cams.LayerCAM, "hirescam": cams.HiResCAM, "gradient": input_gradients.InputGradient,
        "guided-backprop": input_gradients.GuidedBackprop, "deconvolution": input_gradients.Deconvolution,
        "guided-gradcam": input_gradients.GuidedGradCAM,
        "deconvolution-gradcam": input_gradients.DeconvolutionGradCAM, "mwp": excitation_backprop.MWP,
        "c-mwp": excitation_backprop.ContrastiveMWP, "clip": ClipES,
    }  # fmt: skip
    assert {name: method_class(name) for name in METHODS} == expected


def test_unknown_method():
    with pytest.raises(InputError, match="no method 'grad-cam'; did you mean 'gradcam'"):
        method_class("grad-cam")
