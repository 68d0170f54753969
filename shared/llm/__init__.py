"""The LLM room: one port to ask a chat model, the adapters behind it, and the guards in front of it.

What it is: `ChatPort` (one async method, `chat`) and the values that cross it, JSON in both directions because replies
are journaled and replayed. Adapters stand behind the port: one call is at most one HTTP request, strictly read, never
repeated. `GuardedChat` stands in front, for one run: deadline, ladder over a chain of models, retry, admission,
breaker; what is left when no model is up is a kept answer or static words. Every answer says at which level it is.
What it never does: keep state of its own about who is down (that is `shared.resilience`), keep answers of turns in
which a tool took part, or read the environment.
Who may enter: rooms above it (memory, ledger, agents) through `shared.llm.port`, `messages`, `guarded` and
`call_context`; only a main opens a plane or an adapter.
"""
