"""Makes the tokenizers and feature networks that come with the project: those of the shipped search spaces of digits.

ATEN_CPU_CAPABILITY=avx2 python -m tests.networks

Other instructions round otherwise, and make other networks, of which no figure in README holds. They have to be made
anew where what they depend on has changed: the digits, or settings of `pretrain` in a shipped search space.
"""

from pathlib import Path

from cca_ray.config import StudyConfig
from cca_ray.data.labelled_images import digits
from cca_ray.data.variants import with_variants
from cca_ray.inputs import SPACES
from cca_ray.models.family import family_of
from cca_ray.models.official import save_official
from cca_ray.space_file import load_config
from cca_ray.training.fitting import Hooks
from cca_ray.training.small_base import NETWORKS, BaseFiles, files_of, one_thread, save_features
from cca_ray.training.small_networks import Making, train_features, train_tokenizer


def embedded() -> list[StudyConfig]:
    """The shipped search spaces that have an embedded base."""
    found = [load_config(path) for path in sorted(SPACES.glob("*.yaml"))]
    return [config for config in found if config.base.embedded is not None]


def places(config: StudyConfig, root: Path = NETWORKS) -> BaseFiles:
    """Where the files of such a base lie below `root`."""
    return files_of(digits(), "digits", config.base.family, config.base.size, config.pretrain, root)


def main() -> None:
    for config in embedded():
        files, making = places(config), Making(Hooks(lambda done, total: None))
        data = with_variants(digits(), config.pretrain.variants)
        with one_thread():
            save_features(train_features(data, config.pretrain, making), data, files.features)
            tokenizer = train_tokenizer(data, family_of(config.base.family), config.pretrain, making)
        save_official(tokenizer, files.tokenizer)
        print(f"{config.name}: {files.tokenizer.relative_to(NETWORKS)}, {files.features.relative_to(NETWORKS)}")


if __name__ == "__main__":
    main()
