"""Lightning callbacks: they watch a training or save it, and change nothing in it."""
