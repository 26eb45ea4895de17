"""A family of three modules, small enough to compare with dense matrices."""

from airtune.learning.lora import Family, Matrix

OUT, IN, M = 5, 7, 3
FAMILY = Family(
    matrices=tuple(Matrix(f"net.layer.{i}.query", i, IN, OUT) for i in range(3)),
    layers=3,
    ranks=(1, 2, 4),
    depths=(1, 2, 3),
    alpha=8.0,
    head=(("score.weight", (2, OUT)), ("score.bias", (2,))),
)
