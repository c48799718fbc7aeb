"""Lets the main thread of a process sleep whose workers have threads of their own.

With more than one worker, or `-i`, Bytewax's main thread looks for signals a thousand times a second. For each look it
wants the interpreter's lock, which a busy worker has to hand over and get back: about one part in twenty of the CPU of
two busy processes went into that. So a thread of ours sends the main thread a signal whose handler sleeps, and the
looks become a few dozen a second. Other signals end the sleep, or wait for its end.

Source: the loop at the end of `cluster_main` in Bytewax 0.21's src/run.rs.
"""

import signal
import threading
import time

LENGTH_S = 0.02


class IdleMainThread:
    """The naps of this process's main thread. Without POSIX signals there are none."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun = False

    def install(self) -> None:
        """To be called on the main thread, before there are workers."""
        if hasattr(signal, "SIGURG"):
            # Ignored by default, so one that comes when the interpreter is at its end does nothing.
            signal.signal(signal.SIGURG, lambda *_: time.sleep(LENGTH_S))

    def begin(self) -> None:
        """To be called by each worker. One that is on the main thread itself keeps it awake."""
        if threading.current_thread() is threading.main_thread() or not hasattr(signal, "pthread_kill"):
            return
        with self._lock:
            if not self._begun:
                self._begun = True
                threading.Thread(target=self._send, name="naps", daemon=True).start()

    def _send(self) -> None:
        main = threading.main_thread().ident
        assert main is not None
        while True:
            time.sleep(LENGTH_S)
            signal.pthread_kill(main, signal.SIGURG)
