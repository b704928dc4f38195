"""Images as people have them, through the verb that makes a token set of them; see README.md."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from cca_ray import prepare
from cca_ray.data.images import centre_crop, decode, lanczos
from cca_ray.data.tokens import TokenSet, read_token_set
from cca_ray.models.official import build_tokenizer, load_tokenizer, save_official
from tests.commands import Outcome, invoke
from tests.data.made_images import add, damaged_avif, picture, png

SIZE = 8
Wanted = list[tuple[Image.Image, int]]
Prepare = Callable[..., Outcome]


@pytest.fixture
def prepared(tokenizer: Path, tmp_path: Path, capsys, ray_here: None) -> Prepare:
    """`cca-ray prepare WHERE ...` into the folder `out`, centre crops only."""

    def run(where: Path, *options: str) -> Outcome:
        fixed = ["--tokenizer", str(tokenizer), "--image-size", str(SIZE), "--augment", "centre"]
        return invoke(prepare.main, [str(where), *fixed, "--out", str(tmp_path / "out"), *options], capsys)

    return run


def centre(image: Image.Image) -> np.ndarray:
    """ADM's centre crop, written after its description: halve by boxes, then resize bicubically, then cut."""
    image = image.convert("RGB")
    while min(image.size) >= 2 * SIZE:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = SIZE / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - SIZE) // 2, (image.height - SIZE) // 2
    return np.asarray(image.crop((left, top, left + SIZE, top + SIZE)))


def assert_holds(found: TokenSet, wanted: Wanted, tokenizer: Path) -> None:
    """These images with these labels, in this order."""
    pixels = np.stack([centre(image) for image, _ in wanted])
    with torch.inference_mode():
        inputs = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        codes = load_tokenizer("llamagen", tokenizer).encode(inputs).numpy()
    assert found.labels.tolist() == [label for _, label in wanted]
    assert (found.tokens[:, 0] == codes).mean() > 0.999  # a sum in another order may tip a tie


def as_bytes(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]  # of that kind's own options
    return buffer.getvalue()


def files_of_a_scraper() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """What Pillow reads, whatever it is called; and what it cannot read."""
    turned = Image.Exif()
    turned[0x112] = 6
    grey16 = Image.fromarray(np.asarray(picture(5).convert("L")).astype(np.uint16) * 256 + 77)
    whole = as_bytes(picture(7, 60, 60), "JPEG")
    good = {
        "a_cmyk.JPEG": as_bytes(picture(0).convert("CMYK"), "JPEG"),
        "b_png.JPEG": png(picture(1)),
        "c_grey.JPEG": as_bytes(picture(2).convert("L"), "JPEG"),
        "d_palette.png": as_bytes(picture(3).convert("P"), "PNG", transparency=0),
        "e_alpha.png": png(picture(4).convert("LA")),
        "f_16_bits.png": png(grey16),
        "g_turned.jpg": as_bytes(picture(6), "JPEG", exif=turned.tobytes()),
        "h_gif.jpg": as_bytes(
            picture(8).convert("P"), "GIF", save_all=True, append_images=[picture(9).convert("P")]
        ),
        "i_avif.jpg": as_bytes(picture(10), "AVIF"),
        "j_thin.png": png(picture(11, 1, 40)),
        "k.WEBP": as_bytes(picture(12), "WEBP", lossless=True),
        "l.jfif": as_bytes(picture(13), "JPEG"),
        "m.gif": as_bytes(picture(14).convert("P"), "GIF"),
    }  # fmt: skip
    bad = {
        "n_cut.jpg": whole[: len(whole) // 2], "o_empty.jpg": b"", "p_page.jpg": b"<html>403</html>",
        "q_avif.jpg": damaged_avif(), "r_pointer.png": b"version https://git-lfs.github.com/spec/v1\n",
    }  # fmt: skip
    return good, bad


def test_what_a_scraper_left_is_read_or_named(prepared: Prepare, tokenizer: Path, tmp_path: Path):
    good, bad = files_of_a_scraper()
    for folder in ("n01", "n02"):
        (tmp_path / "t" / folder).mkdir(parents=True)
        for name, content in {**good, **(bad if folder == "n02" else {})}.items():
            (tmp_path / "t" / folder / name).write_bytes(content)
    for name in (".DS_Store", "._a.jpg", "Thumbs.db", "0"):
        (tmp_path / "t" / "n01" / name).write_bytes(b"\0\5\26\7")
    outcome = prepared(tmp_path / "t")
    assert outcome.code == 0, outcome.err
    assert "31 images: 26 taken, 5 unreadable; at least 13 a class (n01)" in outcome.out
    assert "2 files are no images by their names: 1 without an ending, 1 .db" in outcome.out
    listed = (tmp_path / "out" / "unreadable.txt").read_text().splitlines()
    assert [line.split(": ")[0] for line in listed] == [str(tmp_path / "t" / "n02" / name) for name in bad]
    shown = {name: Image.open(io.BytesIO(content)) for name, content in good.items()}
    high_bytes = np.asarray(shown["f_16_bits.png"]) // 256
    shown["f_16_bits.png"] = Image.fromarray(high_bytes.astype(np.uint8))
    wanted = [(shown[name], label) for label in (0, 1) for name in sorted(good)]
    assert_holds(read_token_set(tmp_path / "out"), wanted, tokenizer)


def test_shards_with_dots_links_and_a_macs_files_are_read(prepared: Prepare, tokenizer: Path, tmp_path: Path):
    names = ["22.05", "v1.0/a.b", "é_ü" * 40, "x" * 180 + "/" + "y" * 150, "plain", "q q"]
    texts = [b"0\n", b"1\r\n", b" 0 ", b"1", b"0", b"1"]
    (tmp_path / "s").mkdir()
    for shard, form in enumerate((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)):
        with tarfile.open(tmp_path / "s" / f"{shard}.tar", "w", format=form) as archive:
            for i, (name, text) in enumerate(zip(names, texts, strict=True)):
                add(archive, f"{name}.cls", text)
                add(archive, f"{name}.png", png(picture(10 * shard + i)))
                add(archive, f"._{i}.png", b"\0\5\26\7")
                add(archive, f"._{i}.cls", b"\0\5\26\7")
            for ending, target in ((".png", "plain"), (".cls", "v1.0/a.b")):
                member = tarfile.TarInfo(f"linked{ending}")
                member.type, member.linkname = tarfile.LNKTYPE, f"{target}{ending}"
                archive.addfile(member)
    outcome = prepared(tmp_path / "s")
    assert outcome.code == 0, outcome.err
    wanted = [(picture(10 * s + i), label) for s in (0, 1) for i, label in enumerate((0, 1, 0, 1, 0, 1))]
    wanted = [*wanted[:6], (picture(4), 1), *wanted[6:], (picture(14), 1)]
    assert_holds(read_token_set(tmp_path / "out"), wanted, tokenizer)


def test_parquet_of_several_files_and_row_groups_is_read(prepared: Prepare, tokenizer: Path, tmp_path: Path):
    """Of Hugging Face: images as structs; here with classes that are numbers as text."""
    numbers, order = ["0", "2", "10", "11", "2"], ["0", "2", "10", "11"]
    for file in range(2):
        rows: list[object] = [{"bytes": png(picture(5 * file + i)), "path": f"{i}.JPEG"} for i in range(5)]
        parquet(tmp_path / "p", rows, [*numbers], f"train-0000{file}-of-00002")
    outcome = prepared(tmp_path / "p", "--numeric-classes")
    assert outcome.code == 0, outcome.err
    assert "sorted as text" not in outcome.out
    found = read_token_set(tmp_path / "out")
    assert found.meta.class_names == tuple(order)
    wanted = [(picture(5 * file + i), order.index(numbers[i])) for file in range(2) for i in range(5)]
    assert_holds(found, wanted, tokenizer)


def parquet(folder: Path, images: list[object], labels: list[object], name: str = "a") -> None:
    folder.mkdir(exist_ok=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(images, kind), "label": labels})
    pq.write_table(table, folder / f"{name}.parquet", row_group_size=2)


def without_a_set(kind: str, where: Path) -> None:
    """A collection of which no set can be made."""
    rows: list[object] = [{"bytes": png(picture(i)), "path": f"{i}.png"} for i in range(4)]
    where.mkdir()
    if kind == "captions":
        with tarfile.open(where / "00000.tar", "w") as archive:
            for i in range(4):
                add(archive, f"0000{i}.png", png(picture(i)))
                add(archive, f"0000{i}.txt", b"a caption")
                add(archive, f"0000{i}.json", json.dumps({"label": i % 2}).encode())
    elif kind == "a test split":
        parquet(where, rows, [0, 1, 0, 1], "train")
        parquet(where, rows, [-1] * 4, "test")
    elif kind == "a null label":
        parquet(where, rows, [0, None, 1, 1])
    elif kind == "fractions":
        parquet(where, rows, [0.0, 1.0, 1.0, 0.5])
    elif kind == "one class":
        parquet(where, rows, [3] * 4)
    elif kind == "half a file":
        parquet(where, rows, [0, 1, 0, 1])
        content = (where / "a.parquet").read_bytes()
        (where / "a.parquet").write_bytes(content[: len(content) // 2])
    elif kind == "other columns":
        pq.write_table(pa.table({"img": [b""], "fine_label": [0]}), where / "a.parquet")
    elif kind == "gzip":
        with tarfile.open(where / "a.tar", "w") as archive:
            add(archive, "cat/0.png", png(picture(0)))
        (where / "a.tar").write_bytes(gzip.compress((where / "a.tar").read_bytes()))
    elif kind == "a broken link":
        for name in ("ant", "bee"):
            (where / name).mkdir()
            (where / name / "0.png").write_bytes(png(picture(0)))
        (where / "bee" / "9.png").symlink_to(where / "gone.png")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("captions", "00000.png has no label; labels are read from class folders"),
        ("a test split", "class -1 is not among"),
        ("a null label", "row 1 has no label"),
        ("fractions", "row 0 has the label 0.0; expected a class number or name"),
        ("one class", "all images are of one class, '3'"),
        ("half a file", "a.parquet: not a readable shard"),
        ("other columns", "no column image or jpg or png; it has img, fine_label"),
        ("gzip", "a.tar: is gzip, not a plain tar"),
        ("a broken link", "9.png leads nowhere"),
    ],
)
def test_a_set_that_would_not_be_what_was_given_is_not_made(prepared: Prepare, tmp_path: Path, kind: str, message: str):
    without_a_set(kind, tmp_path / "given")
    outcome = prepared(tmp_path / "given")
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    with pytest.raises(ValueError, match="no finished token set here"):
        read_token_set(tmp_path / "out")


KINDS = [
    ("JPEG", "RGB"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("PNG", "P"), ("PNG", "LA"), ("WEBP", "RGB"), ("GIF", "P"),
    ("BMP", "RGB"), ("TIFF", "RGB"), ("PPM", "RGB"), ("AVIF", "RGB"), ("ICO", "RGBA"), ("DDS", "RGB"), ("TGA", "RGB"),
    ("JPEG2000", "RGB"), ("PCX", "P"), ("SGI", "RGB"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow
@pytest.mark.parametrize(("kind", "mode"), KINDS)
def test_a_damaged_file_of_any_kind_is_one_unreadable_image(kind: str, mode: str):
    whole, random = as_bytes(picture(0).convert(mode), kind), np.random.default_rng(0)
    damaged = [whole[:length] for length in np.linspace(0, len(whole) - 1, 25, dtype=int)]
    for i in range(40):
        content = bytearray(whole)
        for place in random.integers(0, min(len(content), 300) if i % 2 else len(content), 3):
            content[place] = int(random.integers(0, 256))
        damaged.append(bytes(content))
    for content in damaged:
        with suppress(ValueError):  # and nothing else
            image = decode(content)
            centre_crop(image, SIZE)
            lanczos(image, SIZE)


@pytest.mark.parametrize(
    ("family", "of", "size", "message"),
    [
        ("llamagen", "var", 24, "not a VQ checkpoint (its config has patch_nums)"),
        ("var", "llamagen", 16, "not a VARVQ checkpoint (its config has codebook_embed_dim)"),
        ("var", "var", 16, "image size 16: the tokenizer's scales are for 24 pixels"),
        ("llamagen", "llamagen", 17, "image size 17: expected a multiple of the tokenizer's 2 pixels"),
    ],
)
def test_a_tokenizer_of_another_family_or_size_is_one_line(
    tokenizer: Path, tmp_path: Path, capsys, family: str, of: str, size: int, message: str
):
    path = tokenizer
    if of == "var":
        path = tmp_path / "var.pt"
        small = dict(vocab_size=64, z_channels=8, ch=16, ch_mult=(1, 2, 2), num_res_blocks=1, norm_groups=8)
        save_official(build_tokenizer("var", patch_nums=(1, 2, 3, 6), **small), path)
    (tmp_path / "given").mkdir()
    arguments = [str(tmp_path / "given"), "--family", family, "--tokenizer", str(path), "--image-size", str(size)]
    outcome = invoke(prepare.main, [*arguments, "--out", str(tmp_path / "out")], capsys)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
