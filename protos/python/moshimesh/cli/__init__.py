"""`moshimesh`, the command for people: talk to a mesh, call it with a file, and look at it."""
