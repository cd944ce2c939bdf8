"""Small models of many families, and the runners that train them: tpinit and its peers."""
