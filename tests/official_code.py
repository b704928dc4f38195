"""Stand-ins for checkouts of the official repositories: the names that benchmarks import, around our own networks.

They are called as the official code is, so that the benchmarks' way through it can be walked without it.
"""

from pathlib import Path

GPT = """
from dataclasses import dataclass, fields

from cca_ray.models.llamagen import LlamaGen, LlamaGenConfig


@dataclass
class ModelArgs:
    n_layer: int
    n_head: int
    dim: int
    block_size: int
    vocab_size: int
    num_classes: int
    multiple_of: int
    token_dropout_p: float = 0.1
    resid_dropout_p: float = 0.1
    ffn_dropout_p: float = 0.1
    class_dropout_prob: float = 0.1


class Transformer(LlamaGen):
    def __init__(self, args):
        super().__init__(LlamaGenConfig(**{f.name: getattr(args, f.name) for f in fields(args)[:7]}))

    def forward(self, idx, cond_idx, targets):
        assert idx.shape[1] == targets.shape[1] - 1
        return super().forward(cond_idx, targets), None
"""
GENERATE = """
def generate(model, cond, max_new_tokens, cfg_scale=1.0):
    assert cfg_scale == 1
    tokens = cond.new_zeros(len(cond), max_new_tokens)
    return model(idx=tokens[:, :-1], cond_idx=cond, targets=tokens)[0].argmax(-1)
"""
VQ = """
from torch import nn


class VQ16(nn.Module):
    def __init__(self, codebook_size, codebook_embed_dim):
        super().__init__()
        assert (codebook_size, codebook_embed_dim) == (16384, 8)
        self.pool = nn.AvgPool2d(16)

    def encode(self, images):
        latents = self.pool(images)
        return latents, None, (None, None, latents.mean(1).flatten().abs().mul(1000).long())


VQ_models = {"VQ-16": VQ16}
"""
VAR = '''
from types import SimpleNamespace

from torch import nn

from cca_ray.models.var import VAR, VARConfig


class Quantizer(nn.Module):
    def load_state_dict(self, state):
        assert state


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.quantize = Quantizer()


class Official(VAR):
    """Is given what coarser scales amount to, where ours is given tokens."""

    def __init__(self, *arguments, **shape):
        super().__init__(*arguments, **shape)
        self.codes = SimpleNamespace(teacher_input=lambda inputs: inputs)

    def autoregressive_infer_cfg(self, B, label_B, g_seed, cfg):
        assert (B, cfg) == (len(label_B), 0)
        later = sum(self.decode_steps) - self.decode_steps[0]
        inputs = self.head.weight.new_zeros(B, later, self.config.code_dim)
        return self.vae_proxy[0].fhat_to_img(self(label_B, inputs))


def build_vae_var(device, patch_nums, V, Cvae, ch, depth):
    shape = VARConfig(depth=depth, n_head=depth, dim=64 * depth, vocab_size=V, code_dim=Cvae, patch_nums=patch_nums)
    return VAE().to(device), Official(shape).to(device)
'''
FILES = {
    "LlamaGen/autoregressive/models/gpt.py": GPT,
    "LlamaGen/autoregressive/models/generate.py": GENERATE,
    "LlamaGen/tokenizer/tokenizer_image/vq_model.py": VQ,
    "VAR/models/__init__.py": VAR,
}
PACKAGES = ("autoregressive", "tokenizer", "models", "huggingface_hub")  # what they add to Python's modules


def write_checkouts(folder: Path) -> None:
    """`folder`/LlamaGen and `folder`/VAR."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
