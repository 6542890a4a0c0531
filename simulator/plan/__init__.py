"""The planner: the best strategy of the whole legal space, with a proof."""
