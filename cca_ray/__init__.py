"""Hyperparameters of Condition Contrastive Alignment for autoregressive image generators, found with Ray and Optuna.

    study = cca_ray.tune("digits_s", trials=8, settings={"train.beta": 0.05})    # again: continues it
    study.best["digits_s"].params; study.trials; study.report()
    images = study.champion("digits_s").sample([0, 1, 2])

`tune`, `train`, `sample`, `evaluate`, `pretrain` and `prepare` take what the commands of these names take, with `_` for
`-` and `settings` for `--set`. `open` finds a study that was begun elsewhere. What is imported is imported when it is
used. docs/python.md says more.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cca_ray.errors import ConfigError as ConfigError
    from cca_ray.errors import Incomplete as Incomplete
    from cca_ray.evaluate import evaluate as evaluate
    from cca_ray.evaluate import verify as verify
    from cca_ray.opened import Study as Study
    from cca_ray.opened import open as open
    from cca_ray.prepare import prepare as prepare
    from cca_ray.pretrain import pretrain as pretrain
    from cca_ray.sample import sample as sample
    from cca_ray.train import train as train
    from cca_ray.tune import tune as tune

__version__ = "0.1.0"

VERBS = ("evaluate", "prepare", "pretrain", "sample", "train", "tune")  # modules that can be called
PLACES = {"ConfigError": "errors", "Incomplete": "errors", "Study": "opened", "open": "opened", "verify": "evaluate"}

__all__ = [*PLACES, *VERBS, "__version__"]


def __getattr__(name: str) -> Any:
    """The public names, each imported when it is first used."""
    if name in VERBS or name in PLACES:
        from cca_ray.terminal.hints import without_hints

        with without_hints():
            module = import_module(f"cca_ray.{PLACES.get(name, name)}")
        return module if name in VERBS else getattr(module, name)
    raise AttributeError(f"module 'cca_ray' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
