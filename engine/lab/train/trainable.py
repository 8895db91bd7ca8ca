"""Which models can be trained for."""

from __future__ import annotations

from engine.errors import TrainError
from engine.models.reader import Reader


def check_trainable(reader: Reader) -> None:
    """Raises TrainError for a model with layers of other kinds than full attention: what is learnt
    belongs to every layer."""
    kinds = sorted(set(reader.identity.layer_kinds))
    if kinds:
        raise TrainError(
            f"{reader.identity.architecture} has layers of several kinds ({', '.join(kinds)}); "
            "training needs full attention in every layer"
        )
