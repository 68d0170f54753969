"""What a call costs: tokens times price, in the currency of the configuration."""

from shared.llm.config import Price
from shared.llm.messages import ChatRequest, Message

ASCII_CHARACTERS_PER_TOKEN = 4
MESSAGE_TOKENS = 4
"""What roles and separators add to each message."""


def cost(price: Price | None, *, input_tokens: int, output_tokens: int) -> float:
    """Money for these tokens; 0.0 for a model without a price (a budget in money cannot cover it)."""
    if price is None:
        return 0.0
    return (input_tokens * price.input_per_million + output_tokens * price.output_per_million) / 1_000_000


def prompt_tokens(request: ChatRequest) -> int:
    """A careful count before anybody counted: four ASCII characters a token, one of any other kind.

    English is about that; Chinese takes 0.6 to 1.0 tokens a character, so the estimate is on the safe side.
    """
    tools = sum(text_tokens(f"{tool.name} {tool.description} {dict(tool.parameters)}") for tool in request.tools)
    return tools + sum(MESSAGE_TOKENS + _message_tokens(message) for message in request.messages)


def _message_tokens(message: Message) -> int:
    return text_tokens(message.content) + sum(text_tokens(call.name + call.arguments) for call in message.tool_calls)


def text_tokens(text: str) -> int:
    """The same for a text."""
    if text.isascii():
        return -(-len(text) // ASCII_CHARACTERS_PER_TOKEN)
    plain = sum(character < "\x80" for character in text)
    return -(-plain // ASCII_CHARACTERS_PER_TOKEN) + len(text) - plain
