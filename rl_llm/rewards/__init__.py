"""Scoring of responses: reward components, and the process pool that grades with them."""
