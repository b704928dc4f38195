"""What every kind of feature networks must do. For the author of one:

class TestMine(ExtractorConformance):
    kind = MINE

    def write(self, path):
        torch.save({...}, path)
"""

from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor, nn

from cca_ray.evaluation.features import Extractor, ExtractorKind, FeatureFile, Features, extract, frozen
from cca_ray.models.files import digest_of_weights
from cca_ray.testing.stranded import stranded


class ExtractorConformance:
    """Subclass it, give the kind, and write a file of it; any weights will do."""

    kind: ExtractorKind
    side = 32  # pixels of the images, where the network takes any

    def write(self, path: Path) -> None:
        """Write a small file of this kind, the same each time."""
        raise NotImplementedError

    def loaded(self, folder: Path) -> Extractor:
        self.write(folder / "features")
        return frozen(self.kind.load(FeatureFile(folder / "features", trusted=True)))

    def images(self, extractor: Extractor, count: int = 3) -> Tensor:
        side = extractor.image_size or self.side
        generator = torch.Generator().manual_seed(0)
        return torch.randint(256, (count, side, side, 3), dtype=torch.uint8, generator=generator)

    def test_it_has_a_name(self) -> None:
        assert self.kind.kind == "extractor"
        assert self.kind.name.isidentifier()

    def test_it_recognises_its_own_files_alone(self, tmp_path: Path) -> None:
        self.write(tmp_path / "features")
        assert self.kind.recognises(FeatureFile(tmp_path / "features", trusted=True))
        torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other")
        (tmp_path / "text").write_text("no")
        for other in ("other", "text"):
            assert not self.kind.recognises(FeatureFile(tmp_path / other))

    def test_it_provides_what_it_says(self, tmp_path: Path) -> None:
        extractor = self.loaded(tmp_path)
        features = extract(extractor, self.images(extractor))
        there = {field.name for field in fields(Features) if getattr(features, field.name) is not None}
        assert there == extractor.provides
        assert features.pooled.shape == (3, extractor.width)
        for more in (features.probabilities, features.spatial):
            assert more is None or (more.ndim, len(more)) == (2, 3)
        if features.probabilities is not None:
            torch.testing.assert_close(features.probabilities.sum(1), torch.ones(3), atol=1e-3, rtol=0)

    def test_an_images_features_do_not_depend_on_the_batch(self, tmp_path: Path) -> None:
        extractor = self.loaded(tmp_path)
        images = self.images(extractor)
        alone = extract(extractor, images[1:2]).pooled
        torch.testing.assert_close(extract(extractor, images).pooled[1:2], alone, rtol=1e-4, atol=1e-4)

    def test_it_moves_as_a_whole(self, tmp_path: Path) -> None:
        """To a card: register as buffers what are no parameters."""
        assert not stranded(self.loaded(tmp_path))

    def test_it_is_frozen_and_known_by_its_weights(self, tmp_path: Path) -> None:
        extractor = self.loaded(tmp_path)
        assert not extractor.training
        assert not any(parameter.requires_grad for parameter in extractor.parameters())
        assert extractor.digest == self.loaded(tmp_path).digest
        next(iter(extractor.state_dict().values())).add_(1)
        assert digest_of_weights(extractor) != extractor.digest
