import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cca_ray.evaluation.features import FeatureArrays, Features, extract, load_extractor
from cca_ray.evaluation.small_network import FeatureNet
from tests.conftest import golden
from tests.evaluation.programs import Nvidias
from tests.golden.weights import inception_checkpoint

GOLDEN = golden("inception_fid.npz")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("absent", "pytorch-fid"),
        ("text", "not a readable checkpoint"),
        ("another model", "pytorch-fid"),
        ("another program", "pytorch-fid"),
        ("part of it", "fc.weight"),
    ],
)
def test_what_is_no_feature_network_is_one_line_that_says_where_to_get_one(tmp_path: Path, kind: str, message: str):
    path = tmp_path / "features.pth"
    if kind == "text":
        path.write_text("no")
    elif kind == "another model":
        torch.save(nn.Linear(2, 2).state_dict(), path)
    elif kind == "another program":
        torch.jit.script(Nvidias(10)).save(str(path))
    elif kind == "part of it":
        state = inception_checkpoint(json.loads(str(GOLDEN["manifest"])))
        del state["fc.weight"]
        torch.save(state, path)
    with pytest.raises(ValueError, match=r"features\.pth: ") as error:
        load_extractor(path, trust_torchscript=kind == "another program")
    assert "\n" not in str(error.value)
    assert message in str(error.value)


def test_features_that_are_no_numbers_are_an_error():
    network = FeatureNet(8, 3).eval().requires_grad_(False)
    images = torch.full((2, 8, 8, 3), 200, dtype=torch.uint8)
    assert extract(network, images).pooled.isfinite().all()
    for weight in network.parameters():
        weight.mul_(1e30)
    with pytest.raises(ValueError, match=r"the feature network \(score\.features\) gives numbers that are not finite"):
        extract(network, images)


def test_no_features_are_rounded_to_tf32(monkeypatch: pytest.MonkeyPatch):
    """cuDNN does so with float32, unless it is told not to. What others compute afterwards is left as it was."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # threads of another test may have left it off
    found = list[tuple[bool, bool]]()

    class Watched(FeatureNet):
        def forward(self, images: torch.Tensor) -> Features:
            flags = torch.backends.cudnn
            found.append((flags.enabled, flags.allow_tf32))
            if len(found) == 4:
                raise RuntimeError("out of memory")
            return super().forward(images)

    network, images = Watched(8, 3).eval(), torch.zeros(3, 8, 8, 3, dtype=torch.uint8)
    network.at_a_time = 2
    extract(network, images, share=2)
    assert torch.backends.cudnn.allow_tf32
    with pytest.raises(RuntimeError, match="out of memory"):
        extract(network, images)
    assert torch.backends.cudnn.allow_tf32
    assert found == [(True, False)] * 4


def test_arrays_hold_what_the_network_has_and_rows_of_it():
    pooled, spatial = torch.arange(6.0).view(3, 2), torch.arange(3.0).view(3, 1)
    arrays = Features(pooled, spatial=spatial).arrays()
    assert arrays.probabilities is None
    some = arrays.of(np.array([True, False, True]))
    assert isinstance(some, FeatureArrays)
    assert some.pooled.tolist() == [[0, 1], [4, 5]]
    assert some.probabilities is None
    assert some.spatial is not None
    assert some.spatial.tolist() == [[0], [2]]
