"""Names that `tvgrad.report` exposes, and the modules that hold them: nothing is loaded before it is used."""

FIGURE_FUNCTIONS = {
    "block_norms": "tvgrad.report.maps",
    "budget_shares": "tvgrad.report.budget_figure",
    "cross_task_cosines": "tvgrad.report.figures",
    "descent_cosines": "tvgrad.report.figures",
    "epoch_cosine_map": "tvgrad.report.maps",
    "epoch_descent_cosines": "tvgrad.report.figures",
    "epoch_gradient_shares": "tvgrad.report.figures",
    "first_epoch_dominance": "tvgrad.report.first_epochs_figure",
    "gradient_shares": "tvgrad.report.figures",
    "layer_map": "tvgrad.report.maps",
    "map_grid": "tvgrad.report.maps",
    "trajectory_plane": "tvgrad.report.maps",
}
"""Figure -> the module that draws it."""
TABLE_FUNCTIONS = {
    "epoch_cosines": "tvgrad.report.geometry",
    "run_tables": "tvgrad.report.tables",
    "trajectories": "tvgrad.report.geometry",
}
"""What makes the tables of figures -> its module."""

WHERE = {**FIGURE_FUNCTIONS, **TABLE_FUNCTIONS}
"""Public name -> its module."""
