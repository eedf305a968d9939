"""Where survivors go. A sink is opened under a temporary name and gives the output its own at the end."""
