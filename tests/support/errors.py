"""Errors that the user can correct."""

from collections.abc import Callable
from typing import Any

import pytest

from transformer.config import UserError


def refused(function: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """Calls a function that must raise a `UserError`, and returns the message."""
    with pytest.raises(UserError) as error:
        function(*arguments, **options)
    return str(error.value)
