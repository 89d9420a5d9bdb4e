from pathlib import Path

import pytest

from corrmatch_hf.data.sources.lists import Pair, read_list
from corrmatch_hf.errors import InputError

from .pictures_on_disk import write_mask, write_photo


def read(tmp_path: Path, text: str, **kwargs) -> list[Pair]:
    (tmp_path / "list.txt").write_text(text)
    return read_list(tmp_path / "list.txt", tmp_path, kwargs.pop("known", {}), "--labeled_list", **kwargs)


@pytest.fixture
def pair(tmp_path) -> Pair:
    """Names with spaces."""
    image = write_photo(tmp_path / "my photos" / "a 1.png")
    return Pair(str(image), str(write_mask(tmp_path / "my masks" / "a 1.png", [0, 1])))


@pytest.mark.parametrize("gap", [" ", "\t", "   "])
def test_names_with_spaces(tmp_path, pair, gap):
    assert read(tmp_path, f"my photos/a 1.png{gap}my masks/a 1.png\n") == [pair]
    assert read(tmp_path, f"my photos/a 1.png{gap}my masks/gone.png\n", masks=False) == [Pair(pair.image)]


def test_a_bare_name(tmp_path, pair):
    assert read(tmp_path, "a 1\n", known={"a 1": pair}) == [pair]
    assert read(tmp_path, "my photos/a 1.png\n", known={"a 1": pair}) == [pair]
    with pytest.raises(InputError, match=r"line 1 .*no mask is given for my photos/a 1.png"):
        read(tmp_path, "my photos/a 1.png\n")
    other = write_photo(tmp_path / "others" / "a 1.png")
    with pytest.raises(InputError, match=r"no mask is given for others/a 1.png"):
        read(tmp_path, f"others/{other.name}\n", known={"a 1": pair})


def test_a_line_with_two_readings(tmp_path):
    for name in ("a", "a b", "b c", "c"):
        write_photo(tmp_path / f"{name}.png").rename(tmp_path / name)
    with pytest.raises(InputError, match=r"line 1 .*'a b c' can be read as 2 pairs of files: separate"):
        read(tmp_path, "a b c\n")
    assert read(tmp_path, "a b\tc\n") == [Pair(str(tmp_path / "a b"), str(tmp_path / "c"))]


def test_missing_entries_are_named_with_list_line_and_path(tmp_path, pair):
    good = "my photos/a 1.png\tmy masks/a 1.png\n"
    with pytest.raises(
        InputError, match=r"list.txt, line 3 \(--labeled_list\): .*my masks/b.png does not exist\."
    ):
        read(tmp_path, good + "\nmy photos/a 1.png\tmy masks/b.png\n")
    with pytest.raises(InputError, match=r"line 2 .*my photos/b.png does not exist\."):
        read(tmp_path, good + "my photos/b.png\tmy masks/a 1.png\n")
    with pytest.raises(
        InputError, match=r"nowhere/b.png does not exist, nor does its folder .*/nowhere: check --data_"
    ):
        read(tmp_path, "nowhere/b.png\n", masks=False)
    with pytest.raises(InputError, match=r"is empty"):
        read(tmp_path, "\n \n")
