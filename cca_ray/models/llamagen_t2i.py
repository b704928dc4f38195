"""LlamaGen's text-conditional GPT (t2i): features of a caption + image tokens -> next-token logits.

It is the class-conditional one with T positions of text before the tokens, in the place of one.  The words stand at
their end; the empty positions before them are seen by nothing but themselves.  The null condition is a learned text of
T positions, of which as many are seen as the caption that it stands for has words: so it is in the official code, in
training and in guidance.

Shape suffixes: see `llamagen`; here T counts the positions of text alone.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cca_ray.models.condition import Kind, TextFeatures, Texts
from cca_ray.models.dropout import Dropout
from cca_ray.models.llamagen import Cache, GridGPT, LlamaGenConfig


@dataclass(frozen=True)
class LlamaGenT2IConfig(LlamaGenConfig):
    num_classes: int = 0
    cls_token_num: int = 120  # positions of text, T
    caption_dim: int = 2048  # width of its features: those of flan-t5-xl

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_classes or min(self.cls_token_num, self.caption_dim) < 1:
            raise ValueError("num_classes must be 0, and cls_token_num and caption_dim at least 1: texts, not classes")


class Projection(nn.Module):
    """Features of a text [..., caption_dim] -> [..., C]."""

    def __init__(self, config: LlamaGenT2IConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.caption_dim, config.dim, bias=False)
        self.fc2 = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class CaptionEmbedding(nn.Module):
    """Texts, or the null condition in their place. The official code does not train the latter: it is a buffer."""

    def __init__(self, config: LlamaGenT2IConfig):
        super().__init__()
        self.cap_proj = Projection(config)
        self.register_buffer("uncond_embedding", torch.zeros(config.cls_token_num, config.caption_dim))
        self.uncond_embedding: Tensor

    def forward(self, text: TextFeatures) -> Tensor:
        null = self.uncond_embedding
        return self.cap_proj(torch.where(text.null[:, None, None], null, text.features.to(null.dtype)))


class LlamaGenT2I(GridGPT):
    """`model(text, tokens [B, L]) -> logits [B, L, V]`; a text is `TextFeatures`."""

    config: LlamaGenT2IConfig

    def __init__(self, config: LlamaGenT2IConfig):
        super().__init__(config, CaptionEmbedding(config))

    @property
    def condition_positions(self) -> int:
        return self.config.cls_token_num

    @property
    def takes(self) -> Kind:
        return Texts(self.config.cls_token_num, self.config.caption_dim)

    @property
    def null_label(self) -> int:
        return -1  # no caption's number

    def initialize(self, generator: torch.Generator) -> None:
        super().initialize(generator)
        null = self.get_buffer("cls_embedding.uncond_embedding")
        null.copy_(torch.randn(null.shape, generator=generator) / self.config.caption_dim**0.5)

    def seen(self, mask_BT: Tensor, positions: int) -> Tensor:
        """Which of so many positions each sees: words and tokens up to its own, and itself. [B, 1, positions ×2]."""
        seen = mask_BT.new_ones(len(mask_BT), 1, positions, positions).tril()
        seen[..., : mask_BT.shape[1]] &= mask_BT[:, None, None]
        return seen | torch.eye(positions, dtype=torch.bool, device=seen.device)

    def hidden(self, text: TextFeatures, tokens: Tensor, dropout: Dropout | None = None) -> Tensor:
        before = self.cls_embedding(text)
        x = torch.cat([before, self.tok_embeddings(tokens[:, :-1]).to(before.dtype)], dim=1)
        if dropout is not None:
            x = dropout(x, 0)
        table, mask = self.rope[: x.shape[1]], self.seen(text.mask, x.shape[1])
        for number, layer in enumerate(self.layers):
            x = layer(x, table, drops=dropout.of_block(number) if dropout else None, mask=mask)
        return self.norm(x[:, self.config.cls_token_num - 1 :])

    def decode(self, text: TextFeatures, last_tokens: Tensor | None, step: int, cache: Cache) -> Tensor:
        """Logits [B, 1, V] for token `step`, given token `step - 1` [B, 1] (None at step 0) and the cache."""
        words = self.config.cls_token_num
        if last_tokens is None:
            begin, x, mask = 0, self.cls_embedding(text), self.seen(text.mask, words)
        else:
            begin, x = words + step - 1, self.tok_embeddings(last_tokens)
            mask = F.pad(text.mask, (0, step), value=True)[:, None, None]
        table = self.rope[begin : begin + x.shape[1]]
        for layer, layer_cache in zip(self.layers, cache, strict=True):
            x = layer(x, table, begin, layer_cache, mask=mask)
        return self.output(self.norm(x[:, -1:])).float()
