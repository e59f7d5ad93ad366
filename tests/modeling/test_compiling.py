"""Regional compilation."""

from __future__ import annotations

import pytest
import torch

from sft.common.errors import ConfigError
from sft.modeling.compiling import compile_layers
from tests.support import messages


def test_compile_layers_refuses_a_model_without_layers():
    with pytest.raises(ConfigError, match=messages.NO_REPEATED_LAYERS):
        compile_layers(torch.nn.Linear(2, 2), has_fixed_shape=True, backend="eager")
