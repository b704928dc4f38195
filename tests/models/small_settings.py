"""Settings of small models and tokenizers: those that have a grid of tokens, and those that have a pyramid."""

SMALL = dict(ch=8, ch_mult=(1, 2), num_res_blocks=1, norm_groups=8)
GRID_CODES = dict(codebook_size=32, z_channels=16, **SMALL)
GRID_OF_TEXTS = dict(vocab_size=32, block_size=16, cls_token_num=5, caption_dim=12)
GRID = dict(num_classes=10, vocab_size=32, block_size=16)
PLAIN_CODES = dict(
    codebook_size=32, z_channels=8, hidden_channels=8, channel_mult=(1, 2), num_res_blocks=1, norm_groups=8
)
PYRAMID_CODES = dict(vocab_size=32, z_channels=8, patch_nums=(1, 2, 4), **SMALL)
PYRAMID = dict(num_classes=10, vocab_size=32, code_dim=8, patch_nums=(1, 2, 4))
