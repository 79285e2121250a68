"""Loaded by each worker process on this machine: Ctrl-C is for the run, which then ends its workers."""

import signal

signal.signal(signal.SIGINT, signal.SIG_IGN)
