"""All that a run leaves on disk or shows on a screen: ledger, checkpoints, metrics, report."""
