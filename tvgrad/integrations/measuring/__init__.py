"""Full-batch gradients of an unchanged script, by measuring passes at recorded weights."""
