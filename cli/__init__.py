"""The commands."""

INTERRUPTED, KILLED = 130, 143
SAID = {
    INTERRUPTED: "interrupted: nothing half-written was left behind",
    KILLED: "told to end (SIGTERM): nothing half-written was left behind",
}
"""What is said of a signal, by the exit code that it leads to."""
