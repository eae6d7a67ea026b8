"""Files of tensors."""

import errno
import stat

import pytest
import torch
from safetensors.torch import load_file

from supersam.runtime.tensors import save_tensors


@pytest.mark.parametrize(("folder_mode", "mode"), [(0o755, 0o644), (0o770, 0o660), (0o700, 0o600)])
def test_who_may_read_the_folder_may_read_the_tensors(tmp_path, folder_mode, mode):
    tmp_path.chmod(folder_mode)
    path = tmp_path / "a.safetensors"
    tensor = torch.arange(6.0).view(2, 3).T.requires_grad_()
    save_tensors({"a": tensor}, path)
    assert torch.equal(load_file(path)["a"], tensor.detach())
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_folder_that_is_gone_is_a_fault_of_the_system(tmp_path):
    path = tmp_path / "gone" / "a.safetensors"
    with pytest.raises(OSError, match="No such file or directory") as raised:
        save_tensors({"a": torch.zeros(3)}, path)
    assert (raised.value.errno, raised.value.filename) == (errno.ENOENT, str(path))
