"""`fleet demo`: a private fleet, a question, an answer, and a worker killed in the middle of a task."""

import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.errors import FleetError, Misconfigured
from workers.ops.background import BackgroundSupervisor, running
from workers.ops.commands import AsJson
from workers.ops.demo_screen import DemoScreen, StepTale
from workers.ops.door import USUAL_FOLDER, Door
from workers.ops.inspection import supervisor_of
from workers.ops.recipes import processes
from workers.ops.run_dir import RunDir
from workers.ops.screen import print_json
from workers.ops.spec import ServerFailed
from workers.ops.supervisor import sweep_leftovers
from workers.ops.surroundings import ROOT
from workers.ops.task_screen import summary
from workers.ops.topology import Wish

if TYPE_CHECKING:  # see workers.ops.door
    from shared.client import FleetClient
    from shared.ledger.rows import StepView, TaskView

QUESTION = "What is the fleet's one promise?"
"""Its answer is in the built-in corpus."""
FOLDER = USUAL_FOLDER / "demo"
"""Not a choice: it is removed, before and after."""
ANSWER_TOKENS = 60
STEPS_BEFORE_KILL = 2
WAIT_S = 120.0
"""Seconds for one task of the demo, on a machine that is slow and busy."""
POLL_S = 0.05
ENVIRONMENT = {
    "FLEET_AGENTS": "workers.agents.demo",
    "FLEET_LEDGER_HEARTBEAT_S": "1",
    "FLEET_LEDGER_DEAD_AFTER_S": "3",
    "FLEET_WORKER_DRAIN_S": "1",
}
"""For the demo's processes only: a quick takeover, and no long goodbye."""
FIRST, SECOND = "worker-1", "worker-2"
IN_DOUBT = "in doubt"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class DemoFailed(FleetError):
    """The demo did not show what it promises."""

    code = "demo_failed"


def demo(
    context: typer.Context,
    question: Annotated[str, typer.Option(help="What to ask; the built-in corpus is about the fleet.")] = QUESTION,
    as_json: AsJson = False,
) -> None:
    """Start a private fleet, ask it a question, kill a worker in the middle of a task, and stop everything."""
    door: Door = context.obj
    door.check_all()
    if not question.strip():
        raise Misconfigured("--question is empty; write for example --question 'How do I scale out?'.")
    screen = DemoScreen(quiet=as_json)
    began = time.monotonic()
    try:
        with _one_interruption() as interruption, _emptied(FOLDER):
            story = _play(question, door=door, screen=screen, interruption=interruption)
    except KeyboardInterrupt:
        typer.echo("Interrupted: everything that had been started is stopped.", err=True)
        raise typer.Exit(130) from None
    story["seconds"] = round(time.monotonic() - began, 1)
    screen.heading(f"Everything is stopped and removed; {story['seconds']} s in all.")
    screen.aside('next: `fleet up`, then `fleet submit chat message="Hello" --wait`, then `fleet tasks`')
    if as_json:
        print_json(story)
    if story["crash"]["repeated_completed_steps"] != 0:
        raise DemoFailed("A completed step was executed again: this must never happen, please report it.")


def _play(question: str, *, door: Door, screen: DemoScreen, interruption: "Interruption") -> dict[str, Any]:
    """Start, ask, kill, stop. Raises: FleetError, KeyboardInterrupt."""
    stack = ExitStack()
    try:
        screen.heading("A private fleet on this machine")
        servers, client = _start(stack, door=door, screen=screen, interruption=interruption)
        interruption.check()
        answered = _ask(question, client=client, screen=screen)
        interruption.check()
        crash = _crash(servers, client=client, screen=screen)
        interruption.check()
        return {"question": question, **answered, "crash": crash}
    finally:
        _ignore_signals()
        with screen.doing("Stopping", done=""):
            stack.close()


def _start(
    stack: ExitStack, *, door: Door, screen: DemoScreen, interruption: "Interruption"
) -> tuple[BackgroundSupervisor, "FleetClient"]:
    inherited = _inherited(door.environment)
    models = inherited.get("FLEET_LLM_CONFIG") or inherited.get("FLEET_LLM_BASE_URL")
    has_model = models is None
    wish = Wish(profile="embedded", model=has_model, workers=1, flower=False)
    with screen.doing("Starting", done=f"PostgreSQL and a replica, Valkey, Milvus Lite, keeper, {FIRST}"):
        servers = stack.enter_context(
            running(wish, folder=FOLDER, inherited=inherited, project=ROOT, on_event=screen.on_event)
        )
        client = stack.enter_context(door.client_at(servers.env))
    interruption.check()
    with screen.doing("Reading the built-in corpus", done="built-in corpus, embedded"):
        client.submit("demo.corpus", deadline_s=WAIT_S).result(WAIT_S)
    if has_model:
        screen.aside("the model is SmolLM2 with 135 M parameters, a toy; set FLEET_LLM_BASE_URL for a real one")
    else:
        screen.aside(f"models: {models}")
    return servers, client


def _ask(question: str, *, client: "FleetClient", screen: DemoScreen) -> dict[str, Any]:
    """A question to the chat agent."""
    screen.heading("A question")
    with screen.doing("Asking the chat agent", done=""):
        task = client.submit("chat", {"message": question, "max_tokens": ANSWER_TOKENS})
        output = task.result(WAIT_S)
    if output["level"] == "L4":
        raise DemoFailed(f"No model answered: {'; '.join(output['reasons'])}.")
    view = task.status()
    screen.dialogue(question, output["answer"])
    screen.aside(f"agent {summary(view)}")
    screen.aside(f"task {view.id}")
    if output["sources"]:
        screen.aside(f"from {', '.join(output['sources'])}")
    return {"answer": output["answer"], "chat": _facts(view) | {"sources": output["sources"]}}


def _crash(servers: BackgroundSupervisor, *, client: "FleetClient", screen: DemoScreen) -> dict[str, Any]:
    """A task of five steps, whose worker is killed after two."""
    screen.heading("A crash")
    with screen.doing(
        "Running a task of 5 steps", done=f"a task of 5 steps runs on {FIRST}; {STEPS_BEFORE_KILL} are done"
    ):
        task = client.submit("demo.report", {"topic": "a worker that came back"}, max_attempts=10)
        _until(lambda: _done_steps(task.status()) >= STEPS_BEFORE_KILL, what="the first steps to be done")
    servers.suspend(FIRST)
    servers.kill(FIRST)
    killed = time.monotonic()
    before = task.status()
    screen.alarm(f"{FIRST} killed with SIGKILL, and kept down")
    with screen.doing(f"Starting {SECOND}", done=f"{SECOND} started; the keeper gives it the task"):
        needs = servers.topology.needs_of_processes()
        servers.add(processes.worker(servers.around, 2, env=servers.env, needs=needs))
    with screen.doing(f"Finishing on {SECOND}", done=f"finished on {SECOND}"):
        task.result(WAIT_S)
    takeover_s = round(time.monotonic() - killed, 1)
    view = task.status()
    tales = told(before, view)
    screen.steps(tales, first=FIRST, second=SECOND)
    _judge(view, tales=tales, takeover_s=takeover_s, screen=screen)
    return _facts(view) | {
        "killed": FIRST,
        "finished_by": SECOND,
        "seconds_after_kill": takeover_s,
        "steps": [asdict(tale) for tale in tales],
        "steps_done_before_kill": _done_steps(before),
        "steps_read_back": (view.report or {})["steps_replayed"],
        "steps_in_doubt": [tale.name for tale in tales if tale.before == IN_DOUBT],
        "repeated_completed_steps": view.repeated_steps,
    }


def _judge(view: "TaskView", *, tales: list[StepTale], takeover_s: float, screen: DemoScreen) -> None:
    report = view.report or {}
    screen.gap()
    screen.verdict(f"Repeated completed steps: {view.repeated_steps}", good=view.repeated_steps == 0)
    screen.aside(
        f"attempt {view.attempt}: {report['steps_replayed']} steps read back, {report['steps_executed']} executed, "
        f"finished {takeover_s} s after the kill"
    )
    screen.aside(f"task {view.id}")
    for tale in tales:
        if tale.before == IN_DOUBT:
            screen.aside(f"{tale.name} was under way at the kill: whether it had happened, nobody can know")
    screen.aside("here a worker is dead after 3 s without a heartbeat; by default after 15 s")


def told(before: "TaskView", after: "TaskView") -> list[StepTale]:
    """What happened to each step of a task whose worker was killed, by the ledger's two accounts."""
    seen = {(step.name, step.ordinal): step.state for step in before.steps}
    return [_tale(step, seen.get((step.name, step.ordinal))) for step in after.steps]


def _tale(step: "StepView", before: str | None) -> StepTale:
    was = {"done": "done", "intent": IN_DOUBT}.get(before or "", before or "")
    if step.repeats:
        now = f"run again although it was done, {step.repeats}x"
    elif was == "done":
        now = "read back from the journal"
    else:
        now = f"run again ({step.executions} executions)" if step.executions > 1 else "run"
    return StepTale(name=step.name, before=was, after=now, executions=step.executions, repeats=step.repeats)


def _facts(view: "TaskView") -> dict[str, Any]:
    report = view.report or {}
    length_s = (view.finished_at - view.created_at).total_seconds() if view.finished_at else None
    facts = {"task_id": str(view.id), "state": view.state, "attempt": view.attempt, "seconds": length_s}
    return {**facts, **report}


def _done_steps(view: "TaskView") -> int:
    return sum(step.state == "done" for step in view.steps)


def _until(is_true: Callable[[], bool], *, what: str) -> None:
    """Poll. Raises: DemoFailed."""
    end = time.monotonic() + WAIT_S
    while not is_true():
        if time.monotonic() > end:
            raise DemoFailed(f"Waited {WAIT_S:g} s for {what}, in vain.")
        time.sleep(POLL_S)


def _inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment without the settings of another fleet; a model endpoint of the caller's is kept."""
    kept = {
        name: value
        for name, value in environment.items()
        if not name.startswith("FLEET_") or name.startswith("FLEET_LLM_")
    }
    if kept.get("FLEET_LLM_CONFIG"):
        kept["FLEET_LLM_CONFIG"] = str(Path(kept["FLEET_LLM_CONFIG"]).absolute())  # the demo's workers are elsewhere
    return kept | ENVIRONMENT


@contextmanager
def _emptied(folder: Path) -> Iterator[None]:
    """An empty folder before, none after; when a server failed its log stays, beside the folder.

    Raises: Misconfigured when another demo runs there.
    """
    run = RunDir(folder)
    if supervisor_of(run) is not None:
        raise Misconfigured(f"A demo already runs in {run.base}: wait for its end.")
    sweep_leftovers(run)
    _remove(run.base)
    _make(run.base.parent)
    try:
        yield
    except ServerFailed as error:
        raise _with_kept_log(error, folder=run.base) from None
    finally:
        _remove(run.base)
        with suppress(OSError):  # what else is there stays
            run.base.parent.rmdir()


def _make(folder: Path) -> None:
    try:
        if not folder.exists():
            folder.mkdir()
            folder.chmod(0o755)  # servers run as another user and must pass, whatever the umask says
    except OSError as error:
        raise Misconfigured(
            f"The folder {folder} cannot be made ({error.strerror}); run `fleet demo` in a folder of your own."
        ) from None


def _with_kept_log(error: ServerFailed, *, folder: Path) -> ServerFailed:
    """The same error, naming a copy of the log that outlives the folder."""
    log = Path(str(error.context.get("log", "")))
    if not log.is_file():
        return error
    kept = folder.parent / f"demo-{log.name}"
    shutil.copyfile(log, kept)
    return ServerFailed(error.message.replace(str(log), str(kept)), **{**error.context, "log": str(kept)})


def _remove(folder: Path) -> None:
    """Servers that were killed may still be writing when the first try begins."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


@dataclass(slots=True)
class Interruption:
    """Whether somebody asked for the end.

    Python drops an exception that a signal's handler raises inside a weak reference's callback - the import system is
    full of them - so the wish is also remembered, and looked at between two acts.
    """

    asked: bool = False

    def check(self) -> None:
        """Raises: KeyboardInterrupt when it was asked for, and not heard."""
        if self.asked:
            raise KeyboardInterrupt


@contextmanager
def _one_interruption() -> Iterator[Interruption]:
    """The first Ctrl-C, SIGTERM or SIGHUP stops everything; further ones must not interrupt the stopping."""
    interruption = Interruption()

    def interrupt(_signum: int, _frame: FrameType | None) -> None:
        _ignore_signals()
        interruption.asked = True
        sys.unraisablehook = _unheard
        raise KeyboardInterrupt

    previous = {signum: signal.signal(signum, interrupt) for signum in SIGNALS}
    try:
        yield interruption
    except KeyboardInterrupt:
        raise  # deaf until the process ends
    except BaseException:
        _restore(previous)
        raise
    _restore(previous)


def _unheard(lost: "sys.UnraisableHookArgs") -> None:
    """A dropped KeyboardInterrupt is remembered: no need to print it."""
    if lost.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(lost)


def _restore(handlers: Mapping[signal.Signals, Any]) -> None:
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


def _ignore_signals() -> None:
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
