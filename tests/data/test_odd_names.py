"""What no list of images could hold, wherever it lies: also below a link to a folder, where pyarrow goes too."""

import os
import tarfile
from pathlib import Path

import pytest

from cca_ray.data.listing import list_images
from cca_ray.errors import ConfigError
from tests.data.made_images import add, picture, png, write_tree


def subset(photos: Path) -> Path:
    """Links to the class folders of a tree."""
    write_tree(photos)
    (chosen := photos.with_name("chosen")).mkdir()
    for name in ("cat", "dog"):
        (chosen / name).symlink_to(photos / name)
    return chosen


def test_a_link_that_leads_nowhere_is_found_below_a_linked_folder(tmp_path: Path):
    """As in a subset of git-annex's files of which some were not fetched: two images of ten were listed."""
    chosen = subset(tmp_path / "photos")
    assert len(list_images(str(chosen)).entries) == 6
    (tmp_path / "photos" / "cat" / "9.png").symlink_to("../.git/annex/objects/9")
    with pytest.raises(ConfigError, match=r"chosen/cat/9\.png leads nowhere"):
        list_images(str(chosen))


@pytest.mark.parametrize("target", ["cat", ".", "cat/deep", "../chosen"])
def test_a_loop_is_found_across_links(target: str, tmp_path: Path):
    """One image was listed 41 times."""
    chosen = subset(tmp_path / "photos")
    (tmp_path / "photos" / "cat" / "deep").mkdir()
    (tmp_path / "photos" / "cat" / "deep" / "again").symlink_to(tmp_path / "photos" / target)
    with pytest.raises(ConfigError, match=r"chosen/cat/deep/again leads nowhere, or back to a folder that contains it"):
        list_images(str(chosen))


def test_a_folder_that_two_links_lead_to_is_no_loop(tmp_path: Path):
    chosen = subset(tmp_path / "photos")
    (chosen / "emu").symlink_to(tmp_path / "photos" / "cat")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "3.png").write_bytes(png(picture(3)))
    (tmp_path / "photos" / "cat" / "more").symlink_to(tmp_path / "more")
    assert list_images(str(chosen)).labels.tolist() == [0] * 4 + [1] * 3 + [2] * 4


def test_a_name_that_is_not_utf_8_is_said_with_its_folder(tmp_path: Path):
    chosen = subset(tmp_path / "photos")
    with open(os.fsencode(tmp_path / "photos" / "dog") + b"/caf\xe9.png", "wb") as file:
        file.write(png(picture(0)))
    with pytest.raises(ConfigError, match=r"chosen/dog: the name 'caf\\xe9\.png' is not UTF-8; rename it"):
        list_images(str(chosen))


def latin_1(path: Path, inner: bool) -> Path:
    """A tar whose names are in Latin-1: of images, or of tars in it."""
    (content := path.with_suffix(".content")).mkdir()
    with tarfile.open(path, "w", encoding="latin-1", format=tarfile.GNU_FORMAT) as archive:
        for name in ("r/cat/caf\xe9.png", "r/dog/1.png") if not inner else ("caf\xe9.tar",):
            add(archive, name, tar_of_one(content) if inner else png(picture(0)))
    return path


def tar_of_one(folder: Path) -> bytes:
    with tarfile.open(folder / "n01.tar", "w") as archive:
        add(archive, "cat/0.png", png(picture(0)))
        add(archive, "dog/1.png", png(picture(1)))
    return (folder / "n01.tar").read_bytes()


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("inner", [True, False])
def test_a_name_in_a_tar_that_is_not_utf_8_is_said_with_the_tar(tmp_path: Path, inner: bool, labelled: bool):
    """It ended after Ray had started, in a line that named nothing."""
    name = r"caf\\xe9\.tar" if inner else r"r/cat/caf\\xe9\.png"
    with pytest.raises(ConfigError, match=rf"odd\.tar: the name '{name}' is not UTF-8; rename it"):
        list_images(str(latin_1(tmp_path / "odd.tar", inner)), labelled=labelled)


def test_a_class_that_is_half_a_character_is_said_with_the_file_that_names_it(tmp_path: Path):
    """JSON may hold one half of a surrogate pair."""
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for i, label in enumerate((b"smile \\ud83d", b"x")):
            add(archive, f"{i}.png", png(picture(i)))
            add(archive, f"{i}.json", b'{"label": "' + label + b'"}')
    with pytest.raises(ConfigError, match=r"0\.tar: 0\.json: the name 'smile \\ud83d' is not UTF-8"):
        list_images(str(tmp_path / "0.tar"), label_key="label")
