"""Models by name, opened at first use, each behind the gate of its provider.

Job: join what a provider's table says (endpoint, limits, prices) to one adapter per model and one gate per provider.
Must not know workers or connections; whoever has one hands in the shared ledger of rates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarmd.adapters.model_gate import Gate, GatedModel
from swarmd.adapters.models import ModelSettings, open_model
from swarmd.adapters.openai_model import OpenAIModel
from swarmd.adapters.system import SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmd.ports import Clock, Meter, Model, RateLedger


class OpenModels:
    """Models by name, kept until `close`."""

    def __init__(self, settings: Callable[[str], ModelSettings], clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._open: dict[str, Model] = {}
        self._gates: dict[str, Gate] = {}
        self._shared: tuple[RateLedger, Meter] | None = None

    def __call__(self, name: str) -> Model:
        """Raises `Rejected` when there is no such model or it cannot be reached by these settings."""
        if name not in self._open:
            settings = self._settings(name)
            model = open_model(settings)
            self._open[name] = self._gated(model, settings) if isinstance(model, OpenAIModel) else model
        return self._open[name]

    def share(self, ledger: RateLedger, meter: Meter) -> None:
        """From now on rates are those of the whole swarm, and what is measured goes to `meter`."""
        self._shared = (ledger, meter)
        for gate in self._gates.values():
            gate.share(ledger, meter)

    async def close(self) -> None:
        while self._open:
            _, model = self._open.popitem()
            await model.close()

    def _gated(self, model: Model, settings: ModelSettings) -> GatedModel:
        provider = settings.provider
        gate = self._gates.get(provider)
        if gate is None:
            gate = self._gates[provider] = Gate(provider, self._clock, settings.rate, settings.concurrency_max)
            if self._shared is not None:
                gate.share(*self._shared)
        return GatedModel(model, gate, settings.prices, lambda: self._shared[1] if self._shared else None)
