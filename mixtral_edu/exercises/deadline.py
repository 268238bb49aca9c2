"""A time limit for code that may never finish."""

import ctypes
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

REPEAT = 0.05  # seconds until the next attempt, if the code swallowed the exception


class DeadlinePassed(BaseException):
    """Raised inside code that ran for too long. It is not an `Exception`, so `except Exception` does not catch it."""


def deadline(seconds: float) -> AbstractContextManager[None]:
    """Raise `DeadlinePassed` inside the `with` block once it has run for `seconds`, and again until it stops.

    On the main thread of Linux and macOS this is a timer signal, which also ends a sleep. Elsewhere (Windows, other
    threads) a second thread sends the exception, which arrives when the next line of Python runs. Neither can end a
    single call into C, such as one huge matrix product, or a loop that spends all its time in the block of a bare
    `except:`. Only another process can end those.
    """
    on_main_thread = threading.current_thread() is threading.main_thread()
    return _timer_signal(seconds) if on_main_thread and hasattr(signal, "setitimer") else _second_thread(seconds)


@contextmanager
def _timer_signal(seconds: float) -> Iterator[None]:
    def stop(*_) -> None:
        raise DeadlinePassed

    handler = signal.signal(signal.SIGALRM, stop)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds, REPEAT)
    try:
        yield
    finally:
        try:
            signal.setitimer(signal.ITIMER_REAL, *timer)
        finally:  # a signal may arrive in the line above
            signal.signal(signal.SIGALRM, handler)


@contextmanager
def _second_thread(seconds: float) -> Iterator[None]:
    thread_id = ctypes.c_ulong(threading.get_ident())
    send = ctypes.pythonapi.PyThreadState_SetAsyncExc
    over = threading.Event()

    def watch() -> None:
        wait = seconds
        while not over.wait(wait):
            send(thread_id, ctypes.py_object(DeadlinePassed))
            wait = REPEAT

    def disarm() -> None:
        over.set()
        watcher.join()
        send(thread_id, None)  # cancels an exception that was sent but has not arrived

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        try:
            disarm()
        finally:  # the exception may arrive in the line above
            disarm()
