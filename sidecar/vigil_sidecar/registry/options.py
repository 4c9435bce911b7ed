"""What config.pbtxt and a model's vigil.toml say, in plain form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from vigil_sidecar.engine.contract import Contract, TensorSpec
from vigil_sidecar.engine.reshape import Reshape
from vigil_sidecar.engine.samples import WarmupSample

__all__ = ["Constant", "LadderOptions", "ModelOptions", "QueueOptions", "QueuePolicy", "RaggedOptions", "VersionPolicy"]


@dataclass(frozen=True)
class VersionPolicy:
    """Which versions stay loaded beside the serving one (as in Triton)."""

    kind: str = "latest"
    count: int = 1
    versions: tuple[int, ...] = ()

    def keeps(self, present: list[int]) -> set[int]:
        """The versions to keep of those present."""
        if self.kind == "all":
            return set(present)
        if self.kind == "specific":
            return set(self.versions) & set(present)
        return set(sorted(present)[-self.count :])


@dataclass(frozen=True)
class Constant:
    """A constant output: values in row-major order, or one that fills it. ``shape`` is None where the graph gives it."""

    values: tuple[float | int | bool | str, ...]
    fill: bool = False
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class LadderOptions:
    """What answers while the model does not. Empty fields are rungs left out; then calls are refused.

    ``boxes`` are corners as fractions of the frame, confidence and label; None leaves Detect without.
    """

    last_good_ms: int = 0
    fallback_model: str = ""
    outputs: Mapping[str, Constant] = field(default_factory=lambda: MappingProxyType({}))
    boxes: tuple[tuple[float, float, float, float, float, str], ...] | None = None


@dataclass(frozen=True)
class QueuePolicy:
    """How calls of one level wait (Triton's ``ModelQueuePolicy``). ``size_max`` counts calls; 0 is no limit."""

    size_max: int = 0
    timeout_us: int = 0
    delay: bool = False
    """One that waited too long waits behind the others of its level, instead of being refused."""
    override: bool = False
    """A call may ask for a shorter time by its parameter ``timeout``."""


@dataclass(frozen=True)
class QueueOptions:
    """How calls of a model wait for each other (Triton's ``dynamic_batching``). Sizes are calls."""

    delay_us: int = 0
    """A batch that is not large enough waits this long at most for more calls, from its oldest on."""
    preferred: tuple[int, ...] = ()
    """Sizes that are large enough, ascending; empty: only the largest batch is."""
    default: QueuePolicy = QueuePolicy()
    levels: int = 0
    """Levels of priority, the first goes first; 0: there is one."""
    default_level: int = 0
    policies: Mapping[int, QueuePolicy] = field(default_factory=lambda: MappingProxyType({}))
    """By level, where it is not ``default``."""
    preserve_ordering: bool = False

    @property
    def asks(self) -> bool:
        """Whether a call's parameters ``priority`` and ``timeout`` count."""
        return self.levels > 0 or any(p.override for p in (self.default, *self.policies.values()))

    def level(self, priority: int) -> int:
        """The level of a call with this priority."""
        return priority if 1 <= priority <= self.levels else self.default_level

    def policy(self, level: int) -> QueuePolicy:
        """How calls of a level wait."""
        return self.policies.get(level, self.default)

    def enough(self, largest: int) -> int:
        """From how many calls on a batch waits no longer."""
        return self.preferred[0] if self.preferred else largest

    def take(self, waiting: int, largest: int) -> int:
        """How many of the calls that wait form the next batch."""
        fitting = [p for p in self.preferred if p <= min(waiting, largest)]
        return fitting[-1] if fitting else min(waiting, largest)


@dataclass(frozen=True)
class RaggedOptions:
    """How requests of different lengths share a batch (``[batching]`` of vigil.toml); axes count from 0, the batch's is 0."""

    inputs: Mapping[str, int]
    """The axis of each input that is as long as the request."""
    outputs: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    pad: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """What stands behind an input's end; 0 without."""
    mask: str = ""
    """An input [rows, length] of ones, and of zeros behind the end; callers may leave it out."""
    length_max: int = 65536
    """Rows times the longest of a batch, at most."""


@dataclass(frozen=True)
class ModelOptions:
    """Options of one model; ``max_batch_size`` is None where config.pbtxt does not decide.

    The last of them are gates: what a candidate must pass beside those that every
    model has. None leaves a gate out, or to the settings.
    """

    max_batch_size: int | None = None
    policy: VersionPolicy = VersionPolicy()
    providers: tuple[str, ...] = ("cpu",)
    intra_op_threads: int | None = None
    pipeline: str | None = None
    pipeline_options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    finite_inputs: bool = False
    finite_outputs: bool = True
    """Whether an answer with NaN or infinity is refused."""
    warmup: tuple[WarmupSample, ...] = ()
    queue: QueueOptions | None = None
    ragged: RaggedOptions | None = None
    instances: int = 1
    """How many batches of the model run at once."""
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    """By output, the names of its classes, and the file that says them (``label_filename``)."""
    label_files: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    output_min: float | None = None
    output_max: float | None = None
    allow_contract_change: bool = False
    warmup_budget_s: float | None = None
    run_ms_max: float | None = None
    ladder: LadderOptions | None = None
    batch_difference_max: float | None = None
    parameters: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    tensors: tuple[TensorSpec, ...] = ()
    """Inputs and outputs as the file says them: a shape without the batch's axis where rows are batched, an empty type for any."""

    reshapes: Mapping[str, Reshape] = field(default_factory=lambda: MappingProxyType({}))
    """By tensor, that callers see it in another shape than the graph."""

    def contradiction(self, contract: Contract) -> str:
        """What the file says otherwise than the graph; empty when they agree."""
        graph = {t.name: t for t in (*contract.inputs, *contract.outputs)}
        for t in self.tensors:
            found = graph.get(t.name)
            if found is None:
                return f"config.pbtxt: the graph has no tensor '{t.name}'; it has {', '.join(sorted(graph))}"
            shape = found.shape[1:] if self.max_batch_size else found.shape
            said = self.reshapes[t.name].shape if t.name in self.reshapes else t.shape
            loose = t.name not in self.reshapes  # else what callers may send is said by the file alone
            same = len(said) == len(shape) and all(b == -1 or a == b or (loose and a == -1) for a, b in zip(said, shape, strict=False))
            if (t.datatype and t.datatype != found.datatype) or not same:
                return f"config.pbtxt: '{t.name}' is {t.datatype} {list(said)}, the graph says {found.datatype} {list(shape)}"
        return ""
