"""Results as JSON that stays small and can be compared line by line: a record a line."""

import json
from typing import Any

DIGITS = 5  # significant, which is beyond what any of these measurements can tell


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value


def dumps(records: list[Any]) -> str:
    """A list of records, or of lists of them."""

    def lines(value: Any) -> str:
        if isinstance(value, list) and value and isinstance(value[0], list | dict):
            return "[\n" + ",\n".join(map(lines, value)) + "\n]"
        return json.dumps(_rounded(value))

    return lines(records) + "\n"
