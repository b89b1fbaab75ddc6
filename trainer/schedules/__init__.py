"""Learning rate schedules, one per file, each exporting `SCHEDULE`."""
