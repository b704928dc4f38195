"""Images of a file, or of a checkpoint, and every metric that can be had of them."""

from typing import Any

import numpy as np
import pytest
import torch

from cca_ray.cluster.device import local_device
from cca_ray.evaluation import scoring as scoring_module
from cca_ray.evaluation.measure import measure, pooled_features
from cca_ray.evaluation.scoring import scoring_of
from cca_ray.evaluation.thrift import NoRoom
from tests.conftest import MakeStudy

IMAGES = torch.randint(256, (40, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_when_memory_runs_out_fewer_features_are_extracted_at_a_time(
    make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
):
    device = local_device()
    scoring, real, most = scoring_of(make_study(), device), scoring_module.extract, 4

    def little(extractor: Any, images: torch.Tensor, share: int) -> Any:
        if share < most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(extractor, images, share)

    def found() -> tuple[dict[str, float], np.ndarray]:
        values = measure([(np.arange(40), IMAGES)], 40, scoring, device)
        return {name: value for name, value in values.items() if value is not None}, pooled_features(
            scoring.extractor, [IMAGES], device
        )

    whole = found()
    monkeypatch.setattr(scoring_module, "extract", little)
    values, features = found()
    assert "fid" in values
    assert values == pytest.approx(whole[0], rel=1e-4)
    np.testing.assert_allclose(features, whole[1], rtol=1e-4)
    most = 1000
    with pytest.raises(NoRoom):
        found()
