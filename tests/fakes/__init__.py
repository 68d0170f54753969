"""Stand-ins that pass the same contract tests as what they stand in for.

They keep everything in memory, never sleep and never open a socket, except `chat_server`, which is the far side of a
real socket. Tests may enter; nothing that ships does.
"""
