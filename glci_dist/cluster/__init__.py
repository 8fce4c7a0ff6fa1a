"""The process group, launchers, the watchdog for hangs, and signals."""
