"""From graded rollouts to updates: batch fields, the RL step, the warm start."""
