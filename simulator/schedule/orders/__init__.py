"""Built-in orders: one module per family, each a function from sizes to the columns of every rank."""
