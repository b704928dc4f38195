"""Which base is made of someone's images, how it is trained, and what the ranges of its search depend on."""

from dataclasses import dataclass

from cca_ray.config import Pretrain
from cca_ray.data.labelled_images import LabelledImages
from cca_ray.models.family import Family, letter
from cca_ray.models.official import parameters
from cca_ray.training.base_space import BaseFacts
from cca_ray.training.scale import Corpus, choose, reason, settings_for
from cca_ray.training.small_networks import blank_model, blank_tokenizer


@dataclass(frozen=True)
class Plan:
    """`why`: why this size, in a line; empty, and `facts` None, of the digits."""

    size: str
    settings: Pretrain
    facts: BaseFacts | None = None
    why: str = ""


def plan_for(data: LabelledImages, family: Family, size: str | None, start: Pretrain, epochs: int | None) -> Plan:
    """The size is chosen if it is None, and so are the epochs; the other settings begin with `start`."""
    classes, tokenizer = len(data.class_names), blank_tokenizer(family, start)
    corpus = Corpus(len(data.images), tokenizer.config.length(start.image_size))
    models = {own: blank_model(family, own, tokenizer, classes, corpus.tokens) for own in family.own_sizes()}
    counts = {own: parameters(model) for own, model in models.items()}
    chosen = size or choose(counts, corpus)
    settings = settings_for(start, counts[chosen], corpus, epochs)
    facts = BaseFacts(corpus.tokens, classes, settings.learning_rate)
    return Plan(chosen, settings, facts, reason(letter(chosen), counts[chosen], corpus, asked=size is not None))
