"""The method that a configuration asks for."""

from airtune.config import RunConfig
from airtune.learning.lora import Family
from airtune.learning.method import Method, Nest
from airtune.learning.methods.frozen import FactorMethod
from airtune.learning.methods.means import HetLora, MeanMethod
from airtune.learning.methods.personal import FedSa
from airtune.learning.methods.products import FedEx, Flora


def method_of(config: RunConfig, family: Family) -> Method:
    """The federated LoRA method of `learning.method` over a family."""
    nest = Nest(family, config.modules, config.learning.context == "whole")
    match config.learning.method:
        case "nested" | "sum" | "fedit" | "flexlora" as mean:
            return MeanMethod(nest, mean)
        case "hetlora":
            return HetLora(nest, config.fleet.devices, config.learning.prune_weight > 0.0)
        case "flora":
            return Flora(nest, config.seed)
        case "fedex":
            return FedEx(nest)
        case "ffa" | "rolora" as turns:
            return FactorMethod(nest, turns)
        case "fedsa":
            return FedSa(nest)
