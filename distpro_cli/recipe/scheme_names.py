"""Names of the built-in processes and of what makes weights, apart from settings: no pydantic is needed for them."""

from __future__ import annotations

from typing import Literal, get_args

SCHEME_NAMES = ("plain", "uniform", "kd", "hint", "attention-transfer", "reviewkd", "reviewkd+kd", "pkd", "deit")

SearchMethod = Literal[
    "hypergradient", "random", "metabalance", "cosine", "cosine-outer", "share", "uncertainty", "loss"
]  # `search.method`

# What `distpro compare` calls the methods in the run that counts, with no search before it.
ONLINE_METHODS: dict[str, SearchMethod] = {
    "online" if method == "hypergradient" else method: method for method in get_args(SearchMethod)
}
