"""The Inception network behind FID, as a state dict (pytorch-fid, torch-fidelity) and as a program (NVIDIA).

Both are the network of the ADM evaluator, in ports that agree with it to about 1e-3 in FID.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cca_ray.evaluation.features import Extractor, ExtractorKind, FeatureFile, Features
from cca_ray.models.files import load_state

INCEPTION_SIDE = 299  # pixels
CLASSES = 1008  # of the 2015 network
AT_A_TIME = 64  # images: 14 MiB of activations each


def resize_tf1(x_BCHW: Tensor, side: int) -> Tensor:
    """TensorFlow 1's bilinear resize (align_corners and half_pixel_centers off), with which FID was defined.

    Pixel i looks at i · in / out; `F.interpolate` looks half a pixel further and is up to 7 of 255 off.
    """
    for axis in (2, 3):
        size = x_BCHW.shape[axis]
        at = torch.arange(side, device=x_BCHW.device, dtype=torch.float32) * (size / side)
        low = at.long().clamp(max=size - 1)
        weight = (at - low).view(-1, 1) if axis == 2 else at - low
        high = (low + 1).clamp(max=size - 1)
        a, b = x_BCHW.index_select(axis, low), x_BCHW.index_select(axis, high)
        x_BCHW = a + (b - a) * weight
    return x_BCHW


Kernel = int | tuple[int, int]
Stage = tuple[str, int, Kernel]  # what is added to the branch's name, channels, kernel


class ConvNorm(nn.Module):
    """Convolution, batch norm with the stored statistics, ReLU. A strided one has no padding."""

    def __init__(self, inputs: int, outputs: int, kernel: Kernel, stride: int = 1, padded: bool = True):
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if padded and stride == 1 else (0, 0)
        self.conv = nn.Conv2d(inputs, outputs, (height, width), stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.bn
        y = F.batch_norm(self.conv(x), norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        return F.relu(y)


class Mixed(nn.Module):
    """Branches of convolutions side by side, and a pooling one; their outputs are concatenated.

    `stride` 2: the last convolution of each branch halves the grid, and the pool has no convolution.
    Where the last stage of a branch has kernels "a" and "b", both run on what came before.
    """

    def __init__(self, inputs: int, branches: dict[str, list[Stage]], pooled: int, maximum: bool, stride: int = 1):
        super().__init__()
        self.paths: list[list[str]] = []
        self.maximum, self.stride = maximum, stride
        for branch, stages in branches.items():
            width = inputs
            for i, (end, outputs, kernel) in enumerate(stages):
                last = i == len(stages) - 1
                self.add_module(branch + end, ConvNorm(width, outputs, kernel, stride if last else 1))
                width = width if end.endswith("a") else outputs
            self.paths.append([branch + end for end, _, _ in stages])
        self.branch_pool = ConvNorm(inputs, pooled, 1) if pooled else None

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for path in self.paths:
            y = x
            for name in path:
                z = self.get_submodule(name)(y)
                if name.endswith(("a", "b")):
                    outputs.append(z)
                else:
                    y = z
            if not path[-1].endswith("b"):
                outputs.append(y)
        return torch.cat([*outputs, self.pool(x)], dim=1)

    def pool(self, x: Tensor) -> Tensor:
        if self.branch_pool is None:
            return F.max_pool2d(x, 3, stride=self.stride)
        if self.maximum:
            return self.branch_pool(F.max_pool2d(x, 3, stride=1, padding=1))
        # TensorFlow leaves the padding out of the mean.
        return self.branch_pool(F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False))


def mixed_5(inputs: int, pooled: int) -> Mixed:
    branches: dict[str, list[Stage]] = {
        "branch1x1": [("", 64, 1)],
        "branch5x5": [("_1", 48, 1), ("_2", 64, 5)],
        "branch3x3dbl": [("_1", 64, 1), ("_2", 96, 3), ("_3", 96, 3)],
    }
    return Mixed(inputs, branches, pooled, maximum=False)


def mixed_6(width: int) -> Mixed:
    row, column = (1, 7), (7, 1)
    branches: dict[str, list[Stage]] = {
        "branch1x1": [("", 192, 1)],
        "branch7x7": [("_1", width, 1), ("_2", width, row), ("_3", 192, column)],
        "branch7x7dbl": [
            ("_1", width, 1), ("_2", width, column), ("_3", width, row), ("_4", width, column), ("_5", 192, row),
        ],
    }  # fmt: skip
    return Mixed(768, branches, 192, maximum=False)


def mixed_7(inputs: int, maximum: bool) -> Mixed:
    row, column = (1, 3), (3, 1)
    branches: dict[str, list[Stage]] = {
        "branch1x1": [("", 320, 1)],
        "branch3x3": [("_1", 384, 1), ("_2a", 384, row), ("_2b", 384, column)],
        "branch3x3dbl": [("_1", 448, 1), ("_2", 384, 3), ("_3a", 384, row), ("_3b", 384, column)],
    }
    return Mixed(inputs, branches, 192, maximum=maximum)


class Inception(Extractor):
    """The Inception-v3 of 2015 behind FID, with the names of torchvision's and pytorch-fid's checkpoints.

    Features as in the ADM evaluator: `pool_3` (2048), the first 7 channels of `mixed_6/conv` (17 x 17 x 7 = 2023,
    for sFID), probabilities from the logits without their bias.  The last block pools by maximum: a slip of the
    original that FID has kept.
    """

    width, at_a_time = 2048, AT_A_TIME
    provides = frozenset({"pooled", "spatial", "probabilities"})

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, 3, padded=False)
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, 3)
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, 3, padded=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = mixed_5(192, 32), mixed_5(256, 64), mixed_5(288, 64)
        self.Mixed_6a = Mixed(
            288,
            {"branch3x3": [("", 384, 3)], "branch3x3dbl": [("_1", 64, 1), ("_2", 96, 3), ("_3", 96, 3)]},
            0, maximum=True, stride=2,
        )  # fmt: skip
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = map(mixed_6, (128, 160, 160, 192))
        self.Mixed_7a = Mixed(
            768,
            {
                "branch3x3": [("_1", 192, 1), ("_2", 320, 3)],
                "branch7x7x3": [("_1", 192, 1), ("_2", 192, (1, 7)), ("_3", 192, (7, 1)), ("_4", 192, 3)],
            },
            0, maximum=True, stride=2,
        )  # fmt: skip
        self.Mixed_7b, self.Mixed_7c = mixed_7(1280, maximum=False), mixed_7(2048, maximum=True)
        self.fc = nn.Linear(self.width, CLASSES)

    def forward(self, images: Tensor) -> Features:
        x = resize_tf1(images.permute(0, 3, 1, 2).float(), INCEPTION_SIDE)
        x = ((x - 128) / 128).contiguous(memory_format=torch.channels_last)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        spatial = self.Mixed_6d.get_submodule("branch1x1")(x)[:, :7].permute(0, 2, 3, 1).flatten(1)
        x = self.Mixed_6e(self.Mixed_6d(x))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        pooled = x.mean((2, 3))
        return Features(pooled, (pooled @ self.fc.weight.T).softmax(-1), spatial)


def class_heads(program: torch.jit.ScriptModule) -> list[Tensor]:
    """Weights [1008, D] of the layers that tell the classes."""
    return [p for p in program.parameters() if p.ndim == 2 and p.shape[0] == CLASSES]


class ScriptedInception(Extractor):
    """NVIDIA's program: resizes and scales by itself; has no spatial features."""

    at_a_time = AT_A_TIME

    def __init__(self, program: torch.jit.ScriptModule):
        super().__init__()
        self.program = program
        (head,) = class_heads(program)
        self.register_buffer("head", head.detach(), persistent=False)  # the program has it too
        self.head: Tensor
        self.width = head.shape[1]

    def forward(self, images: Tensor) -> Features:
        pooled = self.program(images.permute(0, 3, 1, 2), return_features=True)
        return Features(pooled, (pooled @ self.head.T).softmax(-1))


class InceptionKind(ExtractorKind):
    """Known by the name of its first layer."""

    name = "inception"

    def recognises(self, file: FeatureFile) -> bool:
        return "Conv2d_1a_3x3.conv.weight" in file.state

    def load(self, file: FeatureFile) -> Extractor:
        network = Inception()
        counted = {k: v for k, v in network.state_dict().items() if k.endswith("num_batches_tracked")}
        load_state(network, {**counted, **file.state}, file.path)  # some files leave these counters out
        return network


class NvidiaKind(ExtractorKind):
    """A program with one layer of 1008 classes."""

    name = "nvidia_inception"

    def recognises(self, file: FeatureFile) -> bool:
        return file.program is not None and len(class_heads(file.program)) == 1

    def load(self, file: FeatureFile) -> Extractor:
        assert file.program is not None
        return ScriptedInception(file.program)


INCEPTION, NVIDIA_INCEPTION = InceptionKind(), NvidiaKind()
