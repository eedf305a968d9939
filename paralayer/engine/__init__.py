"""How the work is done: the plan, the memory, the jobs, who runs them, and the conversion that leads them."""
