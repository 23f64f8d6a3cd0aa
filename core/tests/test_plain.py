"""Tensors that a kernel may read by address."""

import pytest
import torch
from rnn_backends import InputError
from rnn_backends.plain import check_memory


@pytest.mark.parametrize(
    "empty",
    [
        torch.empty(0, 4, 3),
        torch.empty(1, 0, 3).expand(3, 0, 3),
        torch.empty(4, 0, 3)[1:],
        torch.empty(0, 4, 6)[..., ::2],
        torch.empty(5)[5:],
    ],
)
def test_a_tensor_without_elements_is_read_nowhere(empty):
    check_memory([("x", empty), ("bias", None)])


def test_freed_memory_is_an_error_with_the_tensors_name():
    x = torch.empty(4, 3)
    x.untyped_storage().resize_(0)
    with pytest.raises(InputError, match="x spans 12 elements"):
        check_memory([("x", x)])
