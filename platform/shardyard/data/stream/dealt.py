"""Streams of one process that share a shard: it is read once, and each stream is dealt its rows."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from dataclasses import dataclass, field

from shardyard.data.stream.share import START, Cursor, Share
from shardyard.data.stream.tables import Chunk, TableStream, is_by_number, rows_of, stored_chunk

# A stream that wants rows further ahead than this begins a pass of its own where it can.
AHEAD_ROWS = 1 << 16
# Beyond so many bytes that wait to be taken, no more is dealt to a stream that has far more of them than others, or
# that has not read at all while another one has read so many rows. It then reads for itself.
WAITING_BYTES, MANY_ROWS = 1 << 31, 1 << 13


class DealtTables:
    """One stream's rows of a shard that several streams of this process read.

    The shard is opened once for all of them, at the place of the one that is furthest behind; the rows of the others
    wait for them. Each row has the cursor that it has when the stream reads alone.
    """

    def __init__(self, share: Share) -> None:
        self.share = share
        self._dealer = _dealer_of(share)
        self._dealer.members.add(self)
        self._pass: _Pass | None = None
        # Where a pass of its own would begin, and the first row that is wanted.
        self.start, self.wanted = START, 0
        self.is_waiting = False

    def seek(self, cursor: Cursor) -> None:
        with self._dealer.lock:
            self._leave()
            self._dealer.members.add(self)
            self.wanted = cursor.example + cursor.row
            self.start = START if is_by_number(cursor) else Cursor(cursor.state, cursor.example)
            self.is_waiting = True

    def next(self, wanted: int) -> Chunk | None:
        with self._dealer.lock:
            while (chunk := self._dealt()) is not None:
                first, end = chunk.cursor.example, chunk.cursor.example + chunk.length
                if end > self.wanted:
                    rows = [(index, stored) for index, stored in chunk.rows if first + index >= self.wanted]
                    self.start, self.wanted = chunk.cursor, end
                    return Chunk(chunk.cursor, chunk.length, rows)
            return None

    def close(self) -> None:
        with self._dealer.lock:
            self._leave()
            self._dealer.forget(self)
            self.is_waiting = False

    def _dealt(self) -> Chunk | None:
        """The next chunk of this stream; None at the end of the shard."""
        if self._pass is not None and self not in self._pass.dealt:
            self._leave()
            self.is_waiting = True
        if self._pass is None:
            self._pass = self._dealer.join(self)
            self.is_waiting = False
        waiting = self._pass.dealt[self]
        while not waiting.chunks:
            if not self._pass.deal(self):
                return None
        return waiting.pop()

    @property
    def is_idle(self) -> bool:
        """Whether it has not been asked for anything."""
        return self._pass is None and not self.is_waiting

    def _leave(self) -> None:
        if self._pass is not None:
            self._dealer.leave(self, self._pass)
            self._pass = None


@dataclass
class _Waiting:
    """What waits for a stream: the chunks with its rows from number `first` on."""

    first: int
    chunks: deque[Chunk] = field(default_factory=deque)
    num_bytes: float = 0.0
    num_taken: int = 0

    def pop(self) -> Chunk:
        self.num_bytes *= 1 - 1 / len(self.chunks)
        chunk = self.chunks.popleft()
        self.num_taken += len(chunk.rows)
        return chunk


@dataclass(eq=False)
class _Pass:
    """One reading of a shard, for the streams in `dealt`, of which those in `joined` read by it now."""

    tables: TableStream
    dealt: dict[DealtTables, _Waiting]
    joined: set[DealtTables] = field(default_factory=set)

    def serves(self, member: DealtTables) -> bool:
        """Whether the rows that a stream wants are here or come soon."""
        waiting = self.dealt.get(member)
        if waiting is None or waiting.first > member.wanted:
            return False
        return member.start.state is None or member.wanted - self.tables.next_example <= AHEAD_ROWS

    def deal(self, asking: DealtTables) -> bool:
        """Read one table for all; False at the end."""
        pulled = self.tables.pull()
        if pulled is None:
            return False
        cursor, table = pulled
        rows = {
            member: rows_of(member.share, cursor.example, table.num_rows, waiting.first)
            for member, waiting in self.dealt.items()
        }
        chosen = sorted({row for some in rows.values() for row in some})
        stored = dict(stored_chunk(asking.share, cursor, table, chosen).rows)
        for member, waiting in self.dealt.items():
            some = [(row, stored[row]) for row in rows[member]]
            waiting.chunks.append(Chunk(cursor, table.num_rows, some))
            waiting.num_bytes += table.nbytes * len(some) / max(1, table.num_rows)
        self._bound(asking)
        return True

    def _bound(self, asking: DealtTables) -> None:
        """Deal no more to a stream that leaves too much waiting."""
        total = sum(waiting.num_bytes for waiting in self.dealt.values())
        while total > WAITING_BYTES:
            slowest = max(self.dealt, key=lambda member: (member is not asking, self.dealt[member].num_bytes))
            is_idle = slowest not in self.joined and self.dealt[asking].num_taken > MANY_ROWS
            size = self.dealt[slowest].num_bytes
            if slowest is asking or not (is_idle or size > 2 * total / len(self.dealt)):
                break
            del self.dealt[slowest]
            total -= size


class _Dealer:
    """The streams of this process that share a shard, and the passes in which it is read for them."""

    def __init__(self, share: Share) -> None:
        # Held, so that its identity is that of no other.
        self._owner = share.source.dataset
        self._dataset = share.dataset
        self.members: weakref.WeakSet[DealtTables] = weakref.WeakSet()
        self.lock = threading.RLock()
        self._passes: list[_Pass] = []

    def join(self, member: DealtTables) -> _Pass:
        """A pass with the rows that a stream wants, a new one if there is none."""
        found = next((one for one in self._passes if one.serves(member)), None)
        if found is None:
            found = self._begin(member)
            self._passes.append(found)
        found.joined.add(member)
        return found

    def _begin(self, member: DealtTables) -> _Pass:
        """A pass from where the stream is, or another one that waits not far behind it."""
        waiting = sorted((one for one in self.members if one.is_waiting), key=lambda one: -one.wanted)
        if member.start.state is None:
            # All rows are read: in an epoch to which the other streams will come, or instead of an index that others
            # have to leave too, at about the same place.
            soon = max(0, member.wanted - AHEAD_ROWS)
            coming = [one for one in self.members if one.is_waiting or one.is_idle or not member.wanted]
            dealt = {one: _Waiting(one.wanted if one.is_waiting else soon) for one in coming}
            return _Pass(TableStream(self._dataset, START), dealt)
        first = member
        for one in waiting:
            if one.start.state is not None and 0 < first.wanted - one.wanted <= AHEAD_ROWS:
                first = one
        dealt = {one: _Waiting(one.wanted) for one in waiting if one.wanted >= first.wanted}
        return _Pass(TableStream(self._dataset, first.start), dealt)

    def leave(self, member: DealtTables, one: _Pass) -> None:
        """A stream reads on elsewhere."""
        one.dealt.pop(member, None)
        one.joined.discard(member)
        if not one.joined:
            self._passes = [other for other in self._passes if other is not one]
            one.tables.close()

    def forget(self, member: DealtTables) -> None:
        """Deal nothing more to a stream that is closed."""
        self.members.discard(member)
        for one in self._passes:
            one.dealt.pop(member, None)


_dealers: weakref.WeakValueDictionary[tuple[int, int, int], _Dealer] = weakref.WeakValueDictionary()
_registering = threading.Lock()


def _dealer_of(share: Share) -> _Dealer:
    dataset = share.source.dataset
    key = (id(dataset), share.stream % dataset.num_shards, share.streams)
    with _registering:
        found = _dealers.get(key)
        if found is None:
            found = _dealers[key] = _Dealer(share)
        return found
