"""Inboxes of an event loop: what arrives, in which order, and how often the loop is woken."""

import asyncio
import gc
import threading
import weakref
from typing import Any

import pytest

from langchain_mara.serving.mailbox import Inbox


def in_a_thread(work: Any) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


async def test_the_loop_is_woken_once_for_all_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, woken = asyncio.get_running_loop(), []
    real = loop.call_soon_threadsafe
    inboxes: list[Inbox[int]] = [Inbox() for _ in range(8)]
    readers = [asyncio.create_task(inbox.take()) for inbox in inboxes]
    await asyncio.sleep(0)
    monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *args: woken.append(args) or real(*args))
    for round_ in range(2):
        in_a_thread(lambda: [inbox.put(place) for place, inbox in enumerate(inboxes)])
        assert await asyncio.gather(*readers) == [[place] for place in range(8)]
        assert len(woken) == round_ + 1
        readers = [asyncio.create_task(inbox.take()) for inbox in inboxes]
        await asyncio.sleep(0)
    for reader in readers:
        reader.cancel()


async def test_what_is_waiting_comes_together_and_in_order() -> None:
    inbox: Inbox[int] = Inbox()
    for number in range(5):
        inbox.put(number)
    assert await inbox.take(0) == [0, 1, 2, 3, 4]
    with pytest.raises(TimeoutError):
        await inbox.take(0.01)
    inbox.put(5)
    assert await inbox.take() == [5]


async def test_nothing_is_lost_between_many_threads_and_readers() -> None:
    inboxes: list[Inbox[int]] = [Inbox() for _ in range(4)]

    def put() -> None:
        for number in range(500):
            for inbox in inboxes:
                inbox.put(number)

    async def read(inbox: Inbox[int]) -> list[int]:
        got: list[int] = []
        while len(got) < 1000:
            got += await inbox.take(20)
        return got

    threads = [threading.Thread(target=put) for _ in range(2)]
    readers = [asyncio.create_task(read(inbox)) for inbox in inboxes]
    for thread in threads:
        thread.start()
    for got in await asyncio.gather(*readers):
        assert sorted(got) == sorted([*range(500), *range(500)])
    for thread in threads:
        thread.join()


def test_a_closed_loop_is_neither_told_nor_kept() -> None:
    async def inbox_of_a_loop() -> Inbox[int]:
        return Inbox()

    loop = asyncio.new_event_loop()
    inbox = loop.run_until_complete(inbox_of_a_loop())
    loop.close()
    inbox.put(1)
    gone = weakref.ref(loop)
    del loop, inbox
    gc.collect()
    assert gone() is None
