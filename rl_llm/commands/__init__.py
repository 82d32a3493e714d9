"""The verbs of the command line, a module each: its arguments (`add`), and what it does (`run`)."""
