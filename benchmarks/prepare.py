"""Token extraction: ours against the official extractor's way, on the same tokenizer and images.

The official way (LlamaGen's extract_codes_c2i.py): one image at a time, its ten crops as a batch, one int64 `.npy`
for the codes and one for the label.  Ours: `cca_ray.prepare`; its rate is that of a longer run less a short one,
so that, as there, starting does not count.

    python -m benchmarks.prepare                  the official loop around our network
    python -m benchmarks.prepare --peer LlamaGen  around the official network, from a checkout of its repository
"""

import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import ray
import torch
from PIL import Image
from torch import Tensor

from benchmarks.common import Raw, options, some_ray
from benchmarks.peers import official_vq
from cca_ray.data.images import centre_crop, crops_of, cut, decode
from cca_ray.data.listing import Listing, list_images
from cca_ray.data.token_set_making import tokenize
from cca_ray.data.tokens import TokenMeta, to_input, write_part
from cca_ray.models.files import read_checkpoint
from cca_ray.models.official import build_tokenizer, save_official
from cca_ray.terminal.console import Console
from cca_ray.terminal.images_done import Pace

AUGMENTATION = ["ten-crop-1.1"]
MANY = 12  # images an encoder
SMOKE = dict(codebook_size=64, ch=8, ch_mult=(1, 2), num_res_blocks=1, z_channels=16, norm_groups=8)  # a tokenizer


def photos(folder: Path, count: int) -> Listing:
    """Photographs of nothing: JPEG, 500 x 375, as ImageNet's mostly are."""
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"class{i % 2}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(path)
    return list_images(str(folder))


def official_encoder(tokenizer: Path, peer: Path | None) -> Callable[[Tensor], Tensor]:
    """Crops [10, 3, S, S] -> codes [10, L]."""
    state, config = read_checkpoint(tokenizer)
    if peer is None:
        network = build_tokenizer("llamagen", **config)
        network.load_state_dict(state)
        return network.encode
    official = official_vq(state, peer)
    return lambda crops: official.encode(crops)[2][2].reshape(len(crops), -1)


def official_way(listing: Listing, encode: Callable[[Tensor], Tensor], size: int, folder: Path) -> float:
    """Images a second."""
    codes, labels, crops = folder / "codes", folder / "labels", crops_of(AUGMENTATION, size)
    codes.mkdir(parents=True)
    labels.mkdir()
    started = time.perf_counter()
    for i, (entry, label) in enumerate(zip(listing.entries, listing.labels, strict=True)):
        square = centre_crop(decode(Path(entry.path).read_bytes()), crops[0].square.side)[None]
        views = np.concatenate([cut({crops[0].square.key: square}, crop, size) for crop in crops])
        with torch.no_grad():
            indices = encode(to_input(views))
        np.save(codes / f"{i}.npy", indices.reshape(1, 10, -1).numpy().astype(np.int64))
        np.save(labels / f"{i}.npy", np.array([label]))
    return len(listing.entries) / (time.perf_counter() - started)


def seconds(listing: Listing, tokenizer: Path, size: int, folder: Path, part: int) -> float:
    """Of one run of ours, from its start to its end."""
    started = time.perf_counter()
    tokenize(listing, "llamagen", tokenizer, size, AUGMENTATION, folder, part, 0, Pace(Console(io.StringIO())))
    return time.perf_counter() - started


def bytes_an_image(folder: Path, count: int = 1024, length: int = 576) -> tuple[float, float]:
    """On the disk, official and ours: ten crops of 384 pixels, codes without any order, the worst case."""
    codes = np.random.default_rng(0).integers(0, 16384, (count, 10, length))
    np.save(folder / "codes.npy", codes[:1])
    np.save(folder / "label.npy", np.array([0]))
    meta = TokenMeta(tokenizer="", codebook_size=16384, length=length, crops=10, image_size=384,
                     augmentations=("",) * 10, class_names=("a", "b"))  # fmt: skip
    part = write_part(folder / "part.parquet", np.zeros(count, np.int64), codes.astype(np.uint16), meta)
    official = (folder / "codes.npy").stat().st_size + (folder / "label.npy").stat().st_size
    return official, part.stat().st_size / count


def main(words: list[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--peer", type=Path, help="checkout of the official LlamaGen repository")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(words)
    rounds, each, image_size = (1, 2, 32) if arguments.smoke else (arguments.rounds, MANY, arguments.image_size)
    torch.manual_seed(0)
    raw = Raw(arguments.raw, "round", "official images/s", "ours")
    with some_ray(), tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        tokenizer, size = root / "vq.pt", image_size
        save_official(build_tokenizer("llamagen", **(SMOKE if arguments.smoke else {})), tokenizer)
        encode = official_encoder(tokenizer, arguments.peer)
        cores = int(ray.cluster_resources()["CPU"])
        few, many, least = photos(root / "few", 4), photos(root / "many", cores * each), photos(root / "least", cores)
        official, ours = [], []
        for i in range(rounds):
            official.append(official_way(few, encode, size, root / f"official-{i}"))
            start = seconds(least, tokenizer, size, root / f"start-{i}", 1)
            whole = seconds(many, tokenizer, size, root / f"ours-{i}", each)
            ours.append((len(many.entries) - len(least.entries)) / (whole - start))
            raw.add(i, official[-1], ours[-1])
            print(f"round {i}: official {official[-1]:.3f}, ours {ours[-1]:.3f} images/s", flush=True)
        theirs, mine = bytes_an_image(root, 16 if arguments.smoke else 1024)
        ratio = statistics.median(b / a for a, b in zip(official, ours, strict=True))
        print(f"\nten crops of {size} pixels, VQ-16, {cores} cores, float32")
        print("| | official way | ours | ratio |\n|---|---|---|---|")
        print(f"| images/s | {statistics.median(official):.3f} | {statistics.median(ours):.3f} | {ratio:.2f} |")
        print(f"| bytes an image, 384 pixels | {theirs:,.0f} | {mine:,.0f} | {mine / theirs:.2f} |")


if __name__ == "__main__":
    main()
