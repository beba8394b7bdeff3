"""LoadBalancer: a proxy and targets that fail when they are told to, inside of a test.

__init__        a FaultyServer for each target, commands, the proxy: all answer when it is made
kill … reset    what happens to a target
wait_evicted    what the proxy makes of it
close           all ends
"""

import contextlib
import dataclasses
import math
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, Self

from pyproxy.app import Proxy
from pyproxy.balancing import policies
from pyproxy.balancing.target import State, Target
from pyproxy.errors import PyproxyError
from pyproxy.health.checks import check_as
from pyproxy.lab.applications import WSGI, Forward, application_of
from pyproxy.lab.command import Command
from pyproxy.lab.faulty import FaultyServer
from pyproxy.readers import Json, parts
from pyproxy.scaling.processes import ProcessLauncher
from pyproxy.scaling_settings import Scaling, read_command
from pyproxy.sections import read_target
from pyproxy.settings import Settings, parse

_SLEEPING = 0.1  # seconds between probes, unless the test says otherwise
_PATIENCE = 10.0  # seconds for what a test waits for
_DRAIN = 1.0  # seconds for answers that are under way at the end

Recovery = Literal["automatic", "manual"]


class LoadBalancerError(PyproxyError):
    """A verb that can't be done as things are."""


class _Member:
    """A target: its server, and the command behind that if it is one."""

    def __init__(self, at: int, served: Any, seed: str | None) -> None:
        """Raises ``TypeError`` or ``ValueError``."""
        self.options: dict[str, Json] = {}
        if isinstance(served, Mapping):
            self.options = {key: value for key, value in served.items() if key != "target"}
            if "target" not in served or "url" in served:
                raise ValueError('expected {"target": …, and what settings say, like "weight": 2}')
            served = served["target"]
        self.words: tuple[str, ...] = ()
        self.forward: Forward | None = None
        self.command: Command | None = None
        if isinstance(served, list | tuple):
            self.words = read_command([*served])
            if not any("{port}" in word for word in self.words):
                raise ValueError('the command names its port nowhere: put "{port}" in it')
            self.forward = Forward()
        elif isinstance(served, str | int):
            said = read_target(served)
            if said.dns:
                raise ValueError("a dns:// name stands for many targets: name one http:// URL")
            self.forward = Forward(said.scheme, *said.place)
        elif not callable(served):
            raise TypeError(
                "expected a WSGI application, a function (request) -> answer, a URL, or a command "
                f"as a list, got {served!r}"
            )
        self.at = at
        self.application: WSGI = self.forward or application_of(served)
        self.server = FaultyServer(self.application, seed)
        # Protects its life: kill and restart, one at a time.
        self.lock = threading.RLock()

    @property
    def said(self) -> Json:
        """As the proxy's settings say it."""
        return {"url": self.server.url, **self.options}

    def start(self) -> None:
        """Raises ``LaunchError`` or ``CommandFailed``."""
        with self.lock:
            if self.command and self.forward:
                self.command.start()
                self.forward.host, self.forward.port = "127.0.0.1", self.command.port

    def serve(self) -> None:
        with self.lock:
            if self.command:
                self.command.wait()
            self.server.start()

    def kill(self) -> None:
        with self.lock:
            self.server.stop()
            if self.command:
                self.command.kill()
            if self.forward:
                self.forward.break_off()


class LoadBalancer:
    """A proxy in front of targets that can be made to fail.

    ``with LoadBalancer([app, app, app]) as lb: requests.get(lb.url)``

    It serves when it is made, and ends with the block or ``close``. All methods may be called from
    any thread. Those about a target take its place in the list, from 0, and raise ``IndexError``
    if there is none, and ``LoadBalancerError`` if it is killed, or all has ended.
    """

    def __init__(
        self,
        targets: Iterable[Any],
        *,
        seed: int | None = None,
        recovery: Recovery = "automatic",
        **settings: Any,
    ) -> None:
        """A target is a WSGI application, a function ``(request) -> answer``, a URL, a command (a
        list with ``{port}`` in it), or a dict with one of these as its ``target`` and options as
        settings say them. ``seed``, a number from 0 on, makes choices by chance the same in each
        run. With ``recovery="manual"`` evicted targets are probed by ``probe`` only. Other keywords
        are the proxy's settings; evicted targets are probed every 0.1 s unless they say otherwise.

        Raises ``TypeError`` or ``ValueError`` for targets that can't be, ``SettingsError``,
        ``ListenError``, and ``LaunchError`` or ``CommandFailed`` if a command doesn't serve.
        """
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
            raise ValueError(f"seed: expected a number from 0 on, got {seed!r}")
        if recovery not in ("automatic", "manual"):
            raise ValueError(f'recovery: expected "automatic" or "manual", got {recovery!r}')
        self._began = time.monotonic()
        self._recovery = recovery
        self._ended = False
        self._members: list[_Member] = []
        # Protects the story; notified when the proxy changes its mind about a target.
        self._changed = threading.Condition()
        self._story: list[str] = []
        self._cleanup = contextlib.ExitStack()
        try:
            self._start(targets, seed, settings)
        except BaseException:
            self.close()
            raise

    def _start(self, targets: Iterable[Any], seed: int | None, settings: dict[str, Any]) -> None:
        self._cleanup.callback(self._join)
        if isinstance(targets, str | Mapping) or not isinstance(targets, Iterable):
            raise TypeError(f"expected a list of targets, like [app, app], got {targets!r}")
        for at, served in enumerate(targets):
            try:
                own = None if seed is None else f"{seed} {at}"
                self._members.append(_Member(at, served, own))
            except TypeError as error:
                raise TypeError(f"target {at}: {error}") from None
            except ValueError as error:
                problems = "; ".join(f"{path} {text}".strip() for path, text in parts(error))
                raise ValueError(f"target {at}: {problems}") from None
        if not self._members:
            raise ValueError("expected at least one target")
        said = self._settings(seed, settings)
        self._prepare_commands(said)
        self._cleanup.callback(self._kill_all)
        for member in self._members:
            member.start()
        for member in self._members:
            member.serve()
        self.proxy = Proxy(said)
        for service in self.proxy.services:
            service.recovery.by_hand = self._recovery == "manual"
        self.proxy.pool.watch(self._note)
        self.proxy.start()
        self._cleanup.callback(self._stop_proxy)
        self._by_url = {one.url: one for one in self.proxy.pool.targets}
        self.url = self.proxy.url

    def _settings(self, seed: int | None, settings: dict[str, Any]) -> Settings:
        said = {"listen": "http://127.0.0.1:0", "sleeping": _SLEEPING, **settings}
        if seed is not None and "policy" in said:
            said["policy"] = _seeded(said["policy"], seed)
        return parse({**said, "targets": [one.said for one in self._members]}, "load balancer")

    def _prepare_commands(self, settings: Settings) -> None:
        commands = [one for one in self._members if one.words]
        if not commands:
            return
        folder = self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="pyproxy-lab-"))
        launcher = ProcessLauncher(Scaling("process", logs=folder))
        self._cleanup.callback(launcher.close)
        check = check_as(settings.health)
        for member in commands:
            member.command = Command(launcher, f"target-{member.at}", member.words, check)

    def kill(self, target: int) -> None:
        """Nobody listens there any more, and its connections end; a command's process is killed.
        The state of an application inside of this process is kept. Does nothing to one that is
        killed."""
        member = self._member(target)
        with member.lock:
            self._tell(target, "killed, by the test")
            member.kill()

    def restart(self, target: int) -> None:
        """It is there again at the same address, without faults; if it is not killed yet, it is
        now. A command is started, and waited for: raises ``LaunchError`` or ``CommandFailed``."""
        member = self._member(target)
        with member.lock:
            member.kill()
            member.start()
            member.serve()
            self._tell(target, "restarted, by the test")

    def freeze(self, target: int) -> None:
        """It takes connections and requests, and answers none, until ``restart``. A command's
        process is stopped too (SIGSTOP)."""
        with self._alive(target, "frozen") as member:
            member.server.life.freeze()
            if member.command:
                member.command.freeze()

    def slow(self, target: int, seconds: float) -> None:
        """Each answer comes so much later; 0: as soon as it can."""
        _number("seconds", seconds)
        with self._alive(target, f"slow by {seconds:g} s") as member:
            member.server.life.delay = seconds

    def flaky(self, target: int, share: float, status: int = 500) -> None:
        """So big a share of its requests, 0 to 1, is answered with ``status``, and never reaches
        the application; which ones is a matter of chance (``seed``). Probes are spared."""
        _number("share", share, 1)
        if not (isinstance(status, int) and 400 <= status <= 599):
            raise ValueError(f"status: expected a failure, 400 to 599, got {status!r}")
        with self._alive(target, f"flaky, {share:.0%} answer {status}") as member:
            member.server.life.flaky = share, status

    def reset(self, target: int) -> None:
        """Its connections are reset, until ``restart``: those that wait for a request now, others
        in the place of an answer. So the application does its work, and its answers are lost."""
        with self._alive(target, "resetting") as member:
            member.server.life.reset()

    def requests_of(self, target: int) -> int:
        """How many requests have reached it, whatever became of them; one that was tried again
        counts at each target that it has reached. Probes don't count. Also when all has ended."""
        return self._at(target).server.requests

    def probe(self) -> None:
        """One round of probes, now: returns when each evicted target that answers is restored
        (with ``rise`` above 1, when it has so many good ones)."""
        self._check_ended()
        for service in self.proxy.services:
            service.recovery.probe()

    def wait_evicted(self, target: int, seconds: float = _PATIENCE) -> None:
        """Until the proxy has evicted it. Raises ``AssertionError`` after ``seconds``."""
        __tracebackhide__ = True  # pytest shows the test's line
        self._wait(target, State.EVICTED, seconds)

    def wait_restored(self, target: int, seconds: float = _PATIENCE) -> None:
        """Until it serves (again), which one that is killed doesn't before its ``restart``. Raises
        ``AssertionError`` after ``seconds``."""
        __tracebackhide__ = True
        self._wait(target, State.LIVE, seconds)

    def close(self) -> None:
        """Ends the targets and the proxy; nothing of them is left. Once is enough."""
        with self._changed:
            ended, self._ended = self._ended, True
            self._changed.notify_all()
        if not ended:
            self._cleanup.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _at(self, target: int) -> _Member:
        count = len(self._members)
        if isinstance(target, bool) or not isinstance(target, int):
            raise TypeError(f"expected the number of a target, got {target!r}")
        if not 0 <= target < count:
            raise IndexError(f"there is no target {target}: there are {count}, from 0 on")
        return self._members[target]

    def _member(self, target: int) -> _Member:
        member = self._at(target)
        self._check_ended()
        return member

    def _check_ended(self) -> None:
        if self._ended:
            raise LoadBalancerError("this load balancer has ended")

    @contextlib.contextmanager
    def _alive(self, target: int, what: str) -> Iterator[_Member]:
        member = self._member(target)
        with member.lock:
            if not member.server.alive:
                raise LoadBalancerError(f"target {target} is killed: restart({target}) first")
            self._tell(target, f"{what}, by the test")
            yield member

    def _note(self, target: Target, verb: str, reason: str) -> None:
        for member in self._members:
            if member.server.url == target.url:
                self._tell(member.at, f"{verb}: {reason}")

    def _tell(self, target: int, what: str) -> None:
        with self._changed:
            self._story.append(f"  {time.monotonic() - self._began:7.3f}  target {target} {what}")
            self._changed.notify_all()

    def _wait(self, number: int, wanted: State, seconds: float) -> None:
        __tracebackhide__ = True
        _number("seconds", seconds)
        member = self._member(number)
        target = self._by_url[member.server.url]

        def reached() -> bool:
            # The proxy may not have noticed yet that it is killed.
            there = wanted is State.EVICTED or member.server.alive
            return self._ended or (target.state is wanted and there)

        with self._changed:
            if self._changed.wait_for(reached, seconds):
                self._check_ended()
                return
            story = self._story.copy()
        verb = "evicted" if wanted is State.EVICTED else "restored"
        hint = "it is probed every `sleeping` seconds, and must answer as `health` says"
        if wanted is State.EVICTED:
            hint = (
                'requests that fail at it evict it: send some, or have health={"interval": "100ms"}'
                " look after it"
            )
        elif not member.server.alive:
            hint = f"it is killed: restart({number}) first"
        elif self._recovery == "manual":
            hint = 'recovery is "manual": call probe()'
        raise AssertionError(
            f"target {number} ({target.url}) was not {verb} within {seconds:g} s: it is "
            f"{target.state}, and {member.server.requests} requests have reached it ({hint})\n"
            + "\n".join(["So far, in seconds:", *(story or ["  nothing has happened"])])
        )

    def _kill_all(self) -> None:
        for member in self._members:
            member.kill()

    def _stop_proxy(self) -> None:
        self._kill_all()  # first: what they would answer needn't be waited for
        self.proxy.stop(_DRAIN, breath=0.0)

    def _join(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        late = [at for at, one in enumerate(self._members) if one.server.close(deadline)]
        if late:
            warnings.warn(
                f"the application of target {', '.join(map(str, late))} still works on a request "
                f"{_PATIENCE:g} s after the end of the load balancer",
                ResourceWarning,
                stacklevel=2,
            )


def _number(name: str, value: float, most: float = math.inf) -> None:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    if not known or not 0 <= value <= most or value == math.inf:
        limits = f"from 0 to {most:g}" if most < math.inf else "from 0 on"
        raise ValueError(f"{name}: expected a number {limits}, got {value!r}")


def _seeded(said: Json, seed: int) -> Json:
    """The policy with this seed, if it takes one and has none."""
    try:
        found = policies.policy(said)
    except ValueError:  # it is refused with all else that is wrong
        return said
    kind: Callable[..., Any] | None = policies.POLICIES.get(found.name)
    if "seed" not in getattr(kind, "__dataclass_fields__", ()) or "seed" in dict(found.options):
        return found
    return dataclasses.replace(found, options=(*found.options, ("seed", seed)))
