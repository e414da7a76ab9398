"""Wraps around four methods of vLLM, each put on only where the target looks as we know it.

vLLM's methods are always called, with what they were given, and what they return or raise goes on unchanged. What a
hook itself does wrong is counted and passed by. The table says what each leans on; reference points are the sources of
vLLM 0.10.2 to 0.33 (tests/data holds their signatures).
"""

import functools
import importlib
import inspect
import logging
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

from ..logs.context import SERVED
from ..request.in_flight import UNWANTED, Exchange, Timeline

_log: Final = logging.getLogger("vllm_vitals.tracing")


class Live(Protocol):
    """What the hooks need of the runtime."""

    capture_content: bool
    waits_for_native: bool
    many_engines: bool
    only_traces: bool
    processor: Any
    tracing: Timeline | None

    def submit(self, done: Exchange | Timeline) -> None:
        """Hand over what is finished."""

    def hook_failed(self, hook: str, error: Exception) -> None:
        """Count a failure, log the first."""


class Hook(NamedTuple):
    """A method that is wrapped.

    Attributes:
        name: `OutputProcessor.add_request`.
        module: where its class is.
        parameters: that we read, in order, after self; more may follow.
        gives: what is known only with it.
        wrap: makes the wrapper.
        idle: an expression over the parameters that tells when the wrapper has nothing to do.
        unwanted: the same where only traces are wanted; else it would seldom be true.
    """

    name: str
    module: str
    parameters: tuple[str, ...]
    gives: str
    wrap: Callable[[Any, Live], Any]
    idle: str = ""
    unwanted: str = ""


def mismatch(signature: inspect.Signature, parameters: tuple[str, ...]) -> str:
    """Return why a method's signature does not fit what a hook reads; empty when it does."""
    found = [p for p in signature.parameters.values() if p.name != "self"]
    names = [p.name for p in found[: len(parameters)]]
    if names != [*parameters]:
        return f"expected the parameters {', '.join(parameters)}, found {', '.join(names) or 'none'}"
    if any(p.kind not in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD} for p in found[: len(parameters)]):
        return f"expected {', '.join(parameters)} to be positional parameters"
    return ""


def install(live: Live) -> dict[str, str]:
    """Put the hooks on; returns for each why it does not fit, or an empty text."""
    result = examine()
    for hook in HOOKS:
        if not result[hook.name]:
            _install(hook, live)
    return result


def examine() -> dict[str, str]:
    """Return for each hook why it would not fit this vLLM, or an empty text; changes nothing."""
    result = {}
    for hook in HOOKS:
        try:
            _, _, target = _target(hook)
        except (ImportError, AttributeError) as error:
            result[hook.name] = f"not there: {error}"
        else:
            result[hook.name] = mismatch(inspect.signature(target), hook.parameters)
    missing = [name for name in _BOTH_ENDS if result[name]]
    for hook in HOOKS:
        if missing and not result[hook.name] and hook.name not in _ALONE:
            result[hook.name] = f"needs {' and '.join(missing)}"
    return result


def when_first_called(name: str, action: Callable[[Any], None]) -> None:
    """Run an action with the instance at the first call of a hook's target, before the call goes on."""
    hook = next(hook for hook in HOOKS if hook.name == name)
    owner, method, target = _target(hook)

    @functools.wraps(target)
    def first(self: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(owner, method) is not first:  # a hook came around this meanwhile, and has called us
            return target(self, *args, **kwargs)
        setattr(owner, method, target)
        try:
            action(self)
        except Exception:
            _log.exception("tracing stays off: it could not be started")
        return getattr(owner, method)(self, *args, **kwargs)

    setattr(owner, method, first)


def remove() -> None:
    """Take all hooks off again."""
    for hook in HOOKS:
        try:
            owner, method, target = _target(hook)
        except (ImportError, AttributeError):
            continue
        if getattr(target, "vllm_vitals", False):
            setattr(owner, method, target.__wrapped__)


def _install(hook: Hook, live: Live) -> None:
    owner, method, target = _target(hook)
    if not getattr(target, "vllm_vitals", False):
        wrapper: Any = hook.wrap(target, live)
        if idle := hook.idle or (hook.unwanted if live.only_traces else ""):
            wrapper = _with_short_cut(idle, target, wrapper)
        wrapper = functools.wraps(target)(wrapper)
        wrapper.vllm_vitals = True
        setattr(owner, method, wrapper)


_SHORT_CUT: Final = """
def short_cut({names}):
    try:
        idle = {idle}
    except Exception:
        idle = False
    return _original({names}) if idle else _wrapper({names})
"""
_AROUND: Final = """
def around({names}):
    try:
        before = {before}
    except Exception as error:
        before = None
        _failed(_name, error)
    result = _original({names})
    try:
        _after({reads}, before)
    except Exception as error:
        _failed(_name, error)
    return result
"""


def _with_short_cut(idle: str, target: Any, wrapper: Any) -> Any:
    """Return a wrapper that goes straight to vLLM's method where there is nothing to do, a fifth of the cost."""
    scope = {"_original": target, "_wrapper": wrapper, "served": SERVED.get, "UNWANTED": UNWANTED}
    return _made(_SHORT_CUT, target, scope, idle=idle) or wrapper


def _around(
    target: Any, live: Live, name: str, reads: tuple[str, ...], after: Callable[..., None], before: str = "None"
) -> Any:
    """Return a wrapper that looks before and after the call, and counts what goes wrong in either.

    Args:
        target: vLLM's method.
        live: where failures are counted.
        name: of the hook.
        reads: parameters that are looked at, the first ones.
        after: takes those and what was found before.
        before: an expression over them.
    """
    scope = {"_original": target, "_after": after, "_failed": live.hook_failed, "_name": name}
    exact = _made(_AROUND, target, scope, before=before, reads=", ".join(reads))
    if exact is not None:
        return exact
    look = eval(f"lambda {', '.join(reads)}: {before}")  # noqa: S307  our own text

    def around(*args: Any, **kwargs: Any) -> Any:
        found: list[Any] = []
        seen = None
        try:
            found = [args[at] if len(args) > at else kwargs[read] for at, read in enumerate(reads)]
            seen = look(*found)
        except Exception as error:
            live.hook_failed(name, error)
        result = target(*args, **kwargs)
        try:
            if found:
                after(*found, seen)
        except Exception as error:
            live.hook_failed(name, error)
        return result

    return around


def _made(template: str, target: Any, scope: dict[str, Any], **texts: str) -> Any:
    """Return a function with the parameters of the method itself, whatever they are in this vLLM; None if it cannot be.

    Passing on *args and **kwargs is what costs the event loop.
    """
    parameters = [*inspect.signature(target).parameters.values()]
    if any(p.kind is not p.POSITIONAL_OR_KEYWORD for p in parameters) or parameters[0].name != "self":
        return None
    exec(template.format(names=", ".join(p.name for p in parameters), **texts), scope)  # noqa: S102  names of parameters and our own text
    made: Any = next(value for name, value in scope.items() if name in {"short_cut", "around"})
    made.__defaults__ = tuple(p.default for p in parameters if p.default is not p.empty) or None
    return made


def _target(hook: Hook) -> tuple[Any, str, Any]:
    owner_name, method = hook.name.split(".")
    owner = getattr(importlib.import_module(hook.module), owner_name)
    return owner, method, getattr(owner, method)


def _wrap_add_request(original: Any, live: Live) -> Any:
    # All in one: each call from one function to another costs the event loop 50 ns.
    def after(self: Any, request: Any, before: Any) -> None:
        if before is not None:
            if request.request_id not in self.request_states:
                # The end of a streamed input whose last piece was answered already: vLLM only lets go of it here.
                timeline = getattr(before, "vllm_vitals", None)
                if timeline is not None:
                    _end(timeline, before, "stop", live)
            return
        served = SERVED.get()
        if served is UNWANTED:
            return
        live.processor = self
        timeline = Timeline()
        if isinstance(served, Exchange):
            timeline.exchange = served
            if served.sequences is None:
                served.sequences = [timeline]
            else:
                served.sequences.append(timeline)
        else:
            timeline.traceparent = request.trace_headers
        state = self.request_states[request.request_id]
        state.vllm_vitals = timeline
        if state.stats is not None:
            state.stats.vllm_vitals = timeline
        session = getattr(request, "session_id", None)
        if session is not None:
            timeline.session_id = session
        extra = getattr(request.sampling_params, "extra_args", None)
        if extra:
            transfer = extra.get("kv_transfer_params")
            timeline.remote_prefill = isinstance(transfer, dict) and bool(transfer.get("do_remote_prefill"))
            if session is None:
                timeline.session_id = extra.get("session_id")

    before = "self.request_states.get(request.request_id)"
    return _around(original, live, "OutputProcessor.add_request", ("self", "request"), after, before)


def _wrap_update_from_events(original: Any, live: Live) -> Any:
    def update_from_events(*args: Any, **kwargs: Any) -> Any:
        try:
            events = args[2] if len(args) > 2 else kwargs["events"]
            stats = args[4] if len(args) > 4 else kwargs["req_stats"]
            timeline = getattr(stats, "vllm_vitals", None)
            if timeline is not None:
                if timeline.events is None:
                    timeline.events = [events]
                else:
                    timeline.events.append(events)
        except Exception as error:
            live.hook_failed("IterationStats.update_from_events", error)
        return original(*args, **kwargs) if kwargs else original(*args)

    return update_from_events


def _wrap_update_stats_from_finished(original: Any, live: Live) -> Any:
    is_plain = not (live.many_engines or live.capture_content or live.waits_for_native)

    def after(_self: Any, state: Any, reason: Any, iteration: Any, _: None) -> None:
        timeline = getattr(state, "vllm_vitals", None)
        if timeline is None:
            return
        timeline.finish(state, reason)
        if is_plain:  # as _done, without the call
            timeline.done = True
            exchange = timeline.exchange
            if exchange is None or exchange.released:
                live.submit(timeline)
            return
        if live.many_engines:
            _note_for_stat_logger(timeline, iteration)
        if live.capture_content:
            timeline.output_text = _output_text(state)
        if not live.waits_for_native:  # else vLLM's own span comes next, and do_tracing ends it
            _done(timeline, live)

    reads = ("self", "req_state", "finish_reason", "iteration_stats")
    return _around(original, live, "OutputProcessor._update_stats_from_finished", reads, after)


def _note_for_stat_logger(timeline: Timeline, iteration: Any) -> None:
    """Leave a sequence on the statistics of its last step: the stat logger gets those, with the engine's index."""
    if iteration is not None:
        iteration.__dict__.setdefault("vllm_vitals", []).append(timeline)


def _wrap_abort_requests(original: Any, live: Live) -> Any:
    def abort_requests(self: Any, *args: Any, **kwargs: Any) -> Any:
        states: list[Any] = []
        try:
            ids = args[0] if args else kwargs["request_ids"]
            if not isinstance(ids, (list, tuple, set)):  # may be read once only
                ids = list(ids)
                args, kwargs = ((ids, *args[1:]), kwargs) if args else (args, {**kwargs, "request_ids": ids})
            states = _states(self, ids)
        except Exception as error:
            live.hook_failed("OutputProcessor.abort_requests", error)
        result = original(self, *args, **kwargs)
        try:
            for state in states:
                timeline = getattr(state, "vllm_vitals", None)
                if timeline is not None and not timeline.done and state.request_id not in self.request_states:
                    _end(timeline, state, "abort", live)
        except Exception as error:
            live.hook_failed("OutputProcessor.abort_requests", error)
        return result

    return abort_requests


def _states(processor: Any, ids: Any) -> list[Any]:
    """Return the request states that some ids stand for: internal ones, or external ones with several behind them."""
    states = []
    external = getattr(processor, "external_req_ids", {})
    for one in ids:
        state = processor.request_states.get(one)
        if state is not None:
            states.append(state)
        elif one in external:
            states += [s for inner in external[one] if (s := processor.request_states.get(inner)) is not None]
    return states


def _wrap_propagate_error(original: Any, live: Live) -> Any:
    def propagate_error(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            cause = args[0] if args else kwargs["e"]
            for state in [*self.request_states.values()]:
                timeline = getattr(state, "vllm_vitals", None)
                if timeline is not None and not timeline.done:
                    timeline.finish(state, "error", type(cause).__name__)
                    _done(timeline, live)
        except Exception as error:
            live.hook_failed("OutputProcessor.propagate_error", error)
        return original(self, *args, **kwargs)

    return propagate_error


def _wrap_do_tracing(original: Any, live: Live) -> Any:
    def do_tracing(self: Any, *args: Any, **kwargs: Any) -> Any:
        timeline = None
        try:
            state = args[1] if len(args) > 1 else kwargs["req_state"]
            iteration = args[2] if len(args) > 2 else kwargs["iteration_stats"]
            timeline = getattr(state, "vllm_vitals", None)
            if state.stats is None or iteration is None:
                # vLLM asserts that there are statistics, inside the task that serves all requests: with
                # --disable-log-stats its first span would end the server (vLLM issue 25352).
                if timeline is not None:
                    _done(timeline, live)
                return None
            live.tracing = timeline
        except Exception as error:
            live.hook_failed("OutputProcessor.do_tracing", error)
        try:
            return original(self, *args, **kwargs)
        finally:
            live.tracing = None
            if timeline is not None and timeline.finished:
                _done(timeline, live)

    return do_tracing


def _end(timeline: Timeline, state: Any, reason: str, live: Live) -> None:
    timeline.finish(state, reason)
    if live.capture_content:
        timeline.output_text = _output_text(state)
    _done(timeline, live)


def _done(timeline: Timeline, live: Live) -> None:
    # Order matters: the drain thread sets `released` first and looks at `done` afterwards, so one of the two sees it.
    timeline.done = True
    exchange = timeline.exchange
    if exchange is None or exchange.released:
        live.submit(timeline)


def _output_text(state: Any) -> str | None:
    text = getattr(state.detokenizer, "output_text", None)
    return text if isinstance(text, str) else None


# A sequence whose begin or end is not seen would never be reported: without the one the other is of no use.
_BOTH_ENDS: Final = ("OutputProcessor.add_request", "OutputProcessor._update_stats_from_finished")
_ALONE: Final = frozenset({"OutputProcessor.do_tracing"})
_PROCESSOR: Final = "vllm.v1.engine.output_processor"
HOOKS: Final = (
    Hook(
        "OutputProcessor.add_request", _PROCESSOR, ("request",),
        "which HTTP request a sequence belongs to, its session", _wrap_add_request,
        unwanted="served() is UNWANTED",
    ),
    Hook(
        "IterationStats.update_from_events", "vllm.v1.metrics.stats",
        ("req_id", "events", "is_prefilling", "req_stats"), "each preemption's begin and end", _wrap_update_from_events,
        idle="len(events) == 2 and events[0].type == 1",  # queued, scheduled: vLLM itself keeps those
    ),
    Hook(
        "OutputProcessor._update_stats_from_finished", _PROCESSOR, ("req_state", "finish_reason", "iteration_stats"),
        "exact phases, tokens and finish reason", _wrap_update_stats_from_finished,
        unwanted="getattr(req_state, 'vllm_vitals', None) is None",  # unwanted, or begun before we were there
    ),
    Hook("OutputProcessor.abort_requests", _PROCESSOR, ("request_ids",), "aborted requests", _wrap_abort_requests),
    Hook("OutputProcessor.propagate_error", _PROCESSOR, ("e",), "requests lost with an engine", _wrap_propagate_error),
    Hook(
        "OutputProcessor.do_tracing", _PROCESSOR, ("engine_core_output", "req_state", "iteration_stats"),
        "vLLM's own span enriched; a server that survives --disable-log-stats", _wrap_do_tracing,
    ),
)  # fmt: skip
