"""The side that imports Flower: the apps that it starts, its grid as an exchange, keys, and its SuperLink."""
