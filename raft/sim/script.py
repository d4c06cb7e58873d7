"""Small scripts that drive a few cores by hand and print what they do, for golden files.

nodes 3 [election=10] [learners=1] ...   voters 1 to 3, then the learners
tick 5 / tick 5 1 2          five ticks of everybody, or of some
campaign 1                   start an election
propose 1 x y                one batch of two entries
read 1 7                     ask for a read index, context 7
transfer 1 2                 hand over
add|promote|demote|remove 1 4    ask member 1 for a change of member 4
compact 1 5 0                a snapshot of entry 5, keeping no older ones
deliver [1>2]                everything under way now, or between two, once
drop [1>2]                   lose it
stabilize                    deliver until nothing is under way
partition 1 | 2 3            cut between the groups;  heal  joins them
hold 1                       its disk does not answer;  persist 1  ends that
crash 1  restart 1           what was held is lost
status                       a line of each member;  log 1  its entries
expect leader 1 | commit 2 5 | term 3 2      fails if it is not so
"""

from __future__ import annotations

import random
from collections.abc import Callable

from typing_extensions import override

from raft.core import (
    AddLearner,
    Change,
    Config,
    Core,
    Demote,
    Entries,
    Member,
    Membership,
    Promote,
    RaftID,
    Ready,
    Refused,
    Remove,
    Role,
    bootstrap,
)
from raft.core.membership import decode_membership
from raft.core.messages import (
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    Install,
    Message,
    PreVote,
    PreVoteReply,
    ReadReply,
    Vote,
    VoteReply,
)
from raft.sim.disk import Disk

_ROUNDS_MAX = 200
_CHANGES: dict[str, Callable[[RaftID], Change]] = {
    "add": AddLearner,
    "promote": Promote,
    "demote": Demote,
    "remove": Remove,
}


class ExpectationError(AssertionError):
    """A line `expect` that does not hold."""


class _Draws(random.Random):
    """Draws time-outs by a seed; what a life draws is its number in the script."""

    life = 0

    @override
    def getrandbits(self, k: int, /) -> int:
        return self.life


class Machine:
    """One member of a script."""

    def __init__(self, config: Config) -> None:
        """Not started."""
        self.config = config
        self.disk = Disk()
        self.core: Core | None = None
        self.is_held = False
        self.held: list[Ready] = []
        self.seen = ""


class Script:
    """Runs commands; each returns the lines of its trace."""

    def __init__(self) -> None:
        """Nobody is there."""
        self._members: dict[int, Machine] = {}
        self._under_way: list[Message] = []
        self._cut: set[tuple[int, int]] = set()
        self._lines: list[str] = []
        self._lives = 0

    def run(self, command: str) -> list[str]:
        """Carry out one line."""
        self._lines = []
        name, *words = command.split()
        if name in _CHANGES:
            self._change(name, words)
        else:
            getattr(self, f"_do_{name}")(words)
        self._work()
        return self._lines

    def _say(self, line: str) -> None:
        self._lines.append(line)

    def _core(self, word: str | int) -> Core:
        core = self._members[int(word)].core
        assert core is not None, f"member {word} is down"
        return core

    # Commands.

    def _do_nodes(self, words: list[str]) -> None:
        options = {key: int(value) for key, value in (word.split("=") for word in words[1:])}
        voters = int(words[0])
        learners = options.pop("learners", 0)
        joining = options.pop("joining", 0)
        settings = {
            {"election": "election_ticks", "lease": "has_lease_reads"}.get(key, key): value
            for key, value in options.items()
        }
        settings.setdefault("has_lease_reads", 1)
        members = Membership(
            tuple(
                Member(RaftID(number), is_voter=number <= voters)
                for number in range(1, voters + learners + 1)
            )
        )
        for number in range(1, voters + learners + joining + 1):
            lease = bool(settings["has_lease_reads"])
            rest = {key: value for key, value in settings.items() if key != "has_lease_reads"}
            config = Config(id=RaftID(number), has_lease_reads=lease, **rest)
            member = self._members[number] = Machine(config)
            if number <= voters + learners:
                member.disk.hard_state, entries = bootstrap(members)
                member.disk.log = [(1, entries.data[0], True)]
            self._start(number)

    def _start(self, number: int) -> None:
        member = self._members[number]
        disk = member.disk
        draws = _Draws(number)
        draws.life = self._lives = self._lives + 1
        member.core = Core(
            member.config,
            draws,
            hard_state=disk.hard_state,
            snapshot=disk.snapshot,
            entries=disk.entries(),
        )
        member.seen = ""

    def _do_tick(self, words: list[str]) -> None:
        numbers = [int(word) for word in words[1:]] or list(self._members)
        for _ in range(int(words[0])):
            for number in numbers:
                core = self._members[number].core
                if core is not None:
                    core.tick()
            self._work()

    def _do_campaign(self, words: list[str]) -> None:
        self._core(words[0]).campaign()

    def _do_propose(self, words: list[str]) -> None:
        answer = self._core(words[0]).propose([word.encode() for word in words[1:]])
        self._say(f"{words[0]} answers {_answer(answer)}")

    def _do_read(self, words: list[str]) -> None:
        if not self._core(words[0]).read_index(int(words[1])):
            self._say(f"{words[0]} knows nobody to ask")

    def _do_transfer(self, words: list[str]) -> None:
        answer = self._core(words[0]).transfer_leader(RaftID(int(words[1])))
        self._say(f"{words[0]} answers {_answer(answer)}")

    def _change(self, name: str, words: list[str]) -> None:
        change = _CHANGES[name](RaftID(int(words[1])))
        self._say(f"{words[0]} answers {_answer(self._core(words[0]).propose_change(change))}")

    def _do_compact(self, words: list[str]) -> None:
        core = self._core(words[0])
        core.compact(int(words[1]), int(words[2]))
        self._members[int(words[0])].disk.keep_snapshot(core.snapshot, core.log.start)
        self._say(f"{words[0]} has a snapshot of {core.snapshot.index}, log from {core.log.start}")

    def _do_partition(self, words: list[str]) -> None:
        groups = [group.split() for group in " ".join(words).split("|")]
        for group in groups:
            for other in groups:
                if other is not group:
                    self._cut |= {(int(a), int(b)) for a in group for b in other}

    def _do_heal(self, _: list[str]) -> None:
        self._cut.clear()

    def _do_hold(self, words: list[str]) -> None:
        self._members[int(words[0])].is_held = True

    def _do_persist(self, words: list[str]) -> None:
        member = self._members[int(words[0])]
        member.is_held = False
        held, member.held = member.held, []
        for ready in held:
            self._store(int(words[0]), ready)

    def _do_crash(self, words: list[str]) -> None:
        member = self._members[int(words[0])]
        member.core = None
        member.held = []
        member.is_held = False

    def _do_restart(self, words: list[str]) -> None:
        self._start(int(words[0]))

    def _do_deliver(self, words: list[str]) -> None:
        for message in self._take(words):
            if (message.sender, message.to) in self._cut:
                self._say(f"lost {_describe(message)}")
                continue
            core = self._members[message.to].core
            if core is None:
                self._say(f"lost {_describe(message)}")
                continue
            self._say(_describe(message))
            core.step(message)
            sender = self._members[message.sender].core
            if isinstance(message, Install) and sender is not None:
                sender.snapshot_sent(message.to, is_sent=True)
            self._work()

    def _do_drop(self, words: list[str]) -> None:
        for message in self._take(words):
            self._say(f"dropped {_describe(message)}")

    def _take(self, words: list[str]) -> list[Message]:
        """Take what is under way, all or between two."""
        if not words:
            taken, self._under_way = self._under_way, []
            return taken
        sender, to = (int(word) for word in words[0].split(">"))
        taken = [each for each in self._under_way if (each.sender, each.to) == (sender, to)]
        self._under_way = [each for each in self._under_way if each not in taken]
        return taken

    def _do_stabilize(self, _: list[str]) -> None:
        for _round in range(_ROUNDS_MAX):
            self._work()
            if not self._under_way:
                return
            self._do_deliver([])
        raise ExpectationError("it does not come to rest")

    def _do_status(self, _: list[str]) -> None:
        for number, member in self._members.items():
            core = member.core
            if core is None:
                self._say(f"{number} is down")
                continue
            log = core.log
            self._say(
                f"{number} {core.role.value} term {core.term} vote {core.vote} leader "
                f"{core.leader} log {log.start + 1}..{log.last} commit {log.commit} "
                f"voters {' '.join(map(str, core.membership.voters))}"
                + (" lease" if core.has_lease else "")
            )

    def _do_log(self, words: list[str]) -> None:
        log = self._core(words[0]).log
        if log.start == log.last:
            self._say("empty")
        else:
            self._say(_entries(log.entries(log.start + 1, log.last)))

    def _do_expect(self, words: list[str]) -> None:
        match words:
            case ["leader", number]:
                found: object = [n for n, m in self._members.items() if m.core and m.core.is_leader]
                wanted: object = [int(number)] if number != "0" else []
            case ["commit", number, index]:
                found, wanted = self._core(number).log.commit, int(index)
            case ["term", number, term]:
                found, wanted = self._core(number).term, int(term)
            case _:
                raise ExpectationError(f"no such expectation: {' '.join(words)}")
        if found != wanted:
            raise ExpectationError(f"expected {' '.join(words)}, found {found}")
        self._say("ok")

    # Duties.

    def _work(self) -> None:
        for number, member in self._members.items():
            while member.core is not None:
                ready = member.core.ready()
                self._note_role(number, member)
                if ready is None:
                    break
                self._under_way += ready.messages
                if ready.committed is not None:
                    self._say(f"{number} applies {_entries(ready.committed)}")
                for read in ready.reads:
                    self._say(f"{number} may read {read.context} at {read.index}")
                for context in ready.reads_failed:
                    self._say(f"{number} cannot read {context}")
                if member.is_held:
                    member.held.append(ready)
                else:
                    self._store(number, ready)

    def _note_role(self, number: int, member: Machine) -> None:
        core = member.core
        assert core is not None
        seen = f"{core.role.value} in term {core.term}"
        if core.role is Role.FOLLOWER and core.leader:
            seen += f" of {core.leader}"
        if seen != member.seen:
            self._say(f"{number} is {seen}")
            member.seen = seen

    def _store(self, number: int, ready: Ready) -> None:
        member = self._members[number]
        assert member.core is not None
        if ready.snapshot is not None:
            self._say(f"{number} installs the snapshot of {ready.snapshot.index}")
        if ready.entries is not None:
            self._say(f"{number} stores {_entries(ready.entries)}")
        member.disk.store(ready)
        member.core.persisted(ready.number)
        self._under_way += ready.messages_after
        member.core.check()


def _entries(entries: Entries) -> str:
    """Write entries as index/term and what they hold."""
    words = []
    for index, data in enumerate(entries.data, entries.first):
        if index in entries.changes:
            members = decode_membership(data).members
            text = "=" + ",".join(f"{each.id}{'' if each.is_voter else 'L'}" for each in members)
        else:
            text = f"={data.decode()}" if data else ""
        words.append(f"{index}/{entries.term(index)}{text}")
    return " ".join(words)


def _answer(answer: object) -> str:
    if isinstance(answer, Refused):
        return f"refused, {answer.code.value}: {answer.reason}"
    return str(answer)


def _describe(message: Message) -> str:  # noqa: PLR0911 -- one for each kind
    """Write a message for a person."""
    head = f"{message.sender}>{message.to} {type(message).__name__} term {message.term}"
    match message:
        case Append():
            entries = f": {_entries(message.entries)}" if message.entries.data else ""
            return (
                f"{head} after {message.previous_index}/{message.previous_term} "
                f"commit {message.commit}{entries}"
            )
        case AppendReply(is_rejected=True):
            return f"{head} rejects {message.index} hint {message.hint_index}/{message.hint_term}"
        case AppendReply():
            return f"{head} has {message.index}"
        case PreVote() | Vote():
            forced = " forced" if isinstance(message, Vote) and message.is_forced else ""
            return f"{head} log {message.last_index}/{message.last_term}{forced}"
        case PreVoteReply() | VoteReply():
            return f"{head} {'yes' if message.is_granted else 'no'}"
        case Heartbeat():
            return f"{head} commit {message.commit} round {message.round}"
        case HeartbeatReply():
            return f"{head} round {message.round}"
        case Install():
            return f"{head} snapshot {message.snapshot.index}/{message.snapshot.term}"
        case ReadReply():
            return f"{head} read {message.context} at {message.index}"
        case _:
            return head
