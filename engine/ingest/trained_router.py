"""Which trained router a method uses while a document is read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.compression.methods import Method, with_router
from engine.errors import RouterError
from engine.object_storage import Address
from engine.types import Progress

if TYPE_CHECKING:
    from engine.compression.routers.router_file import TrainedRouter
    from engine.models.reader import Reader


def routed(
    recipe: Method, requested: str, folder: Path, reader: Reader, progress: Progress
) -> tuple[Method, list[Any]]:
    """The recipe with its trained router, if there is one, and what that knows of each layer.

    A router that was not asked for is used only where it is known to find more.

    Raises:
        RouterError: the file asked for is no router, another model's, or of no use to the method.
    """
    from engine.compression.routers import router_file

    trained, remark = router_file.find(requested, folder, reader.identity)
    if remark:
        progress.note(remark)
    if trained is None or not (requested or trained.pays(recipe.router)):
        return recipe, []
    if requested:
        check_use(trained, recipe, requested)
    found = with_router(recipe, trained)
    return (recipe, []) if found == recipe else (found, trained.layers)


def check_use(trained: TrainedRouter, recipe: Method, file: str) -> None:
    """Refuse a router of which a method makes nothing."""
    if with_router(recipe, trained) == recipe:
        raise RouterError(
            f"{file} holds no router for method '{recipe.name}'; train one with `sekv train`"
        )


def learnt_before(
    target: Address, recipe: Method, shared: Any, requested: str, folder: Path, reader: Reader
) -> list[Any]:
    """What the router that a store was made with knows of each layer; empty if it had none, or
    the store keeps what it needs of it.

    Raises:
        RouterError: the router at hand is not that one.
    """
    from engine.compression.routers import router_file
    from engine.compression.stored_layers import by_layer, lacks_bases

    used = recipe.trained_by
    if not used and requested not in ("", router_file.NONE):
        raise RouterError(f"{target} is routed without training; --router cannot change that")
    acts = bool(recipe.router.weights)
    if not used or not (
        requested or acts or any(map(lacks_bases, by_layer(shared, reader.memory_layers)))
    ):
        return []
    trained, _ = router_file.find(requested, folder, reader.identity)
    if trained is None or trained.fingerprint != used:
        raise RouterError(
            f"{target} was made with the router {used[:8]}; name that file with --router"
        )
    return trained.layers
