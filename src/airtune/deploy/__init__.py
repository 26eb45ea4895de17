"""A real federation: `round.step` over devices that Flower reaches. Only `deploy.flower` imports flwr."""
