"""One suite for the fake and the real: a class per port, subclassed wherever an implementation can run.

The suites never know which implementation they hold. Fakes and loopback servers run here; suites over real servers
are subclassed in `tests/integration`.
"""
