"""Messages are one line of limited length, whatever others wrote into them."""

import errno

import pytest

from premem_jax.errors import Stopped, UserError
from premem_jax.models.hf_files import Checkpoint
from premem_jax.running import storage
from premem_jax.running.lease import opened
from premem_jax.running.workdir import LONGEST, default_workdir, fault_of_a_place


def test_a_message_is_one_line_of_limited_length():
    assert str(UserError("no file\nof that name")) == "no file of that name"
    text = str(UserError(f"column {'n' * 100_000}: use another"))
    assert len(text) < 5000 and text.startswith("column nnn") and text.endswith("nnn: use another")


def test_a_stop_is_no_error_of_what_it_ends():
    assert not issubclass(Stopped, Exception)


@pytest.mark.parametrize(
    "number, what",
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EROFS, "the disk is read-only"),
        (errno.EMFILE, "too many files are open"),
        (errno.EACCES, "a path cannot be used"),
        (errno.ENAMETOOLONG, "a path cannot be used"),
    ],
)
def test_what_no_restart_mends_is_told_from_what_one_may(number, what):
    wrapped = RuntimeError("of another library")
    wrapped.__cause__ = OSError(number, "no", "a/file")
    assert fault_of_a_place(wrapped)[0] == what
    assert fault_of_a_place(OSError(errno.EIO, "no", "a/file")) is None
    assert fault_of_a_place(PermissionError(errno.EACCES, "of a socket, which has no name")) is None


@pytest.mark.parametrize("place", ["file/x", "x" * 300, "loop"])
def test_a_path_that_cannot_be_used_is_such_a_fault_wherever_it_is_given(place, tmp_path):
    """A file on the way, a name that is too long, a loop of links."""
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises((OSError, UserError)) as error, opened(storage.path(tmp_path / place), {"seed": 0}):
        pass
    assert fault_of_a_place(error.value)[0] == "a path cannot be used"
    with pytest.raises((OSError, UserError)) as error:
        Checkpoint(tmp_path / place)
    assert isinstance(error.value, UserError) or fault_of_a_place(error.value)


def test_a_folder_has_a_name_however_long_its_options():
    short, long, other = (default_workdir(f"configs/a.py:x={'0' * n}1", {}) for n in (5, 400, 401))
    assert short.name == "a-x_000001".replace("_", "=") and len(long.name) < LONGEST and long != other
