"""A file that stands in another's place is told in the same words wherever it lies."""

import bz2
import gzip
import io
import lzma
import tarfile

import pytest

from supersam.config import UserError
from supersam.data.hdf5 import DamagedShardError, read_layout
from supersam.data.images import BadImageError, open_image
from supersam.data.sources.annotated import SourceError
from supersam.data.sources.tiff_pages import TiffPages
from supersam.model.checkpoint_file import read_checkpoint
from supersam.runtime.foreign import HEAD_BYTES, foreign_content


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    return file.getvalue()


STAND_INS = (
    (b"", "empty"),
    (bytes(4096), "filled with zeros"),
    (gzip.compress(b"it", mtime=0), "compressed by gzip"),
    (bz2.compress(b"it"), "compressed by bzip2"),
    (lzma.compress(b"it"), "compressed by xz"),
    (tar(), "a TAR archive"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:a\n", "a Git LFS pointer"),
    (b"/annex/objects/SHA256E-s3--abc.pth\n", "a git-annex pointer"),
    (b"\n<!DOCTYPE html><html>403</html>", "a web page"),
    (b"\xef\xbb\xbf<?xml version='1.0'?><Error/>", "a web page"),
    (b'{"message": "rate limit"}', "JSON, such as an index"),
    ("Zugriff verweigert: \u00fc\n".encode() * 99, "a text"),
)


@pytest.mark.parametrize(("content", "told"), STAND_INS)
def test_weights_images_stacks_and_shards_tell_a_stand_in_alike(content, told, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(content)
    words = foreign_content(content)
    assert words is not None
    assert words.startswith(told)
    for fault, read in (
        (UserError, lambda: read_checkpoint(path)),
        (SourceError, lambda: TiffPages(path)),
        (DamagedShardError, lambda: read_layout(path)),
        (BadImageError, lambda: open_image(content)),
    ):
        with pytest.raises(fault) as raised:
            read()
        assert str(raised.value).endswith(f"is {words}")


@pytest.mark.parametrize(
    "head",
    [
        b"\x89HDF\r\n\x1a\n",
        b"\xff\xd8\xff\xe0\0\x10JFIF",
        b"\xff\xd8\xff",
        b"II*\0\x08\0\0\0",
        b"\x80\x02}q\0",
        b"\x40\0\0\0\0\0\0\0{",
    ],
)
def test_the_files_that_are_meant_are_not_foreign(head):
    assert foreign_content(head) is None
    assert foreign_content(head + bytes(2 * HEAD_BYTES)) is None


def test_a_text_whose_letter_is_cut_at_the_end_of_the_head_is_a_text():
    whole = b"a" + "\u00fc".encode() * HEAD_BYTES
    assert foreign_content(whole) == foreign_content(b"a text")
