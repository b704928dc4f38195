"""Official shapes with random weights, in memory: speed and memory ask for neither trained weights nor images."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch

from benchmarks.fid import features
from cca_ray.cluster.placement import CARDS, GIB, Load, autocast
from cca_ray.config import ResolvedStudy, StudyConfig
from cca_ray.data.captions import CaptionMeta, Captions
from cca_ray.data.tokens import TokenMeta, TokenSet
from cca_ray.evaluation.conditions import CaptionsOfImages
from cca_ray.evaluation.features import Extractor, frozen
from cca_ray.evaluation.inception import Inception
from cca_ray.evaluation.reference import Moments, Reference
from cca_ray.evaluation.scoring import Scoring, metrics_of
from cca_ray.evaluation.small_network import FeatureNet
from cca_ray.inputs import find_space
from cca_ray.models.base import Model, ModelConfig, Tokenizer
from cca_ray.models.condition import Texts
from cca_ray.models.family import family_of
from cca_ray.models.likelihood import Scorer
from cca_ray.models.official import parameters
from cca_ray.models.parallel import Group
from cca_ray.space_file import load_config
from cca_ray.training.job import Job
from cca_ray.training.reference_logps import Part, ReferenceTable, score_part
from cca_ray.training.setup import Loop, laid_out

DRY = "no card: dry"
CAPTIONS = 16
UNKNOWN = "H100"  # a card that no table knows is taken for one, or for a part of one


@dataclass(frozen=True)
class Here:
    """Where it is measured, and how much is done: `dry` is tiny shapes, to see that it runs."""

    device: torch.device
    dry: bool = False
    peer: Path | None = None  # where checkouts of the official repositories lie
    like: str = ""  # the type of card that this one stands in for; "": that of the card

    @property
    def name(self) -> str:
        """The card's, as CUDA calls it."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else DRY

    @property
    def type(self) -> str:
        """The card's, as search spaces call it; empty if none of them knows it."""
        return self.like or next((known for known in CARDS if known in words(self.name)), "")

    @property
    def gib(self) -> float:
        """Memory that is reckoned with: what the tables say of the card; of an unknown one at most an H100's."""
        known = CARDS[self.type or UNKNOWN].memory_gib
        return known if self.type else min(known, torch.cuda.mem_get_info(self.device)[1] / GIB)

    @property
    def steps(self) -> int:
        """Of training, which there are images for. The first two warm up."""
        return 3 if self.dry else 6


def words(name: str) -> list[str]:
    """Of a card's name: an RTX A4000 is no A40."""
    return re.split(r"[\s-]+", name)


@dataclass(frozen=True)
class Shape:
    """What a shipped search space trains, or a smaller thing of the same kind: some fields replaced."""

    space: str
    model: Mapping[str, object] = field(default_factory=dict)  # fields of its config
    tokenizer: Mapping[str, object] = field(default_factory=dict)
    pixels: int = 0  # along a side of a decoded image; 0: the family's
    small: bool = False  # with a small feature network

    @property
    def shipped(self) -> StudyConfig:
        return load_config(find_space(self.space))

    @property
    def family(self) -> str:
        return self.shipped.base.family

    @property
    def image_size(self) -> int:
        return self.pixels or family_of(self.family).image_size

    def at(self, here: Here) -> "Shape":
        """Itself, or something tiny in its place."""
        return replace(TINY[self.family], space=self.space) if here.dry else self

    def shallow(self, layers: int) -> "Shape":
        """With so many layers only."""
        return replace(self, model={**self.model, family_of(self.family).layers[0]: layers})


SMALL_GPT = dict(n_layer=2, n_head=2, dim=32, multiple_of=32, vocab_size=64, block_size=16)
SMALL_VQ = dict(codebook_size=64, ch=8, ch_mult=(1, 2), num_res_blocks=1, z_channels=16, norm_groups=8)
SMALL_VAE = dict(vocab_size=64, z_channels=8, ch=8, ch_mult=(1, 2), num_res_blocks=1, norm_groups=8)
SMALL_MASKGIT = dict(
    codebook_size=64, z_channels=16, hidden_channels=8, channel_mult=(1, 2), num_res_blocks=1, norm_groups=8
)
TINY = {
    "llamagen": Shape("", SMALL_GPT, SMALL_VQ, 8, True),
    "llamagen_t2i": Shape("", SMALL_GPT | dict(cls_token_num=4, caption_dim=8), SMALL_VQ, 8, True),
    "var": Shape(
        "", dict(depth=1, n_head=1, dim=64, vocab_size=64, code_dim=8, patch_nums=(1, 2, 4)),
        SMALL_VAE | dict(patch_nums=(1, 2, 4)), 8, True,
    ),
    "rar": Shape(
        "", dict(n_layer=2, n_head=2, dim=32, mlp_dim=64, vocab_size=64, block_size=16), SMALL_MASKGIT, 8, True
    ),
}  # fmt: skip


def tokenizer_of(shape: Shape, device: torch.device) -> Tokenizer:
    parts = family_of(shape.family).parts()
    torch.manual_seed(0)
    with torch.device(device):
        made = parts.tokenizer(parts.tokenizer_config(**shape.tokenizer))
    return made.requires_grad_(False)


def config_of(shape: Shape) -> ModelConfig:
    official = family_of(shape.family).official_shape(shape.shipped.base.size)
    return cast(ModelConfig, replace(official, **shape.model))


@torch.no_grad()
def model_of(shape: Shape, device: torch.device, tokenizer: Tokenizer | None = None) -> Model:
    """Made where it is used: numbers for a billion weights take a CPU a minute. None of its logits are equal."""
    with torch.device(device):
        model = family_of(shape.family).parts().model(config_of(shape))
    model.initialize(torch.Generator(device).manual_seed(0))
    model.head.weight.normal_(std=0.05, generator=torch.Generator(device).manual_seed(1))
    model.attach(tokenizer or tokenizer_of(shape, device))
    return model


def load_of(shape: Shape) -> Load:
    """What `placement.memory_gib` wants to know of it; nothing is made on any device."""
    family, config = family_of(shape.family), config_of(shape)
    with torch.device("meta"):
        model = family.parts().model(config)
    return Load(
        parameters(model),
        len(model.stack),
        model.head.in_features,
        model.config.block_size + (model.takes.positions if isinstance(model.takes, Texts) else 0),
        activation_bytes=family.kept_bytes(config),
    )


def extractor_of(shape: Shape, device: torch.device) -> Extractor:
    torch.manual_seed(0)
    return frozen(FeatureNet(shape.image_size, 1000) if shape.small else Inception()).to(device)


def study_of(shape: Shape, here: Here, micro_batch: int, global_batch: int, *settings: str) -> ResolvedStudy:
    """Its search space, for one worker, in bfloat16. `settings`: as of `--set`."""
    changes = [
        "placement.accelerators=[]", "placement.workers=1", "placement.precision=bfloat16",
        f"placement.gpus={int(here.device.type == 'cuda')}", f"placement.micro_batch={micro_batch}",
        f"train.global_batch={global_batch}",
    ]  # fmt: skip
    changes += [f"score.image_size={shape.image_size}"] if shape.small else []
    return ResolvedStudy.of(load_config(find_space(shape.space), [*changes, *settings]), {})


def scoring_of(
    shape: Shape, config: ResolvedStudy, here: Here, tokenizer: Tokenizer, data: TokenSet | None = None
) -> Scoring:
    """`data`: whose captions are drawn, of a model of texts."""
    extractor = extractor_of(shape, here.device)
    reference = Reference.of(Moments.of(features(2 * extractor.width, 0, extractor.width)))
    graphs = config.placement.graphs and here.device.type == "cuda"
    captions = CaptionsOfImages(data.captions, data.labels, data.digest) if data and data.captions else None
    classes = 1 if captions else 1000
    scoring = Scoring(tokenizer, extractor, reference, classes, shape.image_size, graphs, captions=captions)
    return replace(scoring, metrics=metrics_of(config, scoring))


def some_captions(kind: Texts) -> Captions:
    """With as many words as a model reads, for those cost the most."""
    words = kind.positions
    features_of_words = np.random.default_rng(0).standard_normal((CAPTIONS * words, kind.width)).astype(np.float16)
    texts, starts = tuple(f"caption {i}" for i in range(CAPTIONS)), words * np.arange(CAPTIONS + 1)
    return Captions(texts, starts, features_of_words, words)


def tokens_of(model: Model, count: int, shape: Shape) -> TokenSet:
    """Of classes, or of as many captions as there are."""
    rng, c = np.random.default_rng(0), model.config
    tokens = rng.integers(0, c.vocab_size, (count, 1, c.block_size)).astype(np.uint16)
    captions, told, names = None, None, tuple(f"class{i:04}" for i in range(c.num_classes))
    if isinstance(kind := model.takes, Texts):
        captions = some_captions(kind)
        told = CaptionMeta(
            count=CAPTIONS, positions=kind.positions, width=kind.width, encoder="random numbers", sha256=("", "")
        )
    meta = TokenMeta(
        tokenizer="", codebook_size=c.vocab_size, length=c.block_size, crops=1, image_size=shape.image_size,
        augmentations=("none",), class_names=names, captions=told,
    )  # fmt: skip
    return TokenSet(rng.integers(0, meta.conditions, count), tokens, meta, "random", captions)


def fine_tuning(shape: Shape, here: Here, config: ResolvedStudy, folder: Path, steps: int) -> Loop:
    """As a trial of so many steps is set up once its files are read: with the reference's table and what scores it."""
    group, train = Group(device=here.device), config.train
    tokenizer = tokenizer_of(shape, here.device)
    model = model_of(shape, here.device, tokenizer)
    data = tokens_of(model, steps * train.global_batch, shape)
    part, pairs = Part(0, 0, len(data.labels)), config.placement.micro_batch or train.global_batch
    with autocast(config.placement, here.device):
        scored = score_part(Scorer(model), data, part, train.null_ratio, train.seed, pairs)
    table = ReferenceTable(*(torch.from_numpy(column)[None] for column in scored))
    scoring = scoring_of(shape, config, here, tokenizer, data)
    return laid_out(Job(config, train, folder), group, model, data, scoring, "random", table)
