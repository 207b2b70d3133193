"""Whether weights were trained on the same classes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence


def other_names(facts: Mapping[str, str], names: Sequence[str] | None) -> str | None:
    """Says that weights were trained on other classes; None if not, or where one side does not name them.

    Args:
        facts: Of the weights, each as JSON; `class_names` among them.
        names: Of the data at hand.
    """
    theirs = facts.get("class_names")
    own = None if names is None else json.dumps(list(names))
    if own is None or theirs is None or theirs == own:
        return None
    return f"they were trained on other classes, or in another order: {theirs[:60]} for {own[:60]}"
