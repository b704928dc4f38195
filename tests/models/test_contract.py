"""Our own families keep the promises of all families."""

from typing import Any

from cca_ray.models.llamagen_family import FAMILY as LLAMAGEN
from cca_ray.models.llamagen_t2i_family import FAMILY as LLAMAGEN_T2I
from cca_ray.models.rar_family import FAMILY as RAR
from cca_ray.models.var import VARCache
from cca_ray.models.var_family import FAMILY as VAR
from cca_ray.testing.family_conformance import FamilyConformance

SMALL = dict(ch=8, ch_mult=(1, 2), num_res_blocks=1, norm_groups=8)
GRID_CODES = dict(codebook_size=32, z_channels=16, **SMALL)
GRID_OF_TEXTS = dict(vocab_size=32, block_size=16, cls_token_num=5, caption_dim=12)
GRID = dict(num_classes=10, vocab_size=32, block_size=16)
PLAIN_CODES = dict(
    codebook_size=32, z_channels=8, hidden_channels=8, channel_mult=(1, 2), num_res_blocks=1, norm_groups=8
)
PYRAMID_CODES = dict(vocab_size=32, z_channels=8, patch_nums=(1, 2, 4), **SMALL)
PYRAMID = dict(num_classes=10, vocab_size=32, code_dim=8, patch_nums=(1, 2, 4))


class TestLlamaGen(FamilyConformance):
    family, tokenizer_config, model_config = LLAMAGEN, GRID_CODES, GRID


class TestLlamaGenOfASmallBase(FamilyConformance):
    family = LLAMAGEN


class TestLlamaGenOfTexts(FamilyConformance):
    family, tokenizer_config, model_config = LLAMAGEN_T2I, GRID_CODES, GRID_OF_TEXTS


class TestVAR(FamilyConformance):
    family, tokenizer_config, model_config = VAR, PYRAMID_CODES, PYRAMID

    def counted(self, cache: VARCache) -> Any:
        return cache.layers  # the latent map comes on top


class TestVAROfASmallBase(TestVAR):
    tokenizer_config = model_config = None


class TestRAR(FamilyConformance):
    family, tokenizer_config, model_config = RAR, PLAIN_CODES, GRID


class TestRAROfASmallBase(FamilyConformance):
    family = RAR
