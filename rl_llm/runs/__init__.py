"""Run folders and their display: ledger, checkpoints, metrics, findings, progress, report."""
