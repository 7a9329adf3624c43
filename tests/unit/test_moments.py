"""Points in time as people write them."""

from __future__ import annotations

import pytest

from examsend.config import moments
from examsend.errors import UsageError


@pytest.mark.parametrize(
    "text", ["9999-12-31", "0001-01-01T00:00+23:59", "nan", "99999999999d", "", "yesterday", "1e9"]
)
def test_what_is_no_time_or_out_of_range(text: str) -> None:
    with pytest.raises(UsageError, match="--until"):
        moments.option("--until", text, is_end=True)
