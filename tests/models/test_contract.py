"""Our own families keep the promises of all families."""

from typing import Any

from cca_ray.models.llamagen_family import FAMILY as LLAMAGEN
from cca_ray.models.llamagen_t2i_family import FAMILY as LLAMAGEN_T2I
from cca_ray.models.rar_family import FAMILY as RAR
from cca_ray.models.var import VARCache
from cca_ray.models.var_family import FAMILY as VAR
from cca_ray.testing.family_conformance import FamilyConformance
from tests.models.small_settings import GRID, GRID_CODES, GRID_OF_TEXTS, PLAIN_CODES, PYRAMID, PYRAMID_CODES


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
