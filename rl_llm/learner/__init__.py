"""The learner: losses, gradients, log-probabilities, the critic, the optimizer, packing and the train state."""
