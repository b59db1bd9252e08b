"""Hands what the decoding thread makes to an event loop, which wakes up once for all that has arrived since."""

import asyncio
from collections import deque
from contextlib import suppress
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

Item = TypeVar("Item")

_bells: "WeakKeyDictionary[asyncio.AbstractEventLoop, _Bell]" = WeakKeyDictionary()


class _Bell:
    """Wakes one event loop for all its inboxes.

    A pass decides a token for each of many readers. To wake the loop for each of them would cost the decoding thread a
    system call per token, and at each of them it would lose the interpreter to the loop.
    """

    def __init__(self) -> None:
        self._filled: deque[Inbox[Any]] = deque()
        self._rung = False

    def ring(self, inbox: "Inbox[Any]") -> None:
        """Tells the loop, from any thread, that something has arrived."""
        self._filled.append(inbox)
        # Whoever finds it rung knows that the loop has yet to empty the deque, which it does after it resets this.
        if not self._rung:
            self._rung = True
            try:
                inbox.loop.call_soon_threadsafe(self._wake)
            except RuntimeError:  # the loop was closed in the meantime, so nobody is waiting any more
                self._filled.clear()

    def _wake(self) -> None:
        self._rung = False
        with suppress(IndexError):
            while True:
                self._filled.popleft().wake()


class Inbox(Generic[Item]):
    """What arrives for one reader in the running event loop, from any thread.

    Attributes:
        loop: The event loop.
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._bell = _bells.setdefault(self.loop, _Bell())
        self._items: deque[Item] = deque()
        self._reader: asyncio.Future[None] | None = None

    def put(self, item: Item) -> None:
        """Leaves an item, from any thread."""
        self._items.append(item)
        self._bell.ring(self)

    def wake(self) -> None:
        """Wakes the reader, in the thread of its loop."""
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def take(self, seconds: float | None = None) -> list[Item]:
        """All items that have arrived, at least one.

        Args:
            seconds: Most seconds to wait; None for no limit. What has arrived is given even if none are left.

        Raises:
            TimeoutError: If nothing arrived in time.
        """
        if not self._items:
            if seconds is None:
                await self._arrival()
            else:
                async with asyncio.timeout(seconds):
                    await self._arrival()
        return [self._items.popleft() for _ in range(len(self._items))]

    async def _arrival(self) -> None:
        while not self._items:
            self._reader = self.loop.create_future()
            await self._reader
