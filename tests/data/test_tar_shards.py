"""What users' archives are like: with links, cut short, joined, compressed, from a Mac, without labels."""

import gzip
import io
import json
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cca_ray.data.listing import list_images
from cca_ray.errors import ConfigError
from tests.data.made_images import add, picture, pixels, png

Fill = Callable[[tarfile.TarFile], None]


def archive_of(path: Path, fill: Fill, **options: int) -> Path:
    with tarfile.open(path, "w", **options) as archive:  # type: ignore[call-overload]  # of the kinds of modes
        fill(archive)
    return path


def link(archive: tarfile.TarFile, name: str, target: str, kind: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    archive.addfile(member)


def seen(path: Path, **options: object) -> list[tuple[str, bytes]]:
    """Class name and pixels of every image, sorted."""
    listing = list_images(str(path), **options)  # type: ignore[arg-type]
    names = [listing.class_names[label] for label in listing.labels]
    return sorted((name, image.tobytes()) for name, image in zip(names, pixels(listing), strict=True))


def wanted(**seeds: list[int]) -> list[tuple[str, bytes]]:
    return sorted((name, np.asarray(picture(s)).tobytes()) for name, some in seeds.items() for s in some)


def two_classes(archive: tarfile.TarFile) -> None:
    for name, seeds in (("ant", (0, 1)), ("bee", (10, 11))):
        for seed in seeds:
            add(archive, f"{name}/x{seed}.png", png(picture(seed)))


TWO = wanted(ant=[0, 1], bee=[10, 11])


@pytest.mark.parametrize("program", ["tar -cf", "tar --format=pax -cf", "tar --format=ustar -cf"])
def test_a_tree_with_links_gives_the_same_as_a_tar_and_as_a_folder(tmp_path: Path, program: str):
    tree = tmp_path / "tree"
    for name, seeds in (("ant", (0, 1, 2)), ("bee", (10, 11))):
        (tree / name).mkdir(parents=True)
        for seed in seeds:
            (tree / name / f"x{seed}.png").write_bytes(png(picture(seed)))
    (tree / "cat").mkdir()
    (tree / "cat" / "hard.png").hardlink_to(tree / "ant" / "x0.png")
    (tree / "cat" / "soft.png").symlink_to("../bee/x10.png")
    (tree / "cat" / "chain.png").symlink_to("soft.png")
    (tree / "dog").symlink_to("ant")
    subprocess.run(
        [*program.split(), str(tmp_path / "tree.tar"), "-C", str(tree), "ant", "bee", "cat", "dog"], check=True
    )
    expected = wanted(ant=[0, 1, 2], bee=[10, 11], cat=[0, 10, 10], dog=[0, 1, 2])
    assert seen(tree) == expected
    assert seen(tmp_path / "tree.tar") == expected


def test_links_count_for_cls_members_too(tmp_path: Path):
    def fill(archive: tarfile.TarFile) -> None:
        add(archive, "a.png", png(picture(0)))
        add(archive, "a.cls", b"0")
        add(archive, "b.png", png(picture(1)))
        add(archive, "b.cls", b"1")
        add(archive, "c.png", png(picture(2)))
        link(archive, "c.cls", "b.cls", tarfile.LNKTYPE)
        add(archive, "d.png", png(picture(3)))
        link(archive, "d.cls", "a.cls", tarfile.SYMTYPE)

    assert seen(archive_of(tmp_path / "s.tar", fill)) == wanted(**{"0": [0, 3], "1": [1, 2]})


@pytest.mark.parametrize("order", [".store ant bee", "ant bee .store"])
def test_a_link_may_lead_to_a_hidden_file_of_the_archive(tmp_path: Path, order: str):
    """As git-annex and DVC leave data sets: the files in a hidden store, links in the class folders."""
    tree = tmp_path / "tree"
    for folder in (".store", "ant", "bee"):
        (tree / folder).mkdir(parents=True)
    for seed in (0, 10, 11):
        (tree / ".store" / str(seed)).write_bytes(png(picture(seed)))
    (tree / "ant" / "0.png").symlink_to("../.store/0")
    (tree / "bee" / "0.png").symlink_to("../.store/10")
    (tree / "bee" / "1.png").hardlink_to(tree / ".store" / "11")
    (tree / ".gone").symlink_to("/nowhere/.cache")
    subprocess.run(["tar", "-cf", str(tmp_path / "s.tar"), "-C", str(tree), *order.split(), ".gone"], check=True)
    (tree / ".gone").unlink()
    assert seen(tmp_path / "s.tar") == seen(tree) == wanted(ant=[0], bee=[10, 11])


def test_a_hard_link_stays_what_it_was_when_its_target_is_replaced(tmp_path: Path):
    tree = tmp_path / "tree"
    for name, seed in (("ant", 0), ("bee", 10)):
        (tree / name).mkdir(parents=True)
        (tree / name / "x.png").write_bytes(png(picture(seed)))
    (tree / "bee" / "y.png").hardlink_to(tree / "ant" / "x.png")
    tar = ["tar", "-C", str(tree)]
    subprocess.run([*tar, "-cf", str(tmp_path / "s.tar"), "ant", "bee"], check=True)
    (tree / "ant" / "x.png").unlink()
    (tree / "ant" / "x.png").write_bytes(png(picture(5)))
    subprocess.run([*tar, "-rf", str(tmp_path / "s.tar"), "ant/x.png"], check=True)
    (tmp_path / "unpacked").mkdir()
    subprocess.run(["tar", "-xf", str(tmp_path / "s.tar"), "-C", str(tmp_path / "unpacked")], check=True)
    assert seen(tmp_path / "s.tar") == seen(tmp_path / "unpacked") == wanted(ant=[5], bee=[0, 10])


@pytest.mark.parametrize("inside", [".", "tree"])
def test_folders_in_class_folders_are_of_that_class_as_on_a_disk(tmp_path: Path, inside: str):
    tree = tmp_path / "tree"
    for folder, seed in (("cat/a", 0), ("cat/b", 1), ("dog/a", 10), ("dog", 11)):
        (tree / folder).mkdir(parents=True, exist_ok=True)
        (tree / folder / "x.png").write_bytes(png(picture(seed)))
    where = tree if inside == "." else tmp_path
    subprocess.run(["tar", "-cf", str(tmp_path / "s.tar"), "-C", str(where), inside], check=True)
    assert seen(tmp_path / "s.tar") == seen(tree) == wanted(cat=[0, 1], dog=[10, 11])


def test_an_image_beside_the_class_folders_is_an_error_in_a_tree_and_in_a_tar(tmp_path: Path):
    tree = tmp_path / "tree"
    for folder, seed in (("ant", 0), ("bee", 10)):
        (tree / folder).mkdir(parents=True)
        (tree / folder / "x.png").write_bytes(png(picture(seed)))
    (tree / "all.png").write_bytes(png(picture(7)))
    subprocess.run(["tar", "-cf", str(tmp_path / "s.tar"), "-C", str(tmp_path), "tree"], check=True)
    for where in (tree, tmp_path / "s.tar"):
        with pytest.raises(ConfigError, match=r"tree/all\.png lies beside the class folders"):
            list_images(str(where))


@pytest.mark.parametrize("target", ["/etc/hostname", "../outside.png", "gone.png", "ant/again.png", ".."])
def test_a_link_that_leads_out_of_the_archive_is_named(tmp_path: Path, target: str):
    def fill(archive: tarfile.TarFile) -> None:
        two_classes(archive)
        link(archive, "ant/again.png", target, tarfile.SYMTYPE)

    with pytest.raises(ConfigError, match=r"bad\.tar: the link ant/again\.png leads to"):
        list_images(str(archive_of(tmp_path / "bad.tar", fill)))


def test_of_members_of_one_name_the_last_counts(tmp_path: Path):
    path = archive_of(tmp_path / "s.tar", two_classes)
    with tarfile.open(path, "a") as archive:
        add(archive, "./ant/x0.png", png(picture(7)))
    assert seen(path) == wanted(ant=[1, 7], bee=[10, 11])


def test_an_archive_that_was_cut_at_a_members_border_is_an_error(tmp_path: Path):
    whole = archive_of(tmp_path / "s.tar", two_classes).read_bytes()
    with tarfile.open(tmp_path / "s.tar") as archive:
        borders = [member.offset for member in archive][1:]
        end = archive.offset
    for cut in [*borders, end]:
        (tmp_path / "s.tar").write_bytes(whole[:cut])
        with pytest.raises(ConfigError, match=rf"s\.tar: no end-of-archive mark at byte {cut}"):
            list_images(str(tmp_path / "s.tar"))


def test_a_damaged_header_is_no_end(tmp_path: Path):
    path = archive_of(tmp_path / "s.tar", two_classes)
    with tarfile.open(path) as archive:
        third = archive.getmembers()[2].offset
    content = bytearray(path.read_bytes())
    content[third : third + 100] = b"\xff" * 100
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"s\.tar: no end-of-archive mark at byte {third}"):
        list_images(str(path))


def test_what_a_download_left_that_took_its_room_first_is_an_error(tmp_path: Path):
    whole = archive_of(tmp_path / "s.tar", two_classes).read_bytes()
    (tmp_path / "s.tar").write_bytes(whole[: len(whole) // 4] + bytes(2**22))
    with pytest.raises(ConfigError, match=r"s\.tar: .* bytes of zeros follow byte \d+: a download"):
        list_images(str(tmp_path / "s.tar"))
    (tmp_path / "s.tar").write_bytes(bytes(10240))
    archive_of(tmp_path / "t.tar", two_classes)
    with pytest.raises(ConfigError, match=r"s\.tar: an archive of zeros that holds nothing"):
        list_images(str(tmp_path))
    (tmp_path / "s.tar").write_bytes(whole + bytes(2**16))  # a large record
    (tmp_path / "t.tar").unlink()
    assert seen(tmp_path / "s.tar") == TWO


def test_joined_archives_are_an_error(tmp_path: Path):
    whole = archive_of(tmp_path / "s.tar", two_classes).read_bytes()
    (tmp_path / "joined.tar").write_bytes(whole + whole)
    with pytest.raises(ConfigError, match=r"joined\.tar: more follows the end of the archive"):
        list_images(str(tmp_path / "joined.tar"))


def test_a_sparse_member_is_an_error(tmp_path: Path):
    (tmp_path / "ant").mkdir()
    with (tmp_path / "ant" / "0.png").open("wb") as file:
        file.write(png(picture(0)))
        file.truncate(2**22)
    subprocess.run(["tar", "-S", "-cf", str(tmp_path / "s.tar"), "-C", str(tmp_path), "ant"], check=True)
    with pytest.raises(ConfigError, match=r"s\.tar: ant/0\.png is stored sparse"):
        list_images(str(tmp_path / "s.tar"))


@pytest.mark.parametrize(("what", "pack"), [("gzip", gzip.compress), ("zstd", lambda b: b"\x28\xb5\x2f\xfd" + b)])
def test_a_compressed_file_that_is_called_tar_says_what_it_is(
    tmp_path: Path, what: str, pack: Callable[[bytes], bytes]
):
    whole = archive_of(tmp_path / "s.tar", two_classes).read_bytes()
    (tmp_path / "s.tar").write_bytes(pack(whole))
    with pytest.raises(ConfigError, match=rf"s\.tar: is {what}, not a plain tar; unpack it first"):
        list_images(str(tmp_path / "s.tar"))


def test_upper_case_endings_are_read(tmp_path: Path):
    assert seen(archive_of(tmp_path / "S.TAR", two_classes)) == TWO


def test_imagenets_tar_of_tars_is_read(tmp_path: Path):
    inner = {}
    for name, seeds in (("n01440764", (0, 1)), ("n01443537", (10, 11))):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for seed in seeds:
                add(archive, f"{name}_{seed}.JPEG", png(picture(seed)))
        inner[f"{name}.tar"] = buffer.getvalue()

    def fill(archive: tarfile.TarFile) -> None:
        for name, content in inner.items():
            add(archive, name, content)

    path = archive_of(tmp_path / "ILSVRC2012_img_train.tar", fill)
    assert seen(path) == wanted(n01440764=[0, 1], n01443537=[10, 11])
    inner["n01443537.tar"] = inner["n01443537.tar"][: 2 * (512 + 2048)]  # a header and a picture, twice
    path = archive_of(tmp_path / "ILSVRC2012_img_train.tar", fill)
    with pytest.raises(ConfigError, match=r"ILSVRC2012_img_train\.tar: n01443537\.tar: no end-of-archive mark"):
        list_images(str(path))


def test_a_macs_hidden_members_are_passed_over(tmp_path: Path):
    def fill(archive: tarfile.TarFile) -> None:
        for i in range(2):
            for name, content in (("png", png(picture(i))), ("cls", str(i).encode())):
                add(archive, f"./._{i}.{name}", b"\0\5\26\7 Mac OS X")
                add(archive, f"./{i}.{name}", content)
        add(archive, "__MACOSX/0.png", b"\0\5\26\7")
        add(archive, ".DS_Store", b"\0")

    assert seen(archive_of(tmp_path / "s.tar", fill)) == wanted(**{"0": [0], "1": [1]})


def test_files_passed_over_are_counted_over_all_shards(tmp_path: Path):
    def fill(archive: tarfile.TarFile) -> None:
        for i in range(2):
            add(archive, f"{i}.png", png(picture(i)))
            add(archive, f"{i}.cls", str(i).encode())
        add(archive, "0.heic", b"")

    for name in ("a.tar", "b.tar"):
        archive_of(tmp_path / name, fill)
    assert list_images(str(tmp_path)).passed_over == ((".heic", 2),)


def captions(folder: Path) -> None:
    """As img2dataset leaves them: picture, caption and JSON, no .cls."""
    folder.mkdir()
    for shard in range(2):

        def fill(archive: tarfile.TarFile, shard: int = shard) -> None:
            for i in range(2):
                name = f"{shard:05d}{i:04d}"
                add(archive, f"{name}.png", png(picture(10 * shard + i)))
                add(archive, f"{name}.txt", b"a caption")
                add(archive, f"{name}.json", json.dumps({"label": i, "what": ["cat", "dog"][i]}).encode())

        archive_of(folder / f"{shard:05d}.tar", fill)


def test_images_without_labels_are_an_error_that_says_which_labels_are_read(tmp_path: Path):
    captions(tmp_path / "s")
    with pytest.raises(ConfigError, match=r"000000000\.png has no label; labels are read from .*--label-key") as error:
        list_images(str(tmp_path / "s"))
    assert "\n" not in str(error.value)
    assert len(list_images(str(tmp_path / "s"), labelled=False).entries) == 4


def test_a_shards_own_name_is_no_class(tmp_path: Path):
    """img2dataset's, and others': the shard's number begins its members' names, or is their folder."""
    for kind, name, caption in (("a", "{0}_{1}", ".txt"), ("b", "{0}_{1}", ""), ("c", "{0}/{1}", ".json")):
        (tmp_path / kind).mkdir()
        for shard in range(2):

            def fill(archive: tarfile.TarFile, shard: int = shard, name: str = name, caption: str = caption) -> None:
                for i in range(2):
                    stem = name.format(f"{shard:05d}", i)
                    add(archive, f"{stem}.png", png(picture(10 * shard + i)))
                    if caption:
                        add(archive, f"{stem}{caption}", b"{}")

            archive_of(tmp_path / kind / f"{shard:05d}.tar", fill)
        with pytest.raises(ConfigError, match=r"00000\.tar: 00000.*\.png has no label"):
            list_images(str(tmp_path / kind))
    (tmp_path / "d").mkdir()
    for shard in ("00000", "00001"):
        subprocess.run(["tar", "-xf", str(tmp_path / "c" / f"{shard}.tar"), "-C", str(tmp_path / "d")], check=True)
    with pytest.raises(ConfigError, match="the folders are numbers, such as 00000, and a caption lies beside each"):
        list_images(str(tmp_path / "d"))
    for kind in ("c", "d"):
        listed = list_images(str(tmp_path / kind), classes=["00001", "00000"])
        assert listed.labels.tolist() == [1, 1, 0, 0]


def test_a_field_for_labels_is_not_passed_over_for_a_tree(tmp_path: Path):
    for name in ("ant", "bee"):
        (tmp_path / "t" / name).mkdir(parents=True)
        (tmp_path / "t" / name / "0.png").write_bytes(png(picture(0)))
        (tmp_path / "t" / name / "0.json").write_text('{"label": 1}')
    with pytest.raises(ConfigError, match=r"--label-key is for \.tar and \.parquet"):
        list_images(str(tmp_path / "t"), label_key="label")


def test_labels_come_from_a_field_of_the_json_beside_an_image(tmp_path: Path):
    captions(tmp_path / "s")
    assert seen(tmp_path / "s", label_key="label") == wanted(**{"0": [0, 10], "1": [1, 11]})
    assert seen(tmp_path / "s", label_key="what") == wanted(cat=[0, 10], dog=[1, 11])
    with pytest.raises(ConfigError, match=r"000000000\.json has no field 'class'"):
        list_images(str(tmp_path / "s"), label_key="class")


def test_imagenets_validation_names_tell_the_synset(tmp_path: Path):
    def fill(archive: tarfile.TarFile) -> None:
        for i, synset in enumerate(("n01440764", "n01443537")):
            add(archive, f"ILSVRC2012_val_0000000{i}_{synset}.JPEG", png(picture(i)))

    assert seen(archive_of(tmp_path / "val.tar", fill)) == wanted(n01440764=[0], n01443537=[1])


def test_a_flat_tar_named_as_a_given_class_is_of_that_class(tmp_path: Path):
    (tmp_path / "s").mkdir()
    for name, seed in (("cat", 0), ("dog", 1)):
        archive_of(tmp_path / "s" / f"{name}.tar", lambda archive, seed=seed: add(archive, "0.png", png(picture(seed))))
    assert seen(tmp_path / "s", classes=["dog", "cat"]) == wanted(cat=[0], dog=[1])
    with pytest.raises(ConfigError, match=r"cat\.tar: 0\.png has no label"):
        list_images(str(tmp_path / "s"))


def test_one_class_alone_is_an_error_wherever_it_comes_from(tmp_path: Path):
    def fill(archive: tarfile.TarFile) -> None:
        for i in range(3):
            add(archive, f"{i}.png", png(picture(i)))
            add(archive, f"{i}.cls", b"1")

    with pytest.raises(ConfigError, match=r"all images are of one class, '1'; expected at least 2"):
        list_images(str(archive_of(tmp_path / "s.tar", fill)))


def shards(folder: Path, *names: list[str]) -> Path:
    """A tar for each list of images."""
    folder.mkdir()
    for number, some in enumerate(names):
        with tarfile.open(folder / f"{number}.tar", "w") as archive:
            for name in some:
                add(archive, name, png(picture(0)))
    return folder


@pytest.mark.parametrize(
    ("first", "second", "root", "above"),
    [
        # As Tiny ImageNet: a shard of one class only gave the class 'images'.
        (["train/n01/images/0.png", "train/n02/images/0.png"], ["train/n02/images/1.png"], "train/n02", "train"),
        (["train/cat/tabby/1.png", "train/dog/pug/1.png"], ["train/dog/pug/2.png", "train/dog/lab/3.png"],
         "train/dog", "train"),
        (["cat/x/1.png", "dog/x/1.png"], ["/dog/x/2.png"], "dog", r"\."),
    ],
)  # fmt: skip
def test_shards_whose_class_folders_lie_at_different_depths_are_refused(
    tmp_path: Path, first: list[str], second: list[str], root: str, above: str
):
    for number, two in enumerate(([first, second], [second, first])):
        where = shards(tmp_path / str(number), *two)
        with pytest.raises(ConfigError, match=f"its images lie in {root}, and the class folders of .* in {above}: wh"):
            list_images(str(where))
        assert len(list_images(str(where), labelled=False).entries) == len(first + second)


def test_shards_of_one_class_each_or_packed_from_several_folders_keep_their_classes(tmp_path: Path):
    for number, (first, second) in enumerate([
        (["train/cat/0.png", "train/dog/0.png"], ["train/dog/1.png"]),
        (["train/cat/0.png"], ["train/dog/0.png"]),
        (["00000/cat/0.png", "00000/dog/0.png"], ["00001/dog/0.png", "00001/cat/0.png"]),
    ]):  # fmt: skip
        assert list_images(str(shards(tmp_path / str(number), first, second))).class_names == ("cat", "dog")
