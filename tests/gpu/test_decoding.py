"""Decoding steps as graphs, at the official shapes, in bfloat16: equal to eager ones, bit by bit."""

import pytest
import torch

from benchmarks.gpu.images import half
from benchmarks.gpu.made import Shape, model_of
from cca_ray.evaluation.decoder import GraphDecoder
from cca_ray.testing.family_pair import check_decoder
from tests.gpu.places import Place

SPACES = ("llamagen_b", "var_d16")


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("space", SPACES)
def test_recorded_steps_change_no_image(place: Place, space: str, scale: float):
    """Three batches and a tail, then larger ones, with garbage in the place of whatever was let go between them."""
    with torch.inference_mode():
        model = half(model_of(Shape(space).at(place.here), place.device), place.here)
        decoder = GraphDecoder(model, place.recorder)
        check_decoder(model, decoder, place.device, model.config.block_size, scale)
        decoder.drop()
        check_decoder(model, decoder, place.device, model.config.block_size, scale)  # in a new pool of memory
