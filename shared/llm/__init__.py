"""The LLM room: one port to ask a chat model, and the adapter for every OpenAI-compatible endpoint.

What it is: `ChatPort` (one async method, `chat`), the values that cross it (`ChatRequest`, `ChatReply`, JSON in both
directions because replies are journaled and replayed), and `OpenAIChat`, the openai SDK against any base URL.
What it never does: retry, wait for a rate limit, open a breaker, pick another endpoint or cache an answer. One call of
`chat` is at most one HTTP request; whoever guards calls stands in front of the port as another `ChatPort`.
Who may enter: rooms above it (memory, ledger, agents) through `shared.llm.port` and `shared.llm.messages`; only a main
builds an `OpenAIChat`.
"""
