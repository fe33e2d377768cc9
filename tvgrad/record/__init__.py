"""Recording: the run directory on disk, the recorder that fills it while weights move, and `tvgrad trace`'s loop."""
