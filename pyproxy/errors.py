"""Every error pyproxy raises. What answers a client carries its status; what failed at a
target also says whether the request may have reached it."""


class PyproxyError(Exception):
    """The root of the tree."""


class SettingsError(PyproxyError):
    """Settings that are refused: every problem at once, each as ``source: path: text``."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class ListenError(PyproxyError):
    """An address that can't be listened on; the text names it and a remedy."""


class ControlError(PyproxyError):
    """A verb that can't be done: with the status that the admin API answers."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status

    def __reduce__(self) -> tuple[type, tuple[int, str]]:
        return ControlError, (self.status, str(self))  # it comes from other processes


class EmptyRing(PyproxyError, LookupError):
    """A ``HashRing`` without values was asked for one."""


class AllBusy(PyproxyError):
    """Every target that may serve a request has as many as it may have: wait for one."""


class ClientGone(PyproxyError):
    """The client closed, reset, or stopped reading or sending: nobody is left to answer."""


class BadProxyHeader(PyproxyError):
    """A PROXY header that breaks the protocol, didn't come, or came from who isn't trusted."""


class HTTPError(PyproxyError):
    """The proxy's own answer to a request that it doesn't forward."""

    retry_after: int | None = None  # seconds

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Malformed(HTTPError):
    """An HTTP/2 request that RFC 9113 (8.1.1) calls malformed: its stream is reset, unanswered."""

    def __init__(self, text: str) -> None:
        super().__init__(400, text)


class ConnectionFault(PyproxyError):
    """What a client did that ends its HTTP/2 connection (RFC 9113, 5.4.1), with the error code."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class NobodyLeft(HTTPError):
    """Every target is evicted or has failed this request: answered as ``unavailable`` says."""

    retry_after = 1


class Overloaded(HTTPError):
    """Every target is full, and the queue too, or the wait in it was too long."""

    retry_after = 1

    def __init__(self, text: str) -> None:
        super().__init__(503, text)


class TargetError(PyproxyError):
    """A target failed before a whole response head came from it.

    ``sent``: a byte of the request may have reached the target, so that only an idempotent
    request may go to another one (RFC 9110, 9.2.2).
    """

    kind = "error"  # a word for it, of few
    status = 502
    sent = True
    counts = True  # as a failure of the target
    retry_after: int | None = None


class ConnectFailed(TargetError):
    """Refused, timed out, unreachable, or a name that doesn't resolve."""

    kind = "connect"
    sent = False


class ConnectionLost(TargetError):
    """Reset or closed before a whole response head."""

    kind = "lost"


class NoReply(ConnectionLost):
    """Reset or closed before a byte of a response."""


class StaleConnection(NoReply):
    """The same on a kept-alive connection, under a request that can't be sent twice: the target
    may have closed it when the request was under way, which is no failure."""

    counts = False


class BadReply(TargetError):
    """A response head or framing that breaks RFC 9112."""

    kind = "bad_reply"


class ReplyTimeout(TargetError):
    """No response head within ``timeouts.read``, or a request not taken in ``timeouts.send``."""

    kind = "timeout"
    status = 504
