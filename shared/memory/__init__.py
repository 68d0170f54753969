"""Session memory: what was said before, so that any worker can continue any conversation.

What it is: `SessionMemory`, with the truth in PostgreSQL (table `messages`) and a cache in Redis under
`ctx:{session_id}` (`ctx:{tenant}:{session_id}` outside the default tenant). A message is written to the truth first,
once per (task, ordinal), then pushed to the cache by one script; a cache that is cold, lost or unreachable is rebuilt
from the truth and never fails a task. Beside it, `wt:…` says what a read of the truth must not miss: a replica that has
it may serve one.
What it never does: keep a conversation in the process, read another tenant's session, store tool traffic (that stays
in the task's journal), or promise that Redis is right for longer than its time to live. The cache may miss a message
only when a worker dies between the two writes and its task never runs again, or when Redis itself loses a write in a
failover; the time to live counts from the fill, not from the last message, so that both heal within it.
Where keys are set, truth and cache hold sealed text: what seals is handed in, and only `SessionMemory` opens.
Who may enter: agents, through `SessionMemory`; only a main builds one.
"""
