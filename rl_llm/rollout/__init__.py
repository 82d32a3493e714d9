"""From problems to graded responses: sampling, grading, stored responses, evaluation."""
