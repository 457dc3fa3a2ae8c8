"""What models cost: prices as data, and the cost of one call in whole millionths of a US dollar.

Prices are in micro-USD per million tokens: 2_500_000 is 2.50 USD for a million. The table holds list prices as they
were last known; users replace and add prices in `[price."provider:model"]`. Whatever a provider says that a call cost
goes before this table. Pure data and integer arithmetic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta, Struct

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swarmd.core.turns import Usage

TOKENS: Final = 1_000_000
Micro = Annotated[int, Meta(ge=0)]


class Price(Struct, frozen=True, forbid_unknown_fields=True):
    """Micro-USD per million tokens."""

    input: Micro
    output: Micro


#: Changes with each change of a price below, so that a bill can be traced to the table it was made with.
TABLE_VERSION: Final = "2026-11"
PRICES: Final[dict[str, Price]] = {
    "offline:extractive": Price(0, 0),
    "openai:gpt-4o": Price(2_500_000, 10_000_000),
    "openai:gpt-4o-mini": Price(150_000, 600_000),
    "openai:gpt-4.1": Price(2_000_000, 8_000_000),
    "openai:gpt-4.1-mini": Price(400_000, 1_600_000),
    "openai:gpt-4.1-nano": Price(100_000, 400_000),
    "openai:o3": Price(2_000_000, 8_000_000),
    "openai:o4-mini": Price(1_100_000, 4_400_000),
    "openai:gpt-5": Price(1_250_000, 10_000_000),
    "openai:gpt-5-mini": Price(250_000, 2_000_000),
    "openai:gpt-5-nano": Price(50_000, 400_000),
    "openai:text-embedding-3-small": Price(20_000, 0),
    "openai:text-embedding-3-large": Price(130_000, 0),
    "openai:text-embedding-ada-002": Price(100_000, 0),
}
#: Providers that run on one's own machine: an unlisted model of theirs costs nothing, and that is known.
FREE_PROVIDERS: Final = frozenset({"offline", "ollama", "llamacpp"})


def price_of(model: str, overrides: Mapping[str, Price] | None = None) -> Price | None:
    """The price of `provider:model`, None if it is not known.

    Providers answer with dated names ("gpt-4o-2024-08-06"): without an entry of its own, such a name has the price of
    the longest listed name that it continues with a dash and a digit.
    """
    table = {**PRICES, **(overrides or {})}
    if model in table:
        return table[model]
    dated = [name for name in table if model.startswith(f"{name}-") and model[len(name) + 1 :][:1].isdigit()]
    if dated:
        return table[max(dated, key=len)]
    return Price(0, 0) if model.partition(":")[0] in FREE_PROVIDERS else None


def cost_of(model: str, usage: Usage, overrides: Mapping[str, Price] | None = None) -> int:
    """Micro-USD that this usage of `provider:model` cost, rounded up; 0 when the price is not known.

    Whether it was known says `usage.cost_microusd` after `priced`, or `price_of(model)` being None.
    """
    if usage.cost_microusd is not None:
        return usage.cost_microusd
    return worth(price_of(model, overrides), usage.input_tokens, usage.output_tokens)


def worth(price: Price | None, input_tokens: int, output_tokens: int) -> int:
    """Micro-USD of so many tokens, rounded up; also what a call may cost at most, before it is made."""
    if price is None:
        return 0
    return -(-(price.input * input_tokens + price.output * output_tokens) // TOKENS)


def priced(model: str, asked: str, usage: Usage, overrides: Mapping[str, Price] | None = None) -> bool:
    """Write the cost into `usage`, by the name that answered, else by the one that was asked; whether it is known."""
    if usage.cost_microusd is None:
        price = price_of(model, overrides) or price_of(asked, overrides)
        if price is not None:
            usage.cost_microusd = worth(price, usage.input_tokens, usage.output_tokens)
    return usage.cost_microusd is not None
