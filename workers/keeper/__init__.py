"""The keeper: what must be done though nobody who works is there to do it.

It gives the runs of dead workers to living ones, wakes what has waited long enough, ends what has no time left, makes
the tasks of schedules, releases what a limit holds, publishes what lost its message, deletes what is old. Each decision
is a pure function with a sentence (`decisions`, `releasing`, `ticking`, `succession`); the chores carry them out.

Any number of keepers may run, one leads (`leadership`). Every change is fenced by its term, so a leader that froze and
was replaced changes nothing. It never runs an agent. Only `main` enters.
"""
