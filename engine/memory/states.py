"""The states of a store's windows: what layers without full attention keep at the end of each."""

from __future__ import annotations

from torch import Tensor

from engine.attention.layer_states import States, by_number, cache_layers, kept_rows, moved, nbytes
from engine.attention.memory_cache import OtherLayers
from engine.errors import StoreDamagedError
from engine.models.reader import Reader
from engine.store.manifest import states_file
from engine.store.reader import Store
from engine.store.schema import is_finite


class WindowStates:
    """The states of the windows of an open store, on the model's devices.

    A question is asked behind one window, whose states are read then; those of the window before
    are let go of.
    """

    def __init__(self, store: Store, reader: Reader):
        self._store, self._reader = store, reader
        self._held: tuple[int, States] = (-1, {})

    @property
    def nbytes(self) -> int:
        """Bytes of one window's, as they are held."""
        return nbytes(self._held[1])

    @property
    def last(self) -> int:
        """The last window that is read."""
        return self._store.manifest.read[-1]

    def length(self, window: int) -> int:
        """Positions that the prefix and a window take."""
        entry = self._store.manifest.windows[window]
        return len(self._reader.prompt.prefix) + entry.end - entry.start

    def behind(self, window: int) -> States:
        """The states at the end of a window.

        Raises:
            StoreError: they are missing, damaged, or not of this model.
        """
        if self._held[0] != window:
            states = by_number(self._store.states(window))
            self._check(window, states)
            self._held = window, moved(states, self._reader.devices)
        return self._held[1]

    def others(self, states: States) -> OtherLayers:
        """How the layers without full attention go on from states of theirs."""
        return OtherLayers(self._reader.model.config, states)

    def _check(self, window: int, states: States) -> None:
        """Raises StoreError where a tensor is not as the model's own code makes it."""
        place = f"{self._store.path}: {states_file(window)}"
        layers = cache_layers(self._reader.model.config)
        seen = self.length(window)
        for number, example in self._reader.example_states.items():
            found = states.get(number, {})
            odd = sorted(found.keys() ^ example.keys())
            for name, wanted in example.items():
                rows = kept_rows(layers[number], seen)
                if name not in odd and not _is_like(found[name], wanted, name, rows):
                    odd.append(name)
            if odd:
                raise StoreDamagedError(
                    f"{place}: the state of layer {number} is not this model's (at {odd[0][:40]!r})"
                )


def _is_like(found: Tensor, wanted: Tensor, name: str, rows: int) -> bool:
    """Whether a stored tensor has the dtype and shape that it must have, and only numbers."""
    shape = list(wanted.shape)
    if name in ("keys", "values"):
        shape[1] = rows
    right = found.dtype == wanted.dtype and list(found.shape) == shape
    return right and is_finite({name: found})
