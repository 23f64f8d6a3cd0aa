"""A checker of how the programs of a Triton kernel exchange values: every order of their steps, and what they may see.

A program is the list of its memory accesses (``triton_recorded.py`` records it while the real kernel runs).
Memory promises no more than this: a read sees the last write where that *happened before* it, and a write replaces a
value where every read of it happened before. One access happens before another

- in the same program, where a barrier lies between them (other threads of the program may do the other one);
- in another program, along barrier, release (an atomic add to a counter), acquire (a poll that found enough), barrier.

Whatever is not ordered so may happen in any order, and be seen or not, and is an error here. Clocks say what happened
before what (Lamport 1978; Flanagan & Freund 2009, "FastTrack"). The search goes through all orders of the operations on
counters, and so through all executions: what happened before what depends on nothing else.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

Clock = tuple[int, ...]


@dataclass(frozen=True)
class Event:
    """What a program does.

    Attributes:
        kind: ``read``, ``write``, ``barrier``, ``arrive`` (adds to a counter) or ``wait`` (until it has enough).
        places: the addresses read or written.
        counter: of an arrival or a wait.
        amount: that is added; or that is enough.
        ordered: the arrival releases, the wait acquires.
    """

    kind: str
    places: frozenset[int] = frozenset()
    counter: int = 0
    amount: int = 0
    ordered: bool = True


Trace = Sequence[Event]


class Step(NamedTuple):
    """When something was written: the tile, by number within its program's, and the step within the tile."""

    tile: int
    number: int


class Write(NamedTuple):
    """The last write to a place: who, in which of its stretches between barriers, in which step."""

    program: int
    epoch: int
    step: Step


class State(NamedTuple):
    """All that the future depends on."""

    at: tuple[int, ...]  # by program: the next event; -1 before it starts
    team: tuple[Clock, ...]  # by program: what its threads know of every program
    leader: tuple[Clock, ...]  # by program: what the thread knows that works on the counters
    counters: tuple[tuple[int, Clock], ...]
    writes: tuple[Write | None, ...]
    reads: tuple[Clock, ...]  # by place: the last epoch in which each program read it since it was written


@dataclass
class Found:
    """What the search saw: sentences about what went wrong, and how many states there are."""

    problems: set[str] = field(default_factory=set)
    states: int = 0


class Model:
    """The programs' lists, and which write each read has to see.

    Args:
        traces: of the programs, in the order in which they start.
        steps: of one tile.
        exchanged: whether a place is read a step after it was written; any other may be read at any time.
        by: the kind of event that ends a step: ``arrive``, or ``barrier`` where nothing is exchanged.
    """

    def __init__(
        self,
        traces: Sequence[Trace],
        steps: int,
        exchanged: Callable[[int], bool] = lambda place: True,
        by: str = "arrive",
    ) -> None:
        self.counters = sorted(
            {event.counter for trace in traces for event in trace if event.kind in ("arrive", "wait")}
        )
        self.traces, self.passes_on = _shared(traces, exchanged)
        self.n = len(traces)
        self.steps = [_steps_of(trace, steps, by) for trace in self.traces]

    def begin(self, started: bool) -> State:
        """Nothing has happened."""
        nothing: Clock = (0,) * self.n
        places = len(self.passes_on)
        return State(
            ((0,) if started else (-1,)) * self.n,
            (nothing,) * self.n,
            (nothing,) * self.n,
            ((0, nothing),) * len(self.counters),
            (None,) * places,
            (nothing,) * places,
        )

    def stretch(self, state: State, i: int) -> tuple[State, str]:
        """Program ``i`` runs up to its next operation on a counter; returns the errors of its accesses."""
        trace, k = self.traces[i], max(state.at[i], 0)
        team, leader = state.team[i], state.leader[i]
        counters, writes, reads = list(state.counters), list(state.writes), list(state.reads)
        wrong = ""
        while k < len(trace) and not wrong:
            event = trace[k]
            if event.kind in ("arrive", "wait"):
                if k != state.at[i]:
                    break
                at = self.counters.index(event.counter)
                value, released = counters[at]
                if event.kind == "wait":
                    leader = _join(leader, released) if event.ordered else leader
                else:
                    counters[at] = value + event.amount, _join(released, leader) if event.ordered else released
            elif event.kind == "barrier":
                team = leader = _next(_join(team, leader), i)
            else:
                for place in event.places:
                    wrong = wrong or self._wrong(event.kind, place, i, k, team, writes[place], reads[place])
                    if event.kind == "write":
                        writes[place] = Write(i, team[i] + 1, self.steps[i][k])
                        reads[place] = (0,) * self.n
                    else:
                        reads[place] = _with(reads[place], i, team[i] + 1)
            k += 1
        return State(
            _with(state.at, i, k),
            _with(state.team, i, team),
            _with(state.leader, i, leader),
            tuple(counters),
            tuple(writes),
            tuple(reads),
        ), wrong

    def _wrong(self, kind: str, place: int, i: int, k: int, team: Clock, last: Write | None, seen: Clock) -> str:
        step = self.steps[i][k]
        if last is not None and team[last.program] < last.epoch:
            if last.program == i:
                return f"a {kind} without a barrier after the program's own write"
            return f"a {kind} that no wait orders after another program's write"
        if kind == "write":
            for j, epoch in enumerate(seen):
                if team[j] < epoch:
                    return f"a write over what {'the program' if i == j else 'another program'} may still read"
            return ""
        if not self.passes_on[place]:
            return ""
        if last is None:
            return "" if step.number == 0 else "a read of what nobody has written"
        if last.step != (step.tile, step.number - 1):
            return "a read of another step's value"
        return ""

    def ready(self, state: State, i: int) -> bool:
        """Whether program ``i``, which has started, can go on."""
        k = state.at[i]
        if k >= len(self.traces[i]):
            return False
        event = self.traces[i][k]
        return event.kind != "wait" or state.counters[self.counters.index(event.counter)][0] >= event.amount

    def explore(self, resident: int | None = None) -> Found:
        """Go through all orders.

        Args:
            resident: the number of programs that run at once; another starts when one has ended; ``None``: all.
        """
        found, waiting = Found(), [self.begin(resident is None)]
        if resident is None:
            for i in range(self.n):
                waiting[0], wrong = self.stretch(waiting[0]._replace(at=_with(waiting[0].at, i, -1)), i)
                found.problems |= {wrong} - {""}
        known = set(waiting)
        while waiting:
            state = waiting.pop()
            found.states += 1
            running = sum(0 <= k < len(t) for k, t in zip(state.at, self.traces, strict=True))
            moves = [i for i in range(self.n) if state.at[i] >= 0 and self.ready(state, i)]
            if resident is not None and running < resident:
                moves += [i for i in range(self.n) if state.at[i] < 0]
            if not moves and any(k < len(t) for k, t in zip(state.at, self.traces, strict=True)):
                found.problems.add("programs that wait for ever")
            for i in moves:
                after, wrong = self.stretch(state, i)
                if wrong:
                    found.problems.add(wrong)
                elif after not in known:
                    known.add(after)
                    waiting.append(after)
        return found


def _shared(traces: Sequence[Trace], exchanged: Callable[[int], bool]) -> tuple[list[list[Event]], list[bool]]:
    """The lists with one number for all places that are used alike, and by number whether it is exchanged.

    Left out are places that nobody writes, and those that one program alone writes once and nobody reads.
    """
    uses: dict[int, list[tuple[int, int, str]]] = defaultdict(list)
    for i, trace in enumerate(traces):
        for k, event in enumerate(trace):
            for place in event.places:
                uses[place].append((i, k, event.kind))
    numbers: dict[tuple[bool, tuple[tuple[int, int, str], ...]], int] = {}
    of: dict[int, int] = {}
    for place, use in uses.items():
        if len(use) > 1 and any(kind == "write" for *_, kind in use):
            of[place] = numbers.setdefault((exchanged(place), tuple(use)), len(numbers))
    renamed = [
        [Event(e.kind, frozenset(of[p] for p in e.places if p in of), e.counter, e.amount, e.ordered) for e in trace]
        for trace in traces
    ]
    return renamed, [passes_on for passes_on, _ in numbers]


def _steps_of(trace: Trace, steps: int, by: str) -> list[Step]:
    found, done = [], 0
    for event in trace:
        found.append(Step(*divmod(done, steps)))
        done += event.kind == by
    return found


def _with(values: tuple, k: int, value: object) -> tuple:
    return (*values[:k], value, *values[k + 1 :])


def _join(one: Clock, other: Clock) -> Clock:
    return tuple(map(max, one, other))


def _next(clock: Clock, i: int) -> Clock:
    return _with(clock, i, clock[i] + 1)
