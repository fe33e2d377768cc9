"""Upper bounds on gradient, Hessian and third derivative of a network's mean loss over a ball of weights."""
