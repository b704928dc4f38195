import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cca_ray.evaluation import features
from cca_ray.evaluation.features import extract, load_extractor
from cca_ray.evaluation.inception import INCEPTION, NVIDIA_INCEPTION, Inception, ScriptedInception, resize_tf1
from cca_ray.testing.extractor_conformance import ExtractorConformance
from tests.conftest import golden
from tests.evaluation.programs import Nvidias
from tests.golden.weights import inception_checkpoint

GOLDEN = golden("inception_fid.npz")


class TestInceptionKind(ExtractorConformance):
    kind = INCEPTION

    def write(self, path: Path) -> None:
        torch.save(inception_checkpoint(json.loads(str(GOLDEN["manifest"]))), path)


class TestNvidiaKind(ExtractorConformance):
    kind = NVIDIA_INCEPTION

    def write(self, path: Path) -> None:
        torch.manual_seed(0)
        torch.jit.script(Nvidias(1008)).save(str(path))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as pytorch-fid's, with 472 tensors."""
    path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    torch.save(inception_checkpoint(json.loads(str(GOLDEN["manifest"]))), path)
    return path


def close(found: Tensor, name: str, bound: float = 1e-4) -> bool:
    expected = GOLDEN[name]
    return bool(np.linalg.norm(found.numpy() - expected) <= bound * np.linalg.norm(expected))


def test_inception_features_are_pytorch_fids(weights: Path):
    extractor = load_extractor(weights)
    assert isinstance(extractor, Inception)
    features = extract(extractor, torch.from_numpy(GOLDEN["images"]))
    assert features.spatial is not None
    assert features.probabilities is not None
    assert close(features.pooled, "pool")
    assert close(features.spatial, "spatial")
    assert close(features.probabilities, "probabilities")


def test_a_file_with_the_batch_counters_is_read_too(weights: Path, tmp_path: Path):
    state = torch.load(weights)
    counters = {name.replace("weight", "num_batches_tracked"): torch.tensor(0) for name in state if "bn.weight" in name}
    torch.save({**state, **counters}, tmp_path / "torch_fidelity.pth")
    assert load_extractor(tmp_path / "torch_fidelity.pth").digest == load_extractor(weights).digest


def test_images_are_resized_as_tensorflow_1_does():
    square = torch.tensor([[0.0, 1.0], [2.0, 3.0]])[None, None]
    expected = [[0, 0.5, 1, 1], [1, 1.5, 2, 2], [2, 2.5, 3, 3], [2, 2.5, 3, 3]]
    assert resize_tf1(square, 4)[0, 0].tolist() == expected
    assert resize_tf1(torch.arange(16.0).view(1, 1, 4, 4), 2)[0, 0].tolist() == [[0, 2], [8, 10]]
    images = torch.from_numpy(GOLDEN["images"]).permute(0, 3, 1, 2).float()
    resized = resize_tf1(images, 299).permute(0, 2, 3, 1)[:, ::37, ::37]
    np.testing.assert_allclose(resized, GOLDEN["resized_slice"], atol=5e-3)


def test_nvidias_program_is_known_by_its_content(tmp_path: Path):
    program = torch.jit.script(Nvidias(1008))
    program.save(str(tmp_path / "weights.pth"))
    extractor = load_extractor(tmp_path / "weights.pth", trust_torchscript=True)
    assert isinstance(extractor, ScriptedInception)
    images = torch.from_numpy(GOLDEN["images"])
    features, inputs = extract(extractor, images), images.permute(0, 3, 1, 2)
    torch.testing.assert_close(features.pooled, program(inputs, return_features=True))
    torch.testing.assert_close(features.probabilities, program(inputs, no_output_bias=True))
    assert features.spatial is None


class Noise(nn.Module):
    """Runs as soon as it is loaded."""

    @torch.jit.export
    def __getstate__(self) -> bool:
        return self.training

    @torch.jit.export
    def __setstate__(self, training: bool) -> None:
        print("it runs")
        self.training = training


class Loud(Nvidias):
    def __init__(self, classes: int):
        super().__init__(classes)
        self.noise = Noise()


def test_a_program_that_is_not_nvidias_runs_only_where_it_is_trusted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "inception-2015-12-05.pt"
    torch.jit.script(Loud(1008)).save(str(path))
    with pytest.raises(ValueError, match="a program that would run on your machine, and not NVIDIA's") as error:
        load_extractor(path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert sha256 in str(error.value)
    assert "\n" not in str(error.value)
    assert "it runs" not in capfd.readouterr().out
    load_extractor(path, trust_torchscript=True)
    assert "it runs" in capfd.readouterr().out
    monkeypatch.setattr(features, "NVIDIA_SHA256", sha256)  # as if this were the published file
    assert isinstance(load_extractor(path), ScriptedInception)
